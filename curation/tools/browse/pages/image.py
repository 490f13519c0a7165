"""An image with its archive, why each concept is there, and what was retrieved for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from curation.base.markup import quoted, text
from curation.tools.browse.evidence import Neighbour
from curation.tools.browse.pages.layout import Site, picture, tick

COLOURS = 8  # of clusters; more than that take turns


class Concept(NamedTuple):
    """A concept of the archive."""

    entry: dict[str, Any]  # as archives store it
    is_said: bool  # by the caption
    is_shown: bool | None  # by the picture, where that is known
    because: list[int]  # numbers of the neighbours whose captions mention it


class Sample(NamedTuple):
    """The image of the page."""

    row: int
    last: int  # row of the run
    shard: str
    at: int  # row in the shard
    key: str
    caption: str
    attribution: str  # whom its sidecar credits
    visible: list[str] | None  # what its sidecar says is visible


def image(
    site: Site,
    sample: Sample,
    concepts: Sequence[Concept],
    neighbours: Sequence[Neighbour],
    retrieves: bool,
    is_own: bool,
    problem: str = "",
) -> str:
    """The page. is_own: the neighbours are images of the run itself; problem: why they cannot be shown."""
    steps = {"prev": ("‹ Previous", sample.row - 1), "next": ("Next ›", sample.row + 1)}
    links = "".join(
        f'<a rel="{name}" href="{site.url(f"image/{row}")}">{label}</a>'
        for name, (label, row) in steps.items()
        if 0 <= row <= sample.last
    )
    truth = f"<dt>visible</dt><dd>{text(', '.join(sample.visible), 600)}</dd>" if sample.visible is not None else ""
    credit = f"<dt>credit</dt><dd>{text(sample.attribution, 400)}</dd>" if sample.attribution else ""
    body = f"""<article class="sample">
<figure>{picture(site.url(f"picture/{sample.row}", {"side": 1024}), sample.caption, 512)}
<figcaption>{quoted(sample.caption)}</figcaption></figure>
<div>
<dl class="facts"><dt>key</dt><dd><bdi>{text(sample.key)}</bdi></dd>
<dt>shard</dt><dd>{text(sample.shard)}, row {sample.at:,}</dd>{truth}{credit}</dl>
<p><a href="{site.url(f"like/{sample.row}")}">Images that look like it</a></p>
<h2>Archive</h2>
{archive(site, concepts, neighbours, retrieves)}
</div>
</article>
<nav class="pager" aria-label="Pages">{links}</nav>
{retrieved(site, neighbours, retrieves, is_own, problem)}"""
    return site.page(sample.key, body)


def archive(site: Site, concepts: Sequence[Concept], neighbours: Sequence[Neighbour], retrieves: bool) -> str:
    """The concepts as bars, with the reason of each."""
    if not concepts:
        return '<p class="quiet">The archive is empty.</p>'
    largest = max((c.entry["score"] for c in concepts if math.isfinite(c.entry["score"])), default=1.0)
    return f'<ol class="archive">{"".join(bar(site, concept, largest, neighbours, retrieves) for concept in concepts)}</ol>'


def bar(site: Site, concept: Concept, largest: float, neighbours: Sequence[Neighbour], retrieves: bool) -> str:
    """One concept: its score, and which captions it comes from."""
    entry = concept.entry
    share = max(0.0, min(1.0, entry["score"] / largest)) if largest > 0 and math.isfinite(entry["score"]) else 0.0
    new = "" if concept.is_said else '<span class="tag new">new</span>'
    scores = (
        f"score {entry['score']:.3f} = global {entry['global']:.3f} + local {entry['local']:.3f}; "
        f"cluster {entry['cluster']}; in {entry['support']} retrieved captions"
    )
    return (
        f'<li title="{scores}"><span class="concept"><a href="{site.url("concept", {"name": entry["concept"]})}">'
        f"{text(entry['concept'], 60)}</a>{tick(concept.is_shown)}{new}</span>"
        f'<svg class="track" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="c{entry["cluster"] % COLOURS}" width="{100 * share:.1f}" height="8"/></svg>'
        f'<span class="score">{entry["score"]:.2f}</span>'
        f'<p class="why">{because(concept, neighbours, retrieves)}</p></li>'
    )


def because(concept: Concept, neighbours: Sequence[Neighbour], retrieves: bool) -> str:
    """Which captions a concept comes from, in words."""
    if not retrieves:
        return "its own caption mentions it" if concept.is_said else "its text embedding is near the image's"
    links = ", ".join(
        f'<a href="#n{number}">{"its own caption" if neighbours[number].is_self else f"neighbour {number + 1}"}</a>'
        for number in concept.because
    )
    return f"mentioned by {links}" if links else "mentioned by none that is retrieved now"


def retrieved(site: Site, neighbours: Sequence[Neighbour], retrieves: bool, is_own: bool, problem: str) -> str:
    """What was retrieved, with captions."""
    if not retrieves:
        return ""
    if problem:
        return f'<h2>Retrieved</h2><p class="note">{text(problem, 600)}</p>'
    items = []
    for number, neighbour in enumerate(neighbours):
        source = "picture" if is_own else "retrieved"
        shown = picture(site.url(f"{source}/{neighbour.row}"), neighbour.caption, 160)
        linked = f'<a href="{site.url(f"image/{neighbour.row}")}">{shown}</a>' if is_own else shown
        itself = " · itself" if neighbour.is_self else ""
        items.append(
            f'<li id="n{number}">{linked}<p>{quoted(neighbour.caption)}</p>'
            f'<p class="quiet">{number + 1} · {neighbour.cosine:.3f}{itself}</p></li>'
        )
    return f'<h2>Retrieved</h2><ul class="grid">{"".join(items)}</ul>'
