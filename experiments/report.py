"""The page of a comparison, ``README.md`` beside its figures: what was asked, what was seen, what was not shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.results import table
from experiments.arms import TRUTH, Arm
from experiments.omission import NAMES
from experiments.scores import Curve
from experiments.summary import BASELINE, Runs, baseline_target, steps_to

COCU = "cluster"  # the arm of the method
DISCUSSION = "discussion.md"  # written by people, taken over as it is


class Start(NamedTuple):
    """What all runs start from."""

    name: str  # a checkpoint, or the file of its recipe
    recipe: str | None  # YAML, where it was learnt for this comparison
    curve: Curve | None  # its scores while it was learnt


class Page(NamedTuple):
    """All that the page says."""

    data: str
    benchmark: str
    images: int  # of the training data
    command: str
    conditions: str  # machine and versions
    recipe: str  # YAML
    start: Start | None  # None: random weights
    arms: Sequence[Runs]
    sweep: Sequence[Runs]
    lines: Sequence[dict[str, Any]]  # of summary.final_table, arms and sweep
    quality: Sequence[dict[str, Any]]  # empty where the truth is not known
    members: Sequence[int]  # classes of each omission group
    known: bool  # whether omission is known from sidecars, not estimated
    pictures: Sequence[str]  # files
    left_out: Sequence[Arm]  # not run, or not to the end


def write_page(page: Page, folder: Path) -> Path:
    """Write ``folder/README.md``; returns its path."""
    parts = [
        "# Does CoCu help?",
        question(page),
        "## What was seen",
        "\n".join(f"- {sentence}" for sentence in findings(page)),
        _final(page, [runs.arm for runs in page.arms]),
        "![mIoU against steps](curves.png)",
        "![final mIoU by how often captions omit a class](omission.png)",
        "![losses against steps](losses.png)",
    ]
    if page.sweep:
        parts += ["## One setting at a time", _final(page, [runs.arm for runs in page.sweep]), "![sweep](sweep.png)"]
    if page.quality:
        parts += ["## The archives against the truth", _table(page.quality)]
    if page.pictures:
        parts += ["## Pictures", PICTURES, "\n".join(f"- `{name}`" for name in page.pictures)]
    if (folder / DISCUSSION).exists():
        parts += [(folder / DISCUSSION).read_text(encoding="utf-8").strip()]
    parts += ["## What was not shown", "\n".join(f"- {line}" for line in limits(page))]
    parts += ["## How to run it again", f"    {page.command}", NUMBERS, page.conditions]
    parts += ["The recipe, the same for all arms:", f"```yaml\n{page.recipe.strip()}\n```"]
    if page.start and page.start.recipe:
        parts += ["That of what they start from:", f"```yaml\n{page.start.recipe.strip()}\n```"]
    path = folder / "README.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


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


def question(page: Page) -> str:
    """What was asked, and how."""
    counts = ", ".join(f"{count} {name}" for count, name in zip(page.members, NAMES, strict=True) if count)
    source = "pictures where it is visible" if page.known else "archives that hold it (an estimate: no truth is known)"
    steps = page.arms[0].curves[0].steps[-1] if page.arms else 0
    return (
        f"Does training on concept archives make GroupViT segment better than training on captions alone, above all for "
        f"what captions omit? All arms read the same {page.images:,} images of `{page.data}` for {steps:,} steps with the "
        f"recipe below{started(page.start)}; an arm differs in its archives, its sampler or its negatives only. Scores are "
        f"zero-shot segmentation on `{page.benchmark}` at the end of training, in percent; the best of several checkpoints "
        f"is never chosen. Classes are grouped by the share of {source} whose caption does not mention it: {counts}."
    )


def started(start: Start | None) -> str:
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


def findings(page: Page) -> list[str]:
    """Sentences that follow from the numbers."""
    by_name = {line["arm"]: line for line in page.lines}
    runs = {found.arm.name: found for found in page.arms}
    found = []
    best = best_arm(page)
    if BASELINE in by_name:
        for name in dict.fromkeys((COCU, best)):
            if name in runs and name != BASELINE:
                found += comparison(by_name[name], by_name[BASELINE], runs[name], baseline_target(page.arms))
    ranked = sorted((line for line in page.lines if line["arm"] in runs), key=lambda line: -line["miou"])
    found.append(
        "Order of the arms by mIoU: " + ", ".join(f"{line['arm']} {line['miou']:.2f}" for line in ranked) + "."
    )
    spread = max((line["miou max"] - line["miou min"] for line in page.lines), default=0)
    if spread:
        found.append(f"The widest range over the seeds of one arm is {spread:.2f} points: less than that says little.")
    return found


def best_arm(page: Page) -> str | None:
    """The arm with the highest final mIoU among those with several seeds, or else among all; None without any.

    Arms that are curated by the truth do not count.
    """
    lines = {line["arm"]: line for line in page.lines}
    possible = [lines[runs.arm.name] for runs in page.arms if runs.arm.curate != TRUTH]
    return max(possible, key=lambda line: (line["seeds"] > 1, line["miou"]), default={"arm": None})["arm"]


def comparison(one: dict[str, Any], other: dict[str, Any], runs: Runs, target: float | None) -> list[str]:
    """Sentences on the final scores of one arm against the baseline's, whose mIoU is ``target``."""
    found = [_against(one, other)]
    for name in NAMES:
        column = f"miou {name}"
        if np.isfinite([one[column], other[column]]).all():
            found.append(
                f"Classes {name}: {one[column]:.2f} with {one['arm']}, {other[column]:.2f} with {other['arm']}."
            )
    reached = steps_to(runs, target) if target is not None else None
    last = int(runs.curves[0].steps[-1])
    found.append(
        f"{one['arm']} reaches the final mIoU of {other['arm']} ({target:.2f}) "
        + (f"after {reached:,} of {last:,} steps." if reached else f"at no validation within {last:,} steps.")
    )
    return found


def _against(one: dict[str, Any], other: dict[str, Any]) -> str:
    difference = one["miou"] - other["miou"]
    apart = one["miou min"] > other["miou max"] or one["miou max"] < other["miou min"]
    chance = f"over {one['seeds']} and {other['seeds']} seeds the ranges {'do not overlap' if apart else 'overlap'}"
    if min(one["seeds"], other["seeds"]) == 1:
        chance = "one seed does not tell it from chance"
    return (
        f"{one['arm']} ends at mIoU {_range(one, 'miou')}, {other['arm']} at {_range(other, 'miou')}: a difference of "
        f"{difference:+.2f}; {chance}."
    )


def _range(line: dict[str, Any], column: str) -> str:
    if line["seeds"] == 1:
        return f"{line[column]:.2f}"
    return f"{line[column]:.2f} ({line[f'{column} min']:.2f} to {line[f'{column} max']:.2f})"


def limits(page: Page) -> list[str]:
    """What the numbers do not say."""
    single = [line["arm"] for line in page.lines if line["seeds"] == 1]
    found = [
        "Nothing at the paper's scale: a small model on small pictures, minutes of training a run. The order of arms here "
        "need not be the order there.",
        "The recipe was chosen on the caption arm; another may suit another arm better.",
    ]
    if single:
        found.append(f"How far seeds move the arms with one run: {', '.join(single)}.")
    if page.left_out:
        found.append("Not run, or not to the end: " + ", ".join(arm.name for arm in page.left_out) + ".")
    if not any(runs.arm.curate == TRUTH for runs in page.arms):
        found.append("The ceiling: there is no arm with the truth.")
    return found


def _final(page: Page, arms: Sequence[Arm]) -> str:
    titles = {arm.name: arm.title for arm in arms}
    rows = []
    for line in page.lines:
        if line["arm"] in titles:
            row = {
                "arm": line["arm"],
                "what": titles[line["arm"]],
                "seeds": line["seeds"],
                "mIoU": _range(line, "miou"),
            }
            row["pixel accuracy"] = _range(line, "pixel_accuracy")
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
