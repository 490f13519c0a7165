"""What could not be used, by reason, with pictures where there are any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from curation.base.markup import text
from curation.tools.browse.pages.layout import Site, pager, picture


class Reject(NamedTuple):
    """A sample that could not be used."""

    number: int  # among all of the run
    shard: str
    key: str
    reason: str


class Kind(NamedTuple):
    """The rejects of one kind of reason: all of them, or the first."""

    name: str
    size: int
    rejects: Sequence[Reject]


def kinds(site: Site, groups: Sequence[Kind], samples: int) -> str:
    """All kinds, with a few rejects of each."""
    total = sum(kind.size for kind in groups)
    parts = "".join(
        f'<h2>{text(kind.name)} <a class="quiet" href="{site.url("rejects", {"kind": kind.name})}">{kind.size:,}</a></h2>'
        f"{_grid(site, kind.rejects)}"
        for kind in groups
    )
    share = total / samples if samples else 0
    return site.page("Rejects", f"<p>{total:,} of {samples:,} samples ({share:.2%}) could not be used.</p>{parts}")


def kind_page(site: Site, kind: Kind, page: int) -> str:
    """A page of the rejects of one kind."""
    links = pager(site, "rejects", {"kind": kind.name}, page, kind.size)
    back = f'<p class="quiet">{kind.size:,} rejects. <a href="{site.url("rejects")}">All reasons</a></p>'
    return site.page(kind.name, back + _grid(site, kind.rejects) + links)


def _grid(site: Site, rejects: Sequence[Reject]) -> str:
    items = "".join(
        f"<li>{picture(site.url(f'reject/{reject.number}'), reject.key, 160)}"
        f"<p><bdi>{text(reject.key or reject.shard, 80)}</bdi></p>"
        f'<p class="quiet">{text(reject.shard, 60)}: {text(reject.reason)}</p></li>'
        for reject in rejects
    )
    return f'<ul class="grid rejects">{items}</ul>'
