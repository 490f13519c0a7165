"""The gallery of a concept: the surest, the doubtful, those that captions omit, and by cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from curation.base.markup import text
from curation.tools.browse.gallery import VIEWS
from curation.tools.browse.pages.layout import Card, Site, grid, pager, tabs


class Facts(NamedTuple):
    """What a gallery says of its concept."""

    name: str
    archives: int
    omitted: int  # of them those whose captions leave the concept out
    mentioned: int  # captions that mention it
    visualness: float  # NaN where it could not be measured


class Cluster(NamedTuple):
    """Some archives in which the concept is clustered with the same other concept."""

    companion: str  # empty where it has a cluster of its own
    size: int
    cards: list[Card]


def head(site: Site, facts: Facts, view: str) -> str:
    """What stands above every view."""
    visual = "" if facts.visualness != facts.visualness else f" Visualness {facts.visualness:.2f}."
    share = facts.omitted / facts.archives if facts.archives else 0
    return (
        f"<p>In {facts.archives:,} archives; the captions of {facts.omitted:,} of them ({share:.0%}) leave it out. "
        f"{facts.mentioned:,} captions mention it.{visual}</p>"
        f"{tabs(site, 'concept', {'name': facts.name, 'view': view}, 'view', VIEWS)}"
        f'<p class="quiet">{VIEWS[view][0].upper() + VIEWS[view][1:]}.</p>'
    )


def gallery(
    site: Site, facts: Facts, view: str, cards: list[Card], page: int, total: int, companion: str | None = None
) -> str:
    """A page of one view. companion: only archives in which it is clustered with this concept."""
    known = [card.is_shown for card in cards if card.is_shown is not None]
    truth = f" Of {len(known)} whose truth is known, {sum(known)} show it." if known else ""
    beside = "" if companion is None else f" Clustered with {text(companion) if companion != '-' else 'nothing else'}."
    links = pager(site, "concept", {"name": facts.name, "view": view, "companion": companion}, page, total)
    body = f'{head(site, facts, view)}<p class="quiet">{total:,} images.{beside}{truth}</p>{grid(site, cards)}{links}'
    return site.page(facts.name, body, facts.name, "concept")


def clusters(site: Site, facts: Facts, shown: Sequence[Cluster]) -> str:
    """The view by cluster: a row of images for each of the largest."""
    parts = []
    for cluster in shown:
        title = f"with {text(cluster.companion, 60)}" if cluster.companion else "on its own"
        link = site.url("concept", {"name": facts.name, "view": "surest", "companion": cluster.companion or "-"})
        parts.append(
            f'<h2>{title} <a class="quiet" href="{link}">{cluster.size:,} images</a></h2>{grid(site, cluster.cards)}'
        )
    return site.page(facts.name, head(site, facts, "clusters") + "".join(parts), facts.name, "concept")
