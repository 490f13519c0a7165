"""Sliding windows: where they are, and joining their scores without ever holding classes x pixels (docs/method.md §6).

A window gives each pixel one of G groups, and each group a score for every class. Pixels that have the same groups in all
windows that cover them form a *region* and share their scores, so that an image is a map of region ids and a small table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 1 << 22  # numbers in a temporary tensor


class Box(NamedTuple):
    """A window: rows top..bottom and columns left..right, without the last."""

    top: int
    left: int
    bottom: int
    right: int


class Regions(NamedTuple):
    """The stitched scores of an image: pixel (y, x) has the scores ``scores[ids[y, x]]``."""

    ids: Tensor  # (H, W) int64
    scores: Tensor  # (R, C) float32


# --- sizes and positions ------------------------------------------------------------------------------------------------


def resized(height: int, width: int, short: int, long_max: int, smallest: int = 1) -> tuple[int, int]:
    """Height and width with the ratio kept: the short side ``short``, unless the long one would exceed ``long_max``.

    No side gets shorter than ``smallest``.

    >>> resized(300, 500, short=448, long_max=2048), resized(100, 1000, short=448, long_max=2048)
    ((448, 747), (205, 2048))
    """
    scale = min(long_max / max(height, width), short / min(height, width))
    return max(smallest, int(height * scale + 0.5)), max(smallest, int(width * scale + 0.5))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``image`` (C, H, W) resized bilinearly, without the smoothing of antialiasing, as the published results were."""
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along one axis; the last is shifted back inside. One at 0 when ``length`` is within the crop.

    >>> starts(100, crop=64, stride=32)
    [0, 32, 36]
    """
    count = math.ceil(max(length - crop, 0) / stride) + 1
    return [max(0, min(index * stride, length - crop)) for index in range(count)]


def boxes(height: int, width: int, crop: int, stride: int) -> list[Box]:
    """The windows of an image, all of one size, row by row."""
    rows = starts(height, crop, stride)
    columns = starts(width, crop, stride)
    tall = min(crop, height)
    wide = min(crop, width)
    return [Box(top, left, top + tall, left + wide) for top in rows for left in columns]


# --- joining ------------------------------------------------------------------------------------------------------------


def stitch(windows: Sequence[Box], groups: Sequence[Tensor], scores: Sequence[Tensor]) -> Regions:
    """The mean, over the windows that cover a pixel, of the scores of its group.

    ``windows`` cover the image; ``groups``: the group of each pixel, (h, w) uint8 a window; ``scores``: (G, C) a window.
    """
    height = max(box.bottom for box in windows)
    width = max(box.right for box in windows)
    ids = torch.empty((height, width), dtype=torch.int64, device=groups[0].device)
    tables: list[Tensor] = []
    count = 0
    for cell, covering in _cells(windows):
        regions = torch.zeros((cell.bottom - cell.top, cell.right - cell.left), dtype=torch.int64, device=ids.device)
        table = torch.zeros((1, scores[0].shape[1]), dtype=scores[0].dtype, device=scores[0].device)
        for number in covering:
            top, left = windows[number].top, windows[number].left
            group = groups[number][cell.top - top : cell.bottom - top, cell.left - left : cell.right - left].long()
            regions, table = refine(regions, table, group, scores[number])

        ids[cell.top : cell.bottom, cell.left : cell.right] = regions + count
        tables.append(table / len(covering))
        count += len(table)
    return Regions(ids, torch.cat(tables))


def _cells(windows: Sequence[Box]) -> list[tuple[Box, list[int]]]:
    """The rectangles between the edges of windows, each with the numbers of the windows that cover it."""
    rows = sorted({edge for box in windows for edge in (box.top, box.bottom)})
    columns = sorted({edge for box in windows for edge in (box.left, box.right)})
    cells = []
    for top, bottom in pairwise(rows):
        row = [number for number, box in enumerate(windows) if box.top <= top and bottom <= box.bottom]
        for left, right in pairwise(columns):
            covering = [number for number in row if windows[number].left <= left and right <= windows[number].right]
            cells.append((Box(top, left, bottom, right), covering))
    return cells


def refine(regions: Tensor, table: Tensor, group: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``regions`` (h, w), rows of ``table`` (R, C), by one more window's ``group`` (h, w); add its ``scores`` (G, C).

    Only combinations that occur get a row, so the table cannot have more rows than the cell has pixels.
    """
    count = len(scores)
    combined = regions * count + group  # (h, w) in 0 .. R·G - 1
    occurs = torch.bincount(combined.flatten(), minlength=len(table) * count) > 0  # (R·G,)
    kept = occurs.nonzero()[:, 0]  # (R',)
    return (occurs.cumsum(0) - 1)[combined], table[kept // count] + scores[kept % count]  # (h, w), (R', C)


def decide(regions: Regions, size: tuple[int, int]) -> Tensor:
    """The class (H, W), int64, with the largest score after the scores were resized bilinearly to ``size``.

    Scores are interpolated only where the four neighbours differ: elsewhere interpolation changes nothing.
    """
    best = regions.scores.argmax(1)  # (R,)
    if regions.ids.shape == size:
        return best[regions.ids]

    top, bottom, down = neighbours(regions.ids.shape[0], size[0], regions.ids.device)  # 3 x (H,)
    left, right, across = neighbours(regions.ids.shape[1], size[1], regions.ids.device)  # 3 x (W,)
    upper, lower = regions.ids[top], regions.ids[bottom]  # (H, w)
    corners = [row[:, column] for row in (upper, lower) for column in (left, right)]  # 4 x (H, W)
    labels = best[corners[0]]  # (H, W)

    mixed = (corners[0] != corners[1]) | (corners[0] != corners[2]) | (corners[0] != corners[3])
    y, x = mixed.nonzero().unbind(1)  # (M,)
    shares = [v * h for v in (1 - down[y], down[y]) for h in (1 - across[x], across[x])]  # 4 x (M,)
    ids = [corner[y, x] for corner in corners]  # 4 x (M,)
    step = max(1, CHUNK // regions.scores.shape[1])
    for start in range(0, len(y), step):
        chunk = slice(start, start + step)
        total = shares[0][chunk, None] * regions.scores[ids[0][chunk]]  # (m, C)
        for share, corner in zip(shares[1:], ids[1:], strict=True):
            total += share[chunk, None] * regions.scores[corner[chunk]]
        labels[y[chunk], x[chunk]] = total.argmax(1)
    return labels


def neighbours(length: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two of ``length`` positions that bilinear resizing mixes for each of ``target`` ones (int64), and the second's
    share (float32)."""
    centre = (torch.arange(target, dtype=torch.float64, device=device) + 0.5) * (length / target) - 0.5
    centre = centre.clamp(min=0)
    first = centre.floor().long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), (centre - first).float()


def votes(windows: Sequence[Box], groups: Sequence[Tensor], count: int) -> Tensor:
    """The group (H, W), uint8, that most of a pixel's windows give it: for pictures."""
    height = max(box.bottom for box in windows)
    width = max(box.right for box in windows)
    ballot = torch.zeros((count, height, width), dtype=torch.int16, device=groups[0].device)  # windows may be many
    for box, group in zip(windows, groups, strict=True):
        area = ballot[:, box.top : box.bottom, box.left : box.right]
        area += torch.arange(count, dtype=torch.uint8, device=group.device)[:, None, None] == group
    return ballot.argmax(0).to(torch.uint8)
