"""The tables as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np

from experiments.omission import NAMES, by_group
from experiments.scores import LOSSES, Curve
from experiments.summary import ArmRuns
from experiments.untrained import Reading

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DPI = 110
PANEL = (4.2, 4.0)  # inches


def draw_curves(arms: Sequence[ArmRuns], group: np.ndarray, path: Path, untrained: Reading | None = None) -> None:
    """mIoU of all classes and of each group of classes against steps: the mean over seeds, and their range; a level line
    for the encoder untrained."""
    present = [number for number in range(len(NAMES)) if (group == number).any()]
    figure, axes = _panels(1 + len(present))
    _draw_panel(axes[0], arms, [[curve.miou for curve in runs.curves] for runs in arms])
    axes[0].set(title="all classes", xlabel="steps", ylabel="mIoU, %")
    for axis, number in zip(axes[1:], present, strict=True):
        _draw_panel(axis, arms, [[by_group(curve.iou, group)[:, number] for curve in runs.curves] for runs in arms])
        axis.set(title=f"classes {NAMES[number]}", xlabel="steps", ylabel="mIoU, %")
    if untrained:
        levels = [untrained.miou, *by_group(untrained.iou, group)[present]]
        for axis, level in zip(axes, levels, strict=True):
            axis.axhline(level, color="0.4", linestyle="-.", label="untrained encoder")
            axis.margins(y=0.1)  # room around the line, which may be above or below all others
    _legend(figure, axes[0])
    _save(figure, path)


def draw_losses(arms: Sequence[ArmRuns], path: Path) -> None:
    """The losses and the retrieval accuracy in the batch against steps."""
    figure, axes = _panels(len(LOSSES))
    for column, (axis, name) in enumerate(zip(axes, LOSSES, strict=True)):
        _draw_panel(axis, arms, [[_losses(curve, column) for curve in runs.curves] for runs in arms])
        axis.set(title=name.removeprefix("train/").replace("_", " "), xlabel="steps")
    _legend(figure, axes[0])
    _save(figure, path)


def _losses(curve: Curve, column: int) -> np.ndarray:
    return curve.losses[:, column]


def draw_groups(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Final mIoU of each arm, for all classes and for each group of classes; whiskers: least and greatest over seeds, where
    there are several."""
    columns = ["miou", *(f"miou {name}" for name in NAMES)]
    columns = [column for column in columns if np.isfinite([line[column] for line in lines]).any()]
    figure, axis = plt.subplots(figsize=(max(7, 1.2 * len(lines)), 4), layout="constrained")
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        values, least, most = (np.array([line[column + end] for line in lines]) for end in ("", " min", " max"))
        positions = np.arange(len(lines)) + number * width
        label = column.replace("miou ", "").replace("miou", "all classes")
        several = np.array([line["seeds"] > 1 for line in lines])
        whiskers = np.where(several, [values - least, most - values], np.nan)
        axis.bar(positions, values, width, yerr=whiskers, capsize=2, label=label)

    names = ["\n".join(wrap(line["arm"].replace("-", "- "), 12)).replace("- ", "-") for line in lines]
    axis.set_xticks(np.arange(len(lines)) + (len(columns) - 1) * width / 2, names)
    axis.set_ylabel("final mIoU, %")
    _legend(figure, axis)
    _save(figure, path)


def draw_sweep(sweep: Sequence[ArmRuns], middle: ArmRuns, path: Path) -> None:
    """Final mIoU of every arm of the sweep, with a gap between settings; ``middle``: the arm that they vary."""
    settings = list(dict.fromkeys(runs.arm.group for runs in sweep))
    ordered = sorted(sweep, key=lambda runs: settings.index(runs.arm.group))
    positions = [number + 0.6 * settings.index(runs.arm.group) for number, runs in enumerate(ordered)]
    scores = [np.mean([curve.miou[-1] for curve in runs.curves]) for runs in ordered]
    figure, axis = plt.subplots(figsize=(max(7, 1.1 * len(ordered)), 4), layout="constrained")
    axis.bar(positions, scores, 0.7)

    middle_scores = [curve.miou[-1] for curve in middle.curves]
    several = len(middle_scores) > 1
    if several:
        axis.axhspan(min(middle_scores), max(middle_scores), color="C1", alpha=0.2)
    label = f"{middle.arm.name}, mean and range" if several else middle.arm.name
    axis.axhline(float(np.mean(middle_scores)), color="C1", label=label)
    axis.set_xticks(positions, ["\n".join(wrap(runs.arm.title, 14)) for runs in ordered])
    axis.set_ylabel("final mIoU, %")
    _legend(figure, axis)
    _save(figure, path)


# --- parts --------------------------------------------------------------------------------------------------------------


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """A figure of panels side by side."""
    figure, axes = plt.subplots(1, count, figsize=(PANEL[0] * count, PANEL[1]), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def _draw_panel(axis: Axes, arms: Sequence[ArmRuns], values: Sequence[Sequence[np.ndarray]]) -> None:
    """A line an arm: the mean of its values (V,) of each seed against steps, and their range."""
    for index, (runs, curves) in enumerate(zip(arms, values, strict=True)):
        stacked = np.stack(curves)  # (S, V)
        steps = runs.curves[0].steps
        colour = f"C{index % 10}"
        dash = ("-", "--", ":")[index // 10 % 3]
        label = f"{runs.arm.name} ({len(stacked)})" if len(stacked) > 1 else runs.arm.name
        axis.plot(steps, stacked.mean(0), color=colour, linestyle=dash, label=label)
        if len(stacked) > 1:
            axis.fill_between(steps, stacked.min(0), stacked.max(0), color=colour, alpha=0.15, linewidth=0)


def _legend(figure: Figure, axis: Axes) -> None:
    """The names of all lines, or bars, beside the panels: with many they would hide what they name."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
