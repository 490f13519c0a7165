"""Grey thumbnails, by which re-encoded, resized, cropped and bordered copies of a picture are told from other pictures.

CLIP's cosines are not enough: they take pictures of one kind for copies, and a border for another picture. So does a hash
of the whole: a crop moves everything. Here one thumbnail is compared with crops of the other (docs/duplicates.md).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

SIDE = 32  # pixels of a thumbnail
CELLS = 16  # of a crop, along each axis
STEP, MOST = 0.02, 0.1  # margins that are tried on each side, as shares of it
SAME = 0.88  # similarity from which two pictures are one: measured, docs/duplicates.md
SLACK = 0.1  # by which the means of rows or columns may fall short of SAME
SHRUNK = 96  # shorter side from which a picture is first reduced by a whole number, which is fast

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2  # of structural similarity (Wang et al., IEEE TIP 2004)
PAIRS = 1024  # compared at once: 10 MB


def thumbnail(picture: Image.Image) -> bytes:
    """SIDE x SIDE grey pixels, row by row, of a picture that is stretched to a square.

    >>> len(thumbnail(Image.new("RGB", (640, 480))))
    1024
    """
    factor = max(1, min(picture.size) // SHRUNK)
    grey = (picture.reduce(factor) if factor > 1 else picture).convert("L")
    return grey.resize((SIDE, SIDE), Image.Resampling.BOX).tobytes()


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How alike pictures are, (P,) float32, at most 1: one and the best crop of the other, whichever is cropped.

    one, other (P, SIDE, SIDE) uint8. What is far below SAME is a lower bound, not computed to the end.
    """
    pixels = np.concatenate([one, other])
    rows = np.arange(len(pixels))
    return similarity_of_rows(pixels, profiles(pixels), rows[: len(one)], rows[len(one) :])


def profiles(pixels: np.ndarray) -> np.ndarray:
    """The means of columns, and those of rows, (N, 2, SIDE) float32, over the middle of pictures (N, SIDE, SIDE) uint8."""
    middle = slice(SIDE // 6, SIDE - SIDE // 6)
    return np.stack([pixels[:, middle].mean(1, np.float32), pixels[:, :, middle].mean(2, np.float32)], axis=1)


def similarity_of_rows(pixels: np.ndarray, lines: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The similarity of pairs of pictures by their rows, one and other (P,), in ``pixels`` and in ``lines``, the profiles.

    Profiles are small, and tell most other pictures from one another: pixels are read of likely copies only.
    """
    alike = np.empty(len(one), np.float32)
    for start in range(0, len(one), PAIRS):
        pairs = slice(start, start + PAIRS)
        left, right = one[pairs], other[pairs]
        either = _cropped(pixels, lines, np.concatenate([left, right]), np.concatenate([right, left]))
        alike[pairs] = either.reshape(2, -1).max(axis=0)
    return alike


def _cropped(pixels: np.ndarray, lines: np.ndarray, pictures: np.ndarray, crops: np.ndarray) -> np.ndarray:
    """The similarity of the rows ``crops`` (P,) to the part of ``pictures`` (P,) that fits them best; -1 where none does.

    The best left and right margins are found by the means of columns, the best upper and lower ones by those of rows.
    """
    alike = np.full(len(pictures), -1, np.float32)
    columns, across = _best(lines[pictures, 0], lines[crops, 0])
    likely = np.flatnonzero(across >= SAME - SLACK)  # few: the rest is spared what follows
    rows, down = _best(lines[pictures[likely], 1], lines[crops[likely], 1])
    rows, likely = rows[down >= SAME - SLACK], likely[down >= SAME - SLACK]

    weights, whole = _margins()  # (H, CELLS, SIDE), (CELLS, SIDE)
    picture, crop = (pixels[chosen[likely]].astype(np.float32) for chosen in (pictures, crops))
    inside = weights[rows] @ picture @ weights[columns[likely]].transpose(0, 2, 1)
    target = whole @ crop @ whole.T
    alike[likely] = structural_similarity(inside.reshape(-1, CELLS**2), target.reshape(-1, CELLS**2))
    return alike


def _best(profile: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair of margins (P,) by which a profile (P, SIDE) fits the whole target (P, SIDE) best, and how well (P,).

    By :func:`structural_similarity`; the pairs of pictures along the last axis, where numpy is fast.
    """
    weights, whole = _margins()
    # Averages of cells less their mean: (H, CELLS, P), (CELLS, P)
    tried = (_without_mean(weights).reshape(-1, SIDE) @ profile.T).reshape(len(weights), CELLS, -1)
    cells = _without_mean(whole) @ target.T

    means = weights.mean(axis=1) @ profile.T, target @ whole.mean(axis=0)  # (H, P), (P,)
    variance = np.einsum("hnp,hnp->hp", tried, tried) + np.einsum("np,np->p", cells, cells)  # of both
    alike = _structural(*means, np.einsum("hnp,np->hp", tried, cells) / CELLS, variance / CELLS)
    best = alike.argmax(axis=0)
    return best, alike[best, np.arange(len(best))]


def _without_mean(weights: np.ndarray) -> np.ndarray:
    """Weights (..., CELLS, SIDE) of cells less their mean."""
    return weights - weights.mean(axis=-2, keepdims=True)


def structural_similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Luminance times contrast and structure of values 0..255 along the last axis (Wang et al. 2004); at most 1.

    >>> structural_similarity(np.array([10.0, 200.0]), np.array([10.0, 200.0]))
    np.float64(1.0)
    """
    means = one.mean(axis=-1), other.mean(axis=-1)
    one, other = one - means[0][..., None], other - means[1][..., None]
    covariance = np.einsum("...n,...n->...", one, other) / one.shape[-1]
    first, second = (np.einsum("...n,...n->...", values, values) / values.shape[-1] for values in (one, other))
    return _structural(*means, covariance, first + second)


def _structural(first: np.ndarray, second: np.ndarray, covariance: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Structural similarity from two means, the covariance, and the sum of both variances."""
    luminance = (2 * first * second + C1) / (first**2 + second**2 + C1)
    return luminance * (2 * covariance + C2) / (variance + C2)


@lru_cache(maxsize=1)
def _margins() -> tuple[np.ndarray, np.ndarray]:
    """Weights (H, CELLS, SIDE) that average a line without its margins into cells, for every pair of margins; and those
    (CELLS, SIDE) without margins. float32."""
    steps = np.arange(0, MOST + STEP / 2, STEP)
    pairs = [(first, 1 - last) for first in steps for last in steps if first + last <= 1.6 * MOST]
    return np.stack([_averages(*pair) for pair in pairs]), _averages(0, 1)


def _averages(start: float, stop: float) -> np.ndarray:
    """Weights (CELLS, SIDE) that average the pixels between two shares of a line into cells of one width."""
    edges = np.linspace(start * SIDE, stop * SIDE, CELLS + 1)
    pixels = np.arange(SIDE)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    covered = np.maximum(overlap, 0)
    return (covered / covered.sum(axis=1, keepdims=True)).astype(np.float32)
