"""What a run measured: the scores of every validation, class by class, and the losses between them."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from lightning import Callback, LightningModule, Trainer

from evaluation.metric import SegmentationScores
from training.logs import append_whole

FILE = "scores.csv"
LOSSES = ("train/caption_loss", "train/prompt_loss", "train/retrieval_accuracy")


class ClassScores(Callback):
    """Appends a line to ``scores.csv`` of the run's folder after every validation: step, pixel accuracy, IoU by class."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the line."""
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        scores = cast(SegmentationScores, pl_module.scores)
        path = Path(trainer.default_root_dir) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        line = ",".join(map(str, [trainer.global_step, scores.pixel_accuracy, *scores.iou]))
        append_whole(str(path), f"{line}\r\n".encode())


@dataclass(frozen=True)
class Curve:
    """The scores of one run at V validations, in percent."""

    steps: np.ndarray  # (V,) int
    pixel_accuracy: np.ndarray  # (V,)
    iou: np.ndarray  # (V, C)
    losses: np.ndarray  # (V, 3): means of LOSSES since the validation before

    @property
    def miou(self) -> np.ndarray:
        """(V,), over the classes that occur."""
        return np.nanmean(self.iou, 1)


def read_curve(folder: Path) -> Curve:
    """The curve of a run. Of two lines for one step, as an interrupted run leaves them, the later is read."""
    with (folder / FILE).open() as stream:
        lines = {int(row[0]): [float(value) for value in row[1:]] for row in csv.reader(stream)}
    steps = np.array(sorted(lines))
    values = np.array([lines[step] for step in steps])  # (V, 1 + C)
    return Curve(steps, values[:, 0], values[:, 1:], mean_losses(folder, steps))


def mean_losses(folder: Path, steps: np.ndarray) -> np.ndarray:
    """Means (V, 3) of what was logged up to each step and after the one before; nan where nothing was."""
    logged: dict[int, list[float]] = {}
    for path in sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        with path.open() as stream:
            logged |= {
                int(row["step"]): [float(row[name]) for name in LOSSES]
                for row in csv.DictReader(stream)
                if row.get(LOSSES[0]) and row.get(LOSSES[1])
            }

    values = np.array(list(logged.values())).reshape(-1, len(LOSSES))  # (S, 3)
    intervals = np.searchsorted(steps, np.array(list(logged)))  # (S,); a step is logged before it is counted
    return np.array([_mean(values[intervals == number]) for number in range(len(steps))])


def _mean(rows: np.ndarray) -> np.ndarray:
    return rows.mean(0) if len(rows) else np.full(len(LOSSES), np.nan)
