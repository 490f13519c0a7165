"""The page of a comparison, ``README.md`` beside its figures: what was asked, what was seen, what was not shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.base.markdown import table
from experiments.arms import BASELINE, Arm
from experiments.findings import findings, limits, score_range
from experiments.omission import NAMES
from experiments.scores import Curve
from experiments.summary import ArmRuns

DISCUSSION = "discussion.md"  # written by people, taken over as it is
PICTURES = (
    "Beside the runs, not beside this page: they show images of the data, which have a licence of their own. Drawn at "
    "random, not chosen for what a model makes of them. Left: the image with its caption, and what each model sees. Right: "
    "the truth, and how well each place fits a class that is visible and that the caption omits; every map has a colour "
    "scale of its own."
)
NUMBERS = (
    "Numbers behind the figures: `curves.csv` (every validation of every run), `results.csv` (final scores), "
    "`classes.csv` (IoU of every class, and how often captions omit it), `archives.csv`."
)


@dataclass(frozen=True)
class StartSummary:
    """What the page says of the weights that all runs start from."""

    name: str  # a checkpoint, or the file of its recipe
    recipe: str | None  # YAML, where it was learnt for this comparison
    curve: Curve | None  # its scores while it was learnt


@dataclass(frozen=True)
class Page:
    """All that the page says."""

    data: str
    benchmark: str
    images: int  # of the training data
    command: str
    conditions: str  # machine and versions
    recipe: str  # YAML
    start: StartSummary | None  # None: random weights
    arms: Sequence[ArmRuns]
    sweep: Sequence[ArmRuns]
    lines: Sequence[dict[str, Any]]  # of summary.final_table, arms and sweep
    quality: Sequence[dict[str, Any]]  # empty where the truth is not known
    members: Sequence[int]  # classes of each omission group
    truth_known: bool  # whether omission is known from sidecars, not estimated
    pictures: Sequence[str]  # files
    left_out: Sequence[str]  # arms that were not run, or not to the end


def write_page(page: Page, folder: Path) -> Path:
    """Write ``folder/README.md``; returns its path."""
    discussion = folder / DISCUSSION
    parts = [
        *_results(page),
        *_sweep(page),
        *_archives(page),
        *_pictures(page),
        *([discussion.read_text(encoding="utf-8").strip()] if discussion.exists() else []),
        "## What was not shown",
        _bullets(limits(page.arms, page.lines, page.left_out)),
        *_how(page),
    ]
    path = folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


# --- parts: paragraphs of Markdown --------------------------------------------------------------------------------------


def _results(page: Page) -> list[str]:
    return [
        "# Does CoCu help?",
        question(page),
        "## What was seen",
        _bullets(findings(page.arms, page.lines)),
        _final_scores(page.lines, [runs.arm for runs in page.arms]),
        "![mIoU against steps](curves.png)",
        "![final mIoU by how often captions omit a class](omission.png)",
        "![losses against steps](losses.png)",
    ]


def question(page: Page) -> str:
    """What was asked, and how."""
    start = _started(page.start)
    counts = ", ".join(f"{count} {name}" for count, name in zip(page.members, NAMES, strict=True) if count)
    estimate = "archives that hold it (an estimate: no truth is known)"
    source = "pictures where it is visible" if page.truth_known else estimate
    steps = page.arms[0].last_step if page.arms else 0
    return (
        f"Does training on concept archives make GroupViT segment better than training on captions alone, above all for "
        f"what captions omit? All arms read the same {page.images:,} images of `{page.data}` for {steps:,} steps with the "
        f"recipe below{start}; an arm differs in its archives, its sampler or its negatives only. Scores are "
        f"zero-shot segmentation on `{page.benchmark}` at the end of training, in percent; the best of several checkpoints "
        f"is never chosen. Classes are grouped by the share of {source} whose caption does not mention it: {counts}."
    )


def _started(start: StartSummary | None) -> str:
    """Half a sentence: what all arms start from."""
    if start is None:
        return ""
    if start.curve is None:
        return f", from the weights of `{start.name}`"
    miou, accuracy = start.curve.miou[-1], start.curve.pixel_accuracy[-1]
    return (
        f", from weights that have learnt what the encoder behind the archives makes of windows of the images "
        f"(`{start.name}`; mIoU {miou:.2f}, pixel accuracy {accuracy:.2f})"
    )


def _sweep(page: Page) -> list[str]:
    if not page.sweep:
        return []
    scores = _final_scores(page.lines, [runs.arm for runs in page.sweep])
    return ["## One setting at a time", scores, "![sweep](sweep.png)"]


def _archives(page: Page) -> list[str]:
    return ["## The archives against the truth", _table(page.quality)] if page.quality else []


def _pictures(page: Page) -> list[str]:
    if not page.pictures:
        return []
    return ["## Pictures", PICTURES, _bullets(f"`{name}`" for name in page.pictures)]


def _how(page: Page) -> list[str]:
    parts = ["## How to run it again", f"    {page.command}", NUMBERS, page.conditions]
    parts += ["The recipe, the same for all arms:", f"```yaml\n{page.recipe.strip()}\n```"]
    if page.start and page.start.recipe:
        parts += ["That of what they start from:", f"```yaml\n{page.start.recipe.strip()}\n```"]
    return parts


# --- Markdown -----------------------------------------------------------------------------------------------------------


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)


def _final_scores(lines: Sequence[dict[str, Any]], arms: Sequence[Arm]) -> str:
    """The table of final scores of some arms."""
    titles = {arm.name: arm.title for arm in arms}
    rows = []
    for line in lines:
        if line["arm"] in titles:
            row = {"arm": line["arm"], "what": titles[line["arm"]], "seeds": line["seeds"]}
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
