"""Groups of near-identical images, the largest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from curation.tools.browse.pages.layout import Card, Site, grid, pager

GROUPS = 12  # on a page


class Group(NamedTuple):
    """A group, and its first images, the representative before all others."""

    size: int
    cards: Sequence[Card]


def groups(site: Site, shown: Sequence[Group], duplicates: int, total: int, page: int) -> str:
    """A page of groups."""
    if not total:
        return site.page("Duplicates", '<p class="quiet">No groups of near-identical images are known of this run.</p>')
    parts = "".join(f"<h2>{group.size:,} images</h2>{grid(site, group.cards)}" for group in shown)
    lead = (
        f"<p>{duplicates:,} images are near-identical to another one, in {total:,} groups. The first of each group counts "
        "for all of it.</p>"
    )
    return site.page("Duplicates", lead + parts + pager(site, "duplicates", {}, page, total, GROUPS))
