"""One confusion matrix over a whole data set, and what follows from it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Scores(NamedTuple):
    """In percent, as the papers print them."""

    miou: float  # nan when no class occurs
    pixel_accuracy: float
    iou: list[float]  # of every class; nan where it occurs neither in the labels nor in the predictions


def confusion(labels: Tensor, predictions: Tensor, classes: int, ignore: int | None) -> Tensor:
    """Pixel counts (C, C), int64, of labels (rows) against predictions (columns), on their device.

    Integers, so that sums are exact in any order. ``labels`` and ``predictions`` have one shape; pixels whose label is
    ``ignore`` do not count; every other value must be in 0..C-1.
    """
    labels, predictions = labels.flatten().long(), predictions.flatten().long()
    if ignore is not None:
        kept = labels != ignore
        labels, predictions = labels[kept], predictions[kept]
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


def sum_over_ranks(matrix: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of every rank's matrix, on each of them; the matrix itself without a process group."""
    if group is None:
        return matrix
    matrix = matrix.clone()
    dist.all_reduce(matrix, group=group)
    return matrix


def scores(matrix: Tensor) -> Scores:
    """mIoU, pixel accuracy and per-class IoU of a confusion matrix (C, C).

    A class occurs when it has a pixel in the labels or in the predictions; the others are left out of the mean.
    """
    counts = matrix.double().cpu()
    hit = counts.diagonal()  # (C,)
    union = counts.sum(0) + counts.sum(1) - hit  # (C,)
    iou = 100 * hit / union  # 0 / 0 = nan
    total = counts.sum()
    return Scores(iou.nanmean().item(), (100 * hit.sum() / total).item(), iou.tolist())
