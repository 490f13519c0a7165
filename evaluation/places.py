"""Zero-shot segmentation with an embedding for every place (docs/method.md §6): how well places fit classes, and joining
the windows without ever holding classes x pixels. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from evaluation.windows import CHUNK, Box


def place_cosines(places: Tensor, text: Tensor) -> Tensor:
    """Cosines (B, C, h, w) of places (B, D, h, w) and classes (C, D) of unit norm."""
    return torch.einsum("bdhw,cd->bchw", F.normalize(places.float(), dim=1), text)


def place_scores(places: Tensor, text: Tensor, scale: Tensor | float, threshold: float | None) -> Tensor:
    """Scores of each window's places (B, D, h, w) for classes (C, D): (B, C, h, w), with background (B, 1 + C, h, w).

    Scaled cosines, as the published readings average them over windows. With a background (``threshold``) they are
    probabilities, and the rule is GroupViT's: a place whose best class has less than the threshold, or than the window's
    best place where that is lower, has 1 for the background, which comes first; its other scores stay.
    """
    logits = scale * place_cosines(places, text)  # (B, C, h, w)
    if threshold is None:
        return logits

    scores = logits.softmax(1)
    best = scores.amax(1, keepdim=True)  # (B, 1, h, w)
    highest = best.amax((2, 3), keepdim=True)  # (B, 1, 1, 1)
    background = best < highest.clamp(max=threshold)
    return torch.cat([background.to(scores.dtype), scores], 1)


def decide_places(windows: Sequence[Box], scores: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The best class (H, W), int64, of each pixel of an image of ``size``.

    Scores (C, h, w), one map a window, are resized bilinearly to their window, averaged where windows overlap, and resized
    to ``size``: some classes at a time, so that memory does not grow with their number.
    """
    height = max(box.bottom for box in windows)
    width = max(box.right for box in windows)
    coverage = torch.zeros((height, width), device=scores[0].device)
    for box in windows:
        coverage[box.top : box.bottom, box.left : box.right] += 1

    best = torch.full(size, -torch.inf, device=coverage.device)
    labels = torch.zeros(size, dtype=torch.int64, device=coverage.device)
    count = len(scores[0])
    step = max(1, 2 * CHUNK // max(height * width, size[0] * size[1]))
    for start in range(0, count, step):
        total = torch.zeros((min(step, count - start), height, width), device=coverage.device)
        for box, window in zip(windows, scores, strict=True):
            shape = (box.bottom - box.top, box.right - box.left)
            part = F.interpolate(window[None, start : start + step], size=shape, mode="bilinear", align_corners=False)[
                0
            ]
            total[:, box.top : box.bottom, box.left : box.right] += part

        total /= coverage
        if (height, width) != size:
            total = F.interpolate(total[None], size=size, mode="bilinear", align_corners=False)[0]
        highest = total.max(0)
        better = highest.values > best
        best = torch.where(better, highest.values, best)
        labels = torch.where(better, highest.indices + start, labels)
    return labels
