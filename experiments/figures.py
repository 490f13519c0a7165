"""The tables as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np

from experiments.omission import NAMES, by_group
from experiments.scores import LOSSES
from experiments.summary import Runs

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DPI = 110


def draw_curves(found: Sequence[Runs], group: np.ndarray, path: Path) -> None:
    """mIoU of all classes and of each group of classes against steps: the mean over seeds, and their range."""
    panels = [("all classes", None), *((f"classes {name}", number) for number, name in enumerate(NAMES))]
    panels = [(title, number) for title, number in panels if number is None or (group == number).any()]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 4), layout="constrained")
    for axis, (title, number) in zip(np.atleast_1d(axes), panels, strict=True):
        for index, runs in enumerate(found):
            curves = np.stack(
                [curve.miou if number is None else by_group(curve.iou, group)[:, number] for curve in runs.curves]
            )
            _band(axis, runs.curves[0].steps, curves, runs.arm.name, index)
        axis.set(title=title, xlabel="steps", ylabel="mIoU, %", ylim=0)
    _legend(figure, np.atleast_1d(axes)[0])
    _save(figure, path)


def draw_losses(found: Sequence[Runs], path: Path) -> None:
    """The losses and the retrieval accuracy in the batch against steps."""
    figure, axes = plt.subplots(1, len(LOSSES), figsize=(4.2 * len(LOSSES), 4), layout="constrained")
    for column, (axis, name) in enumerate(zip(axes, LOSSES, strict=True)):
        for index, runs in enumerate(found):
            _band(
                axis, runs.curves[0].steps, np.stack([c.losses[:, column] for c in runs.curves]), runs.arm.name, index
            )
        axis.set(title=name.removeprefix("train/").replace("_", " "), xlabel="steps")
    _legend(figure, axes[0])
    _save(figure, path)


def _legend(figure: Any, axis: Any) -> None:
    """The names of all lines beside the panels: with many arms they would hide what they name."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8)


def _band(axis: Any, steps: np.ndarray, curves: np.ndarray, label: str, index: int) -> None:
    colour, dash = f"C{index % 10}", ("-", "--", ":")[index // 10 % 3]
    label = f"{label} ({len(curves)})" if len(curves) > 1 else label
    axis.plot(steps, curves.mean(0), color=colour, linestyle=dash, label=label)
    if len(curves) > 1:
        axis.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.15, linewidth=0)


def draw_groups(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Final mIoU of each arm, for all classes and for each group of classes; whiskers: least and greatest over seeds."""
    columns = ["miou", *(f"miou {name}" for name in NAMES)]
    columns = [column for column in columns if np.isfinite([line[column] for line in lines]).any()]
    figure, axis = plt.subplots(figsize=(max(7, 1.2 * len(lines)), 4), layout="constrained")
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        values, least, most = (np.array([line[column + end] for line in lines]) for end in ("", " min", " max"))
        places = np.arange(len(lines)) + number * width
        label = column.replace("miou ", "").replace("miou", "all classes")
        axis.bar(places, values, width, yerr=[values - least, most - values], capsize=2, label=label)
    axis.set_xticks(
        np.arange(len(lines)) + (len(columns) - 1) * width / 2,
        ["\n".join(wrap(line["arm"].replace("-", "- "), 12)).replace("- ", "-") for line in lines],
    )
    axis.set_ylabel("final mIoU, %")
    axis.legend(fontsize=8)
    _save(figure, path)


def draw_sweep(found: Sequence[Runs], middle: Runs, path: Path) -> None:
    """Final mIoU of every arm of the sweep, with a gap between settings; ``middle``: the arm that they vary."""
    settings = list(dict.fromkeys(runs.arm.group for runs in found))
    ordered = sorted(found, key=lambda runs: settings.index(runs.arm.group))
    places = [number + 0.6 * settings.index(runs.arm.group) for number, runs in enumerate(ordered)]
    score = [curve.miou[-1] for curve in middle.curves]
    figure, axis = plt.subplots(figsize=(max(7, 1.1 * len(ordered)), 4), layout="constrained")
    axis.bar(places, [np.mean([curve.miou[-1] for curve in runs.curves]) for runs in ordered], 0.7)
    axis.axhspan(min(score), max(score), color="C1", alpha=0.2)
    axis.axhline(np.mean(score), color="C1", label=f"{middle.arm.name}, mean and range")
    axis.set_xticks(places, ["\n".join(wrap(runs.arm.title, 14)) for runs in ordered])
    axis.set_ylabel("final mIoU, %")
    axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
