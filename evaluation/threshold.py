"""A threshold of the background that is chosen without labels: where the scores of groups part into two kinds.

Groups on something that is named score high, others low. Otsu's method (1979) cuts such a histogram where the variance
between its two sides is largest. No mask is read, so that the score on the masks stays what it is for unseen data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from curation.base.devices import to_device, to_host
from curation.base.errors import CocuError
from evaluation.inference import Classes, View, group_scores, pixel_groups, prepare
from evaluation.places import place_cosines
from evaluation.windows import boxes
from segmenters.dense import DenseCLIP
from segmenters.opening import Segmenter

BINS = 200  # of scores from 0 to 1
IMAGES = 200  # that a threshold is chosen by


class Scores(NamedTuple):
    """Pixels by the best score of their group, in BINS bins from 0 to 1."""

    pixels: np.ndarray  # (BINS,) int64: all of them
    removable: np.ndarray  # (BINS,) int64: those of groups that a threshold can make background


class Curve(NamedTuple):
    """What each threshold would do."""

    thresholds: np.ndarray  # (T,) float64, ascending, between 0 and 1
    background: np.ndarray  # (T,) share of pixels that become background
    separation: np.ndarray  # (T,) variance between the two sides of the cut, as a share of the whole variance

    @property
    def best(self) -> float:
        """The threshold that parts the scores best; the middle of several in a row that do so equally well."""
        ties = np.flatnonzero(self.separation >= self.separation.max() - 1e-12)
        run = ties[: np.argmax(np.diff(ties, append=ties[-1] + 2) > 1) + 1]  # the first run of neighbours
        return float(self.thresholds[run].mean())


@torch.inference_mode()
def score_images(
    model: Segmenter, classes: Classes, images: Iterable[Image.Image], view: View, batch_size: int
) -> Scores:
    """Count the pixels of all windows of the images by the best score of their group, as :func:`group_scores` gives it.

    Each place of a dense model is a group.
    """
    counts = np.zeros((2, BINS), np.int64)
    for image in images:
        pixels, _ = prepare(image, view, model.smallest)  # (3, H, W)
        windows = boxes(pixels.shape[1], pixels.shape[2], view.crop, view.stride)
        for start in range(0, len(windows), batch_size):
            crops = torch.stack(
                [pixels[:, box.top : box.bottom, box.left : box.right] for box in windows[start:][:batch_size]]
            )
            crops = to_device(crops, model.logit_scale.device)
            if isinstance(model, DenseCLIP):
                cosines = place_cosines(model.encode_places(crops), classes.text)  # (B, C, h, w)
                best = (model.scale * cosines).softmax(1).amax(1).flatten(1)  # (B, h·w)
                areas = torch.ones_like(best, dtype=torch.int64)
            else:
                encoding = model.encode_groups(crops)
                best = group_scores(encoding, classes._replace(threshold=None), model.scale).amax(-1)  # (B, G)
                areas = _areas(pixel_groups(encoding, (crops.shape[2], crops.shape[3])), best.shape[1])
            counts += _count(areas, best)
    return Scores(*counts)


def _areas(groups: Tensor, count: int) -> Tensor:
    """Pixels (B, G) of each of ``count`` groups, from the group of every pixel (B, h, w)."""
    windows = len(groups)
    numbers = groups.flatten(1).long() + count * torch.arange(windows, device=groups.device)[:, None]  # (B, h·w)
    return torch.bincount(numbers.flatten(), minlength=windows * count).unflatten(0, (windows, count))


def _count(areas: Tensor, best: Tensor) -> np.ndarray:
    """Pixels (2, BINS) int64 by the score of their group: all, and those of groups that are not the window's best.

    areas (B, G) pixels, best (B, G) in 0..1.
    """
    pixels = to_host(areas).ravel()
    scores = to_host(best.double())  # (B, G)
    bins = np.minimum((scores * BINS).astype(int), BINS - 1).ravel()
    removable = pixels * (scores < scores.max(1, keepdims=True)).ravel()
    return np.stack([np.bincount(bins, weights, BINS) for weights in (pixels, removable)]).astype(np.int64)


def curve(scores: Scores) -> Curve:
    """What a threshold at each edge between two bins would do. Raises CocuError where all scores are in one bin."""
    thresholds = np.arange(1, BINS) / BINS  # (T,)
    centres = (np.arange(BINS) + 0.5) / BINS
    weight = scores.pixels / max(scores.pixels.sum(), 1)  # (BINS,)
    mean = weight @ centres
    variance = weight @ (centres - mean) ** 2
    if not variance > 0:
        raise CocuError("bg_threshold: all groups score alike, so that nothing can be chosen; give a number")

    below = np.cumsum(weight)[:-1]  # (T,)
    moment = np.cumsum(weight * centres)[:-1]  # (T,)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = np.nan_to_num((mean * below - moment) ** 2 / (below * (1 - below)), posinf=0.0)
    background = np.cumsum(scores.removable)[:-1] / scores.pixels.sum()
    return Curve(thresholds, background, np.clip(between / variance, 0, 1))
