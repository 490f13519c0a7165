"""The page: without scripts, its pictures and styles inside."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

from curation.base.markup import quoted, text
from curation.concepts import concept_key
from curation.config import CurationConfig
from curation.expansion import EXPANSIONS
from curation.tools.report.charts import histogram, vocabulary
from curation.tools.report.duplicates import duplicates_section
from curation.tools.report.examples import Example, Picture
from curation.tools.report.galleries import galleries_section
from curation.tools.report.map import map_section
from curation.tools.report.record import Report
from curation.tools.report.rejects import rejects_section
from curation.tools.report.survey import Survey

COLOURS = 8  # of clusters; more than that take turns
CONCEPTS_SHOWN = 12  # of an archive
CREDITS = 40
SHORTEST = 0.03  # share of a bar's track


def render(config: CurationConfig, report: Report) -> str:
    """The whole page."""
    style = (resources.files("curation.tools.report") / "style.css").read_text(encoding="utf-8")
    name = text(config.name)
    notes = "".join(f'<p class="note">{text(note, 400)}</p>' for note in dict.fromkeys(report.notes))
    scale = scale_of(report.examples)
    has_pictures = any(example.picture.image for example in report.examples)
    has_truth = any(example.picture.visible is not None for example in report.examples)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}: concept archives</title>
<style>
{style}</style>
</head>
<body>
<header>
<p class="kicker">Concept curation</p>
<h1>{name}</h1>
<p class="lead">{lead(config, report.manifest["counts"])}</p>
{tiles(report.manifest["counts"])}
</header>
<main>
<section aria-labelledby="counts">
<h2 id="counts">Concepts per image</h2>
<p>{counted(report.survey, report.manifest["counts"]["rows"])}</p>
{histogram(report.survey)}
</section>
{sections(report)}<section aria-labelledby="examples">
<h2 id="examples">{len(report.examples)} images, chosen at random</h2>
{legend(config, has_truth, scale)}
{notes}
<div class="examples{"" if has_pictures else " bare"}">
{"".join(card(example, scale) for example in report.examples)}</div>
</section>
<section aria-labelledby="vocabulary">
<h2 id="vocabulary">Vocabulary</h2>
{vocabulary(report.candidates, report.survey, config)}
</section>
</main>
<footer><p>{ending(config, report.manifest)}</p>{credits(report.examples)}</footer>
</body>
</html>
"""


def sections(report: Report) -> str:
    """What not every page has."""
    counts = report.manifest["counts"]
    return (
        galleries_section(report.galleries)
        + map_section(report.map)
        + duplicates_section(report.duplicates, counts["rows"])
        + rejects_section(report.rejects, counts)
    )


def lead(config: CurationConfig, counts: dict[str, int]) -> str:
    """What the run found, in a sentence."""
    rows = max(counts["rows"], 1)
    before, after = counts["caption_concepts"] / rows, counts["archive_concepts"] / rows
    names = "The captions of an image name" if config.captions else "A caption names"
    return (
        f"{names} <b>{before:.1f}</b> concepts of the vocabulary on average, an archive holds <b>{after:.1f}</b>. "
        f"For <b>{counts['gained'] / rows:.1%}</b> of the images it holds candidates that the caption leaves out."
    )


def tiles(counts: dict[str, int]) -> str:
    """The counts of the run."""
    shown = {
        "images": counts["rows"],
        "shards": counts["shards"],
        "rejects": counts["rejects"],
        "concepts": counts["concepts"],
        "empty archives": counts["empty"],
    }
    cells = "".join(f"<div><dd>{value:,}</dd><dt>{name}</dt></div>" for name, value in shown.items())
    return f'<dl class="tiles">{cells}</dl>'


def counted(survey: Survey, rows: int) -> str:
    """Of how many images the histogram tells."""
    return (
        f"Of all {rows:,} images."
        if survey.rows == rows
        else f"Of {survey.rows:,} images in random shards, of {rows:,}."
    )


# --- examples ------------------------------------------------------------------------------------------------------------


def scale_of(examples: list[Example]) -> tuple[float, float]:
    """Where the bars of scores begin and end: the lowest and the highest score that is shown."""
    scores = [concept["score"] for example in examples for concept in example.concepts[:CONCEPTS_SHOWN]]
    finite = [score for score in scores if math.isfinite(score)]
    return min(finite, default=0.0), max(finite, default=1.0)


def legend(config: CurationConfig, has_truth: bool, scale: tuple[float, float]) -> str:
    """How to read the examples."""
    parts = [
        f"Each archive holds concepts from {EXPANSIONS[config.archive.expansion].sentence}, the most relevant first.",
        f"Bars of scores begin at {scale[0]:.2f} and end at {scale[1]:.2f}, the lowest and the highest here.",
        "Bars of one colour are one cluster." if config.archive.clusters else "",
        '<span class="tag new">new</span> marks what the caption leaves out'
        + (
            ', <span class="tag seen">✓</span> what is really in the picture, by the data set’s own truth.'
            if has_truth
            else "."
        ),
    ]
    return f"<p>{' '.join(part for part in parts if part)}</p>"


def card(example: Example, scale: tuple[float, float]) -> str:
    """One image with caption, archive and neighbours."""
    picture = example.picture
    shown, more = example.concepts[:CONCEPTS_SHOWN], len(example.concepts) - CONCEPTS_SHOWN
    bars = "".join(bar(concept, scale, example) for concept in shown)
    archive = f'<ol class="archive">{bars}</ol>' if shown else '<p class="quiet">The archive is empty.</p>'
    rest = f'<p class="quiet">and {more} more</p>' if more > 0 else ""
    return f"""<article>
<div class="top">
{image(picture, 160)}
<div>
{captions(picture)}
{archive}{rest}
</div>
</div>
{neighbours(example)}
<p class="key"><bdi>{text(picture.key, 80)}</bdi> · {text(picture.shard.name, 60)}, row {picture.row:,}</p>
</article>
"""


def captions(picture: Picture) -> str:
    """The caption; of several, each with the fields that have it."""
    if not picture.captions:
        return f'<p class="caption">{quoted(picture.caption)}</p>'
    named = [(quoted(caption["text"]), text(", ".join(caption["sources"]), 120)) for caption in picture.captions]
    return "".join(f'<p class="caption">{caption} <span class="quiet">{names}</span></p>' for caption, names in named)


def image(picture: Picture, width: int) -> str:
    """The thumbnail, or a place where it would be."""
    if not picture.image:
        return '<div class="absent" aria-hidden="true"></div>'
    return f'<img src="{picture.image}" alt="{text(picture.caption)}" width="{width}" loading="lazy">'


def bar(concept: dict[str, Any], scale: tuple[float, float], example: Example) -> str:
    """One concept of an archive; the lowest score of all has a bar that can just be seen."""
    score, colour = concept["score"], concept["cluster"] % COLOURS
    least, most = scale
    share = (score - least) / (most - least) if most > least and math.isfinite(score) else 1.0
    share = SHORTEST + (1 - SHORTEST) * share
    visible = example.picture.visible
    new = "" if concept["concept"] in example.said else '<span class="tag new">new</span>'
    seen = visible is not None and concept_key(concept["concept"]) in visible
    tick = (
        '<span class="tag seen" title="in the picture">✓<span class="hidden"> in the picture</span></span>'
        if seen
        else ""
    )
    details = (
        f"score {score:.3f} = global {concept['global']:.3f} + local {concept['local']:.3f}; cluster {concept['cluster']}; "
        f"in {concept['support']} retrieved captions"
        + (f" ({text(', '.join(concept['sources']), 120)})" if concept.get("sources") else "")
    )
    return (
        f'<li title="{details}"><span class="name">{text(concept["concept"], 60)}{tick}{new}</span>'
        f'<span class="track"><span class="bar c{colour}" style="width:{share:.1%}"></span></span>'
        f'<span class="score">{score:.2f}</span></li>'
    )


def neighbours(example: Example) -> str:
    """The retrieved samples in a row."""
    if not example.neighbours:
        return ""
    items = "".join(
        f'<li>{image(picture, 84)}<p class="cosine">{cosine:.2f}</p><p>{quoted(picture.caption)}</p></li>'
        for cosine, picture in example.neighbours
    )
    return (
        f'<h3>Retrieved</h3><ul class="neighbours" tabindex="0" aria-label="Retrieved images and captions">{items}</ul>'
    )


def ending(config: CurationConfig, manifest: dict[str, Any]) -> str:
    """What the run was, for whoever finds the page alone."""
    parts = [
        f"{config.archive.expansion} expansion, L = {config.retrieval.neighbors}",
        f"ranking {config.archive.ranking_name}",
        f"encoder {config.encoder.model.rsplit('/', 1)[-1]}" if config.encoder.is_named else "given embeddings",
        f"seed {config.archive.seed}",
        f"cocu {manifest.get('versions', {}).get('cocu', '')}".strip(),
    ]
    return text(" · ".join(parts), 400)


def credits(examples: list[Example]) -> str:
    """Whom the sidecars of the pictures credit."""
    pictures = [example.picture for example in examples] + [p for example in examples for _, p in example.neighbours]
    named = dict.fromkeys(picture.attribution for picture in pictures if picture.attribution)
    return "".join(f"<p>{text(name, 400)}</p>" for name in list(named)[:CREDITS])
