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
PAIRS = 2048  # compared at once: 20 MB


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
    alike = np.empty(len(one), np.float32)
    for start in range(0, len(one), PAIRS):
        part = slice(start, start + PAIRS)
        left, right = one[part].astype(np.float32), other[part].astype(np.float32)
        alike[part] = np.maximum(_cropped(left, right), _cropped(right, left))
    return alike


def _cropped(picture: np.ndarray, crop: np.ndarray) -> np.ndarray:
    """The similarity of ``crop`` (P, SIDE, SIDE) to the part of ``picture`` that fits it best; -1 where none does.

    The best left and right margins are found by the means of columns, the best upper and lower ones by those of rows.
    """
    weights, whole = _margins()  # (H, CELLS, SIDE), (CELLS, SIDE)
    middle = slice(SIDE // 6, SIDE - SIDE // 6)
    columns, across = _best(picture[:, middle].mean(axis=1), crop[:, middle].mean(axis=1))
    alike = np.full(len(picture), -1, np.float32)
    likely = np.flatnonzero(across >= SAME - SLACK)  # few: the rest is spared the rows
    rows, down = _best(picture[likely][:, :, middle].mean(axis=2), crop[likely][:, :, middle].mean(axis=2))

    rows, likely = rows[down >= SAME - SLACK], likely[down >= SAME - SLACK]
    inside = weights[rows] @ picture[likely] @ weights[columns[likely]].transpose(0, 2, 1)
    target = whole @ crop[likely] @ whole.T
    alike[likely] = structural_similarity(inside.reshape(-1, CELLS**2), target.reshape(-1, CELLS**2))
    return alike


def _best(profile: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pair of margins (P,) by which a profile (P, SIDE) fits the whole target (P, SIDE) best, and how well (P,)."""
    weights, whole = _margins()
    tried = (profile @ weights.reshape(-1, SIDE).T).reshape(len(profile), len(weights), CELLS)
    alike = structural_similarity(tried, (target @ whole.T)[:, None])
    best = alike.argmax(axis=1)
    return best, alike[np.arange(len(best)), best]


def structural_similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Luminance times contrast and structure of values 0..255 along the last axis (Wang et al. 2004); at most 1.

    >>> structural_similarity(np.array([10.0, 200.0]), np.array([10.0, 200.0]))
    np.float64(1.0)
    """
    first, second = one.mean(axis=-1), other.mean(axis=-1)
    one, other = one - first[..., None], other - second[..., None]
    covariance = np.einsum("...n,...n->...", one, other) / one.shape[-1]
    variances = (np.einsum("...n,...n->...", values, values) / values.shape[-1] for values in (one, other))
    luminance = (2 * first * second + C1) / (first**2 + second**2 + C1)
    return luminance * (2 * covariance + C2) / (sum(variances) + C2)


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
