"""Sliding windows: sizes and places, and putting their scores together without ever holding classes x pixels.

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


def resized(height: int, width: int, short: int, long_max: int, least: int = 1) -> tuple[int, int]:
    """Height and width with the ratio kept: the short side ``short``, unless the long one would exceed ``long_max``.

    No side gets shorter than ``least``.
    """
    scale = min(long_max / max(height, width), short / min(height, width))
    return max(least, int(height * scale + 0.5)), max(least, int(width * scale + 0.5))


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """``image`` (C, H, W) resized bilinearly, without the smoothing of antialiasing, as the published results were."""
    if image.shape[1:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def starts(length: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along one axis; the last is shifted back inside. One at 0 when ``length`` is within the crop."""
    count = math.ceil(max(length - crop, 0) / stride) + 1
    return [max(0, min(index * stride, length - crop)) for index in range(count)]


def boxes(height: int, width: int, crop: int, stride: int) -> list[Box]:
    """The windows of an image, all of one size, row by row."""
    rows, columns = starts(height, crop, stride), starts(width, crop, stride)
    tall, wide = min(crop, height), min(crop, width)
    return [Box(top, left, top + tall, left + wide) for top in rows for left in columns]


def stitch(places: Sequence[Box], groups: Sequence[Tensor], scores: Sequence[Tensor]) -> Regions:
    """The mean, over the windows that cover a pixel, of the scores of its group.

    ``places`` cover the image; ``groups``: the group of each pixel, (h, w) uint8 a window; ``scores``: (G, C) a window.
    """
    height, width = max(box.bottom for box in places), max(box.right for box in places)
    ids = torch.empty((height, width), dtype=torch.int64, device=groups[0].device)
    tables, count = [], 0
    rows = sorted({edge for box in places for edge in (box.top, box.bottom)})
    columns = sorted({edge for box in places for edge in (box.left, box.right)})
    for top, bottom in pairwise(rows):
        across = [number for number, box in enumerate(places) if box.top <= top and bottom <= box.bottom]
        for left, right in pairwise(columns):
            # Within this cell the covering windows are the same everywhere.
            covering = [number for number in across if places[number].left <= left and right <= places[number].right]
            cell, table = None, None
            for number in covering:
                box = places[number]
                group = groups[number][top - box.top : bottom - box.top, left - box.left : right - box.left].long()
                cell, table = refine(cell, table, group, scores[number])
            ids[top:bottom, left:right] = cell + count
            tables.append(table / len(covering))
            count += len(table)
    return Regions(ids, torch.cat(tables))


def refine(cell: Tensor | None, table: Tensor | None, group: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Split regions ``cell`` (h, w), of ``table`` (R, C), by one more window's ``group`` (h, w); add its ``scores`` (G, C.

    Only combinations that occur get a row, so the table cannot have more rows than the cell has pixels.
    """
    per = len(scores)
    both = group if cell is None else cell * per + group  # (h, w) in 0 .. R·G - 1
    rows = per if table is None else len(table) * per
    occurs = torch.bincount(both.flatten(), minlength=rows) > 0  # (R·G,)
    kept = occurs.nonzero()[:, 0]  # (R',)
    added = scores[kept % per] if table is None else table[kept // per] + scores[kept % per]  # (R', C)
    return (occurs.cumsum(0) - 1)[both], added


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
    chosen = [corner[y, x] for corner in corners]  # 4 x (M,)
    step = max(1, CHUNK // regions.scores.shape[1])
    for start in range(0, len(y), step):
        part = slice(start, start + step)
        total = sum(
            share[part, None] * regions.scores[corner[part]] for share, corner in zip(shares, chosen, strict=True)
        )  # (m, C)
        labels[y[part], x[part]] = total.argmax(1)
    return labels


def neighbours(length: int, target: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of ``target`` places the two of ``length`` that bilinear resizing mixes (int64), and the second's share."""
    centre = (torch.arange(target, dtype=torch.float64, device=device) + 0.5) * (length / target) - 0.5
    centre = centre.clamp(min=0)
    first = centre.floor().long().clamp(max=length - 1)
    return first, (first + 1).clamp(max=length - 1), (centre - first).float()


def votes(places: Sequence[Box], groups: Sequence[Tensor], count: int) -> Tensor:
    """The group (H, W), uint8, that most of a pixel's windows give it: for pictures."""
    height, width = max(box.bottom for box in places), max(box.right for box in places)
    ballot = torch.zeros((count, height, width), dtype=torch.uint8, device=groups[0].device)
    for box, group in zip(places, groups, strict=True):
        area = ballot[:, box.top : box.bottom, box.left : box.right]
        area += torch.arange(count, dtype=torch.uint8, device=group.device)[:, None, None] == group
    return ballot.argmax(0).to(torch.uint8)
