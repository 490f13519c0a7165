"""Tables over runs: every curve, the final scores of every arm, and the steps that an arm saves."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.arms import BASELINE, Arm
from experiments.omission import NAMES, by_group
from experiments.scores import LOSSES, Curve

COLUMNS = ("miou", "pixel_accuracy", *(f"miou {name}" for name in NAMES))  # of final scores


@dataclass(frozen=True)
class ArmRuns:
    """The finished runs of an arm, one curve for each seed."""

    arm: Arm
    curves: list[Curve]

    def final(self, group: np.ndarray) -> np.ndarray:
        """Final scores (S, 5) of S seeds: mIoU, pixel accuracy, mIoU of the three groups of classes."""
        ends = [
            np.concatenate([[curve.miou[-1], curve.pixel_accuracy[-1]], by_group(curve.iou[-1], group)])
            for curve in self.curves
        ]
        return np.stack(ends)

    def mean_miou(self) -> tuple[np.ndarray, np.ndarray]:
        """Steps (V,) and the mean over seeds of mIoU at each (V,)."""
        return self.curves[0].steps, np.mean([curve.miou for curve in self.curves], 0)

    @property
    def last_step(self) -> int:
        """The step at which the runs end."""
        return int(self.curves[0].steps[-1])


def steps_to(runs: ArmRuns, target: float) -> int | None:
    """The first step at which the mean mIoU reaches the target; None if it never does."""
    steps, miou = runs.mean_miou()
    reached = np.flatnonzero(miou >= target)
    return int(steps[reached[0]]) if len(reached) else None


def baseline_target(arms: Sequence[ArmRuns]) -> float | None:
    """The final mIoU of the baseline, the mean over its seeds; None where it was not run."""
    baseline = next((runs for runs in arms if runs.arm.name == BASELINE), None)
    return None if baseline is None else float(baseline.mean_miou()[1][-1])


# --- tables -------------------------------------------------------------------------------------------------------------


def final_table(arms: Sequence[ArmRuns], group: np.ndarray) -> list[dict[str, Any]]:
    """One line an arm: mean, least and greatest final scores over seeds, and the steps to the baseline's final mIoU."""
    target = baseline_target(arms)
    lines = []
    for runs in arms:
        final = runs.final(group)  # (S, 5)
        line: dict[str, Any] = {"arm": runs.arm.name, "seeds": len(final), "steps": runs.last_step}
        for column, values in zip(COLUMNS, final.T, strict=True):
            line |= {column: values.mean(), f"{column} min": values.min(), f"{column} max": values.max()}
        line["steps to baseline"] = None if target is None else steps_to(runs, target)
        lines.append(line)
    return lines


def reference(name: str, pixel_accuracy: float, iou: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """A line with the columns of :func:`final_table` for what is no arm and has neither seeds nor steps; iou (C,)."""
    line: dict[str, Any] = {"arm": name, "seeds": None, "steps": 0}
    for column, value in zip(COLUMNS, [np.nanmean(iou), pixel_accuracy, *by_group(iou, group)], strict=True):
        line |= {column: value, f"{column} min": value, f"{column} max": value}
    return line | {"steps to baseline": None}


def curve_table(arms: Sequence[ArmRuns], group: np.ndarray) -> list[dict[str, Any]]:
    """One line for every validation of every run."""
    return [
        line
        for runs in arms
        for seed, curve in enumerate(runs.curves)
        for line in _curve_lines(runs.arm.name, seed, curve, group)
    ]


def _curve_lines(arm: str, seed: int, curve: Curve, group: np.ndarray) -> list[dict[str, Any]]:
    parts = by_group(curve.iou, group)  # (V, 3)
    lines = []
    for number, step in enumerate(curve.steps.tolist()):
        line = {"arm": arm, "seed": seed, "step": step, "miou": curve.miou[number]}
        line["pixel_accuracy"] = curve.pixel_accuracy[number]
        line |= {f"miou {name}": value for name, value in zip(NAMES, parts[number], strict=True)}
        lines.append(line | dict(zip(LOSSES, curve.losses[number], strict=True)))
    return lines


def class_table(arms: Sequence[ArmRuns]) -> list[dict[str, float]]:
    """One line a class: its final IoU in every arm, the mean over seeds."""
    means = {runs.arm.name: np.mean([curve.iou[-1] for curve in runs.curves], 0) for runs in arms}
    return [{arm: iou[number] for arm, iou in means.items()} for number in range(arms[0].curves[0].iou.shape[1])]


def write_csv(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Write lines with four digits; nothing for None and nan."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float | np.floating) and np.isnan(value)):
        return ""
    return f"{value:.4f}" if isinstance(value, float | np.floating) else value
