"""One confusion matrix over a whole data set, and what follows from it (docs/method.md §6)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class SegmentationScores(NamedTuple):
    """In percent, as the papers print them."""

    miou: float  # nan when no class occurs
    pixel_accuracy: float
    iou: list[float]  # of every class; nan where it occurs neither in the labels nor in the predictions


def confusion(labels: Tensor, predictions: Tensor, classes: int, ignore: int | None) -> Tensor:
    """Pixel counts (C, C), int64, of labels (rows) against predictions (columns), on their device.

    Integers, so that sums are exact in any order. ``labels`` and ``predictions`` have one shape; pixels whose label is
    ``ignore`` are left out; every other value must be in 0..C-1.

    >>> confusion(torch.tensor([0, 0, 1, 255]), torch.tensor([0, 1, 1, 0]), 2, ignore=255).tolist()
    [[1, 1], [0, 1]]
    """
    labels = labels.flatten().long()  # (P,)
    pairs = labels * classes + predictions.flatten().long() + 1  # (P,)
    if ignore is not None:  # counted at 0, since selecting the others would make the host wait for a GPU
        pairs = pairs.masked_fill(labels == ignore, 0)
    return torch.bincount(pairs, minlength=classes**2 + 1)[1:].view(classes, classes)


def sum_over_ranks(matrix: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum of every rank's matrix, on each of them; the matrix itself without a process group."""
    if group is None:
        return matrix
    matrix = matrix.clone()
    dist.all_reduce(matrix, group=group)
    return matrix


def scores(matrix: Tensor) -> SegmentationScores:
    """mIoU, pixel accuracy and per-class IoU of a confusion matrix (C, C).

    A class is included in the mean if it has a pixel in the labels or in the predictions.

    >>> [round(iou, 1) for iou in scores(torch.tensor([[3, 0, 0], [1, 2, 0], [0, 0, 0]])).iou]
    [75.0, 66.7, nan]
    """
    counts = matrix.double()  # (C, C)
    hit = counts.diagonal()  # (C,)
    union = counts.sum(0) + counts.sum(1) - hit  # (C,)
    iou = 100 * hit / union  # (C,); 0 / 0 = nan
    accuracy = 100 * hit.sum() / counts.sum()
    return SegmentationScores(iou.nanmean().item(), accuracy.item(), iou.tolist())
