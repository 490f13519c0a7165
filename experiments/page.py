"""The page of a comparison, ``README.md`` beside its figures: what was asked, what was seen, what was not shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.base.markdown import table
from experiments.arms import BASELINE, Arm, Family
from experiments.findings import beside_untrained, findings, limits, score_range
from experiments.omission import NAMES
from experiments.recipes import Recipe
from experiments.scores import Curve
from experiments.summary import ArmRuns
from experiments.untrained import Reading

DISCUSSION = "discussion.md"  # written by people, taken over as it is
PICTURES = (
    "Beside the runs, not beside this page: they show images of the data, which have a licence of their own. Drawn at "
    "random, not chosen for what a model makes of them. Left: the image with its caption, and what each model sees. Right: "
    "the truth, and how well each place fits a class that is visible and that the caption omits; every map has a colour "
    "scale of its own."
)
NUMBERS = (
    "Numbers behind the figures: `curves.csv` (every validation of every run), `results.csv` (final scores), "
    "`classes.csv` (IoU of every class, and how often captions omit it), `references.csv` (what is not trained here), "
    "`archives.csv`."
)
SCALE = (
    "Nothing at the paper's scale: a small model on small pictures, minutes of training a run. The order of arms here need "
    "not be the order there."
)


@dataclass(frozen=True)
class StartSummary:
    """What the page says of the weights that all runs of a family start from."""

    name: str  # a checkpoint, or the file of its recipe
    recipe: Recipe | None  # where it was learnt for this comparison
    curve: Curve | None  # its scores while it was learnt


@dataclass(frozen=True)
class Section:
    """What the page says of one family."""

    family: Family
    recipe: str  # YAML
    start: StartSummary | None  # None: random weights, or what the recipe says
    arms: Sequence[ArmRuns]
    sweep: Sequence[ArmRuns]
    lines: Sequence[dict[str, Any]]  # of summary.final_table, arms and sweep
    references: Sequence[dict[str, Any]]  # likewise: the encoder untrained, the start
    figures: Sequence[tuple[str, str]]  # title and file of each
    pictures: Sequence[str]  # files

    @property
    def compared(self) -> list[dict[str, Any]]:
        """The lines of the arms, without the sweep."""
        names = {runs.arm.name for runs in self.arms}
        return [line for line in self.lines if line["arm"] in names]


@dataclass(frozen=True)
class Page:
    """All that the page says."""

    data: str
    benchmark: str
    images: int  # of the training data
    limit: int | None  # images that scores are on; None: all
    command: str
    conditions: str  # machine and versions
    sections: Sequence[Section]
    untrained: Reading | None  # the best way to read the encoder as it is
    quality: Sequence[dict[str, Any]]  # empty where the truth is not known
    members: Sequence[int]  # classes of each omission group
    truth_known: bool  # whether omission is known from sidecars, not estimated
    left_out: Sequence[str]  # arms that were not run, or not to the end


def write_page(page: Page, folder: Path) -> Path:
    """Write ``folder/README.md``; returns its path."""
    discussion = folder / DISCUSSION
    parts = [
        "# Does CoCu help?",
        *_beside_untrained(page),
        question(page),
        *(part for section in page.sections for part in _results(section, alone=len(page.sections) == 1)),
        *_archives(page),
        *_pictures(page),
        *([discussion.read_text(encoding="utf-8").strip()] if discussion.exists() else []),
        *_limits(page),
        *_how(page),
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


# --- parts: paragraphs of Markdown --------------------------------------------------------------------------------------


def _beside_untrained(page: Page) -> list[str]:
    families = [(section.family.title, section.compared) for section in page.sections]
    return [beside_untrained(page.untrained, families)] if page.untrained else []


def question(page: Page) -> str:
    """What was asked, and how."""
    counts = ", ".join(f"{count} {name}" for count, name in zip(page.members, NAMES, strict=True) if count)
    estimate = "archives that hold it (an estimate: no truth is known)"
    source = "pictures where it is visible" if page.truth_known else estimate
    titles = " and ".join(section.family.title for section in page.sections)
    measured = f"{page.limit} images of `{page.benchmark}`" if page.limit else f"`{page.benchmark}`"
    return (
        f"Does training on concept archives segment better than training on captions alone, above all for what captions "
        f"omit? Trained: {titles}. All arms read the same {page.images:,} images of `{page.data}` for the same steps, by "
        f"the recipe below; an arm differs in its archives, its sampler or its negatives only. Scores are zero-shot "
        f"segmentation on {measured} at the end of training, in percent; the best of several checkpoints is never chosen. "
        f"Classes are grouped by the share of {source} whose caption does not mention it: {counts}."
    )


def _results(section: Section, alone: bool) -> list[str]:
    steps = f"{section.arms[0].last_step:,} steps" if section.arms else "no steps"
    parts = [
        "## What was seen" if alone else f"## {section.family.title}",
        f"{steps}{_started(section.start)}.",
        _bullets(findings(section.arms, section.lines, section.family.method)),
        _final_scores([*section.compared, *section.references], [runs.arm for runs in section.arms]),
        *(f"![{title}]({name})" for title, name in section.figures),
    ]
    if section.sweep:
        scores = _final_scores(section.lines, [runs.arm for runs in section.sweep])
        parts += ["## One setting at a time", scores, "![sweep](sweep.png)"]
    return parts


def _started(start: StartSummary | None) -> str:
    """Half a sentence: what all arms start from."""
    if start is None:
        return ""
    if start.curve is None:
        return f" from the weights of `{start.name}`"
    miou, accuracy = start.curve.miou[-1], start.curve.pixel_accuracy[-1]
    parts = "places" if start.recipe and start.recipe.has_teacher else "windows"
    return (
        f" from weights that have learnt what the encoder behind the archives makes of {parts} of the images "
        f"(`{start.name}`; mIoU {miou:.2f}, pixel accuracy {accuracy:.2f})"
    )


def _archives(page: Page) -> list[str]:
    return ["## The archives against the truth", _table(page.quality)] if page.quality else []


def _pictures(page: Page) -> list[str]:
    names = [name for section in page.sections for name in section.pictures]
    return ["## Pictures", PICTURES, _bullets(f"`{name}`" for name in names)] if names else []


def _limits(page: Page) -> list[str]:
    sentences = [SCALE]
    for section in page.sections:
        named = f"{section.family.title}: " if section.family.name else ""
        sentences += [named + text for text in limits(section.arms, section.lines, section.family.chosen)]
    if page.left_out:
        sentences.append(f"Not run, or not to the end: {', '.join(page.left_out)}.")
    return ["## What was not shown", _bullets(sentences)]


def _how(page: Page) -> list[str]:
    parts = ["## How to run it again", f"    {page.command}", NUMBERS, page.conditions]
    for section in page.sections:
        over = "\n".join(f"    {key}: {value}" for key, value in section.family.train.items())
        whose = f"of {section.family.title}" if section.family.name else "the same for all arms"
        parts += [f"The recipe, {whose}:", f"```yaml\n{section.recipe.strip()}\n```"]
        parts += ["and over it, for all its arms:", over] if over else []
        if section.start and section.start.recipe:
            parts += ["That of what they start from:", f"```yaml\n{section.start.recipe.text().strip()}\n```"]
    return parts


# --- Markdown -----------------------------------------------------------------------------------------------------------


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _final_scores(lines: Sequence[dict[str, Any]], arms: Sequence[Arm]) -> str:
    """The table of final scores of some arms, and of what is no arm: lines without seeds."""
    titles = {arm.name: arm.title for arm in arms}
    rows = []
    for line in lines:
        if line["arm"] in titles or line["seeds"] is None:
            row = {"arm": line["arm"], "what": titles.get(line["arm"], "not trained here"), "seeds": line["seeds"]}
            row |= {"mIoU": score_range(line, "miou"), "pixel accuracy": score_range(line, "pixel_accuracy")}
            row |= {name: line[f"miou {name}"] for name in NAMES if np.isfinite(line[f"miou {name}"])}
            rows.append(row | {f"steps to {BASELINE}": line["steps to baseline"]})
    return _table(rows)


def _table(lines: Sequence[dict[str, Any]]) -> str:
    return table(list(lines[0]), [[_cell(value) for value in line.values()] for line in lines])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        return "-" if np.isnan(value) else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
