"""Sentences that follow from the numbers of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.arms import BASELINE, COCU, TRUTH
from experiments.omission import NAMES
from experiments.summary import ArmRuns, baseline_target, steps_to
from experiments.untrained import Reading


def findings(arms: Sequence[ArmRuns], lines: Sequence[dict[str, Any]], method: str = COCU) -> list[str]:
    """What was seen: the method and the best arm against the baseline, the order of the arms, how far seeds move them.

    lines: of :func:`experiments.summary.final_table`, for the arms and perhaps others. method: the name of its arm.
    """
    by_name = {line["arm"]: line for line in lines}
    runs = {arm.arm.name: arm for arm in arms}
    target = baseline_target(arms)
    sentences = []
    for name in dict.fromkeys((method, best_arm(arms, lines))):
        if target is not None and name in runs and name != BASELINE:
            sentences += against_baseline(by_name[name], by_name[BASELINE], runs[name], target)

    ranked = sorted((line for line in lines if line["arm"] in runs), key=lambda line: -line["miou"])
    order = ", ".join(f"{line['arm']} {line['miou']:.2f}" for line in ranked)
    sentences.append(f"Order of the arms by mIoU: {order}.")
    spread = max((line["miou max"] - line["miou min"] for line in lines), default=0)
    if spread:
        sentences.append(
            f"The widest range over the seeds of one arm is {spread:.2f} points: less than that says little."
        )
    return sentences


def best_arm(arms: Sequence[ArmRuns], lines: Sequence[dict[str, Any]]) -> str | None:
    """The arm with the highest final mIoU among those with several seeds, or else among all; None without any.

    Arms that are curated by the truth are left out.
    """
    by_name = {line["arm"]: line for line in lines}
    possible = [by_name[runs.arm.name] for runs in arms if runs.arm.curate != TRUTH]
    if not possible:
        return None
    best = max(possible, key=lambda line: (line["seeds"] > 1, line["miou"]))
    return str(best["arm"])


def against_baseline(line: dict[str, Any], baseline: dict[str, Any], runs: ArmRuns, target: float) -> list[str]:
    """Sentences on the final scores of one arm against the baseline's, whose mIoU is ``target``."""
    arm, other = line["arm"], baseline["arm"]
    sentences = [_difference(line, baseline)]
    for name in NAMES:
        column = f"miou {name}"
        if np.isfinite([line[column], baseline[column]]).all():
            gain = f"{line[column] - baseline[column]:+.2f}"
            sentences.append(
                f"Classes {name}: {line[column]:.2f} with {arm}, {baseline[column]:.2f} with {other}: {gain}."
            )

    reached = steps_to(runs, target)
    last = runs.last_step
    when = f"after {reached:,} of {last:,} steps." if reached else f"at no validation within {last:,} steps."
    sentences.append(f"{arm} reaches the final mIoU of {other} ({target:.2f}) {when}")
    return sentences


def _difference(line: dict[str, Any], baseline: dict[str, Any]) -> str:
    seeds = line["seeds"], baseline["seeds"]
    apart = line["miou min"] > baseline["miou max"] or line["miou max"] < baseline["miou min"]
    if min(seeds) == 1:
        chance = "one seed does not tell it from chance"
    else:
        chance = f"over {seeds[0]} and {seeds[1]} seeds the ranges {'do not overlap' if apart else 'overlap'}"
    return (
        f"{line['arm']} ends at mIoU {score_range(line, 'miou')}, {baseline['arm']} at {score_range(baseline, 'miou')}: "
        f"a difference of {line['miou'] - baseline['miou']:+.2f}; {chance}."
    )


def score_range(line: dict[str, Any], column: str) -> str:
    """A score for people: with several seeds, the mean and the range.

    >>> score_range({"seeds": 2, "miou": 3.0, "miou min": 2.5, "miou max": 3.5}, "miou")
    '3.00 (2.50 to 3.50)'
    """
    if line["seeds"] in (None, 1):
        return f"{line[column]:.2f}"
    return f"{line[column]:.2f} ({line[f'{column} min']:.2f} to {line[f'{column} max']:.2f})"


def beside_untrained(reading: Reading, families: Sequence[tuple[str, Sequence[dict[str, Any]]]]) -> str:
    """The first sentence of the page: which trained arms the encoder beats as it is.

    families: of each the title and the final scores of its arms.
    """
    compared = "; ".join(_beaten(reading, title, lines) for title, lines in families if lines)
    return (
        f"**Untrained, the encoder behind the archives (`{reading.name}`) has mIoU {reading.miou:.2f} and "
        f"{reading.pixel_accuracy:.2f}% of the pixels: {compared}.**"
    )


def _beaten(reading: Reading, title: str, lines: Sequence[dict[str, Any]]) -> str:
    names = [line["arm"] for line in lines if line["miou"] < reading.miou]
    ahead = [line["arm"] for line in lines if line["miou"] >= reading.miou]
    if not names:
        return f"less mIoU than every arm of *{title}*"
    if not ahead:
        return f"more mIoU than every arm of *{title}*"
    return f"more mIoU than these arms of *{title}*: {', '.join(names)}, and less than {', '.join(ahead)}"


def limits(arms: Sequence[ArmRuns], lines: Sequence[dict[str, Any]], chosen: str = BASELINE) -> list[str]:
    """What the numbers of a family do not say; ``chosen``: the arm on which its recipe was chosen."""
    sentences = [f"The recipe was chosen on the arm {chosen}; another may suit another arm better."]
    single = [line["arm"] for line in lines if line["seeds"] == 1]
    if single:
        sentences.append(f"How far seeds move the arms with one run: {', '.join(single)}.")
    if not any(runs.arm.curate == TRUTH for runs in arms):
        sentences.append("The ceiling: there is no arm with the truth.")
    return sentences
