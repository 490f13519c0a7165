"""The first page: the counts of a run, its most frequent concepts, and random images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from curation.base.markup import text
from curation.tools.browse.pages.layout import Card, Site, grid

TILES = {"rows": "images", "concepts": "concepts", "gained": "images with candidates", "rejects": "rejects"}


def home(
    site: Site, counts: Mapping[str, int], concepts: Iterable[tuple[str, int]], cards: list[Card], draw: int
) -> str:
    """The page. concepts: the most frequent with their archives; draw: which random images these are."""
    tiles = "".join(f"<div><dd>{counts.get(name, 0):,}</dd><dt>{label}</dt></div>" for name, label in TILES.items())
    chips = "".join(
        f'<li><a href="{site.url("concept", {"name": name})}">{text(name, 60)} '
        f'<span class="quiet">{count:,}</span></a></li>'
        for name, count in concepts
    )
    body = f"""<dl class="tiles">{tiles}</dl>
<h2>Concepts in most archives</h2>
<ul class="chips">{chips}</ul>
<h2>Random images</h2>
{grid(site, cards)}
<p><a rel="next" href="{site.url("", {"draw": draw + 1})}">Others</a></p>"""
    return site.page("Archives", body)
