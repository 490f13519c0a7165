"""What a search gives: images, or concepts."""

from __future__ import annotations

from collections.abc import Sequence

from curation.base.markup import text
from curation.tools.browse.pages.layout import Card, Site, grid, pager


def images(site: Site, query: str, by: str, cards: list[Card], page: int, total: int) -> str:
    """Images; total: how many there are in all, or how many of the nearest are shown."""
    count = "The nearest images, by cosine." if by == "words" else f"{total:,} images"
    links = pager(site, "search", {"q": query, "by": by}, page, total)
    return site.page(f"“{query}”", f'<p class="quiet">{count}</p>{grid(site, cards)}{links}', query, by)


def alike(site: Site, row: int, cards: list[Card]) -> str:
    """The images that look like one of the run."""
    back = f'<p class="quiet">The nearest to <a href="{site.url(f"image/{row}")}">this image</a>, by cosine.</p>'
    return site.page("Alike", back + grid(site, cards))


def concepts(site: Site, query: str, matches: Sequence[tuple[str, int]], near: str) -> str:
    """Concepts of a vocabulary whose names hold the query; near: a hint where there are none."""
    items = "".join(
        f'<li><a href="{site.url("concept", {"name": name})}">{text(name, 60)} '
        f'<span class="quiet">{count:,}</span></a></li>'
        for name, count in matches
    )
    body = f'<ul class="chips">{items}</ul>' if items else f'<p class="quiet">No concept has this name{text(near)}.</p>'
    return site.page(f"“{query}”", body, query, "concept")


def failure(site: Site, message: str) -> str:
    """A page for what cannot be shown, and why."""
    return site.page("Not here", f'<p class="note">{text(message, 600)}</p>')
