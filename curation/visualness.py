"""Visualness (docs/method.md §1): how much a concept shows in the images whose captions mention it, measured with CLIP."""

from __future__ import annotations

import numpy as np

from curation.base.ragged import Ragged
from curation.similarity import pair_similarities

AT_ONCE = 512  # images that are compared with every concept at once
LEAST_VARIANCE = 1e-12  # keeps what is divided by a deviation finite


def image_text_sums(images: np.ndarray, texts: np.ndarray, concepts: Ragged, sample: np.ndarray) -> np.ndarray:
    """Sums of t_c · f(x) from which visualness and calibration follow, for one block of images.

    images (B, D), texts (V, D): unit rows; concepts: the ids that each caption mentions, B lists; sample (S,) int: rows
    that stand for a random image. Returns (V, 3, 3) float64: for each concept [images that mention it, sampled images,
    both] x [count, sum, sum of squares]. Sums of blocks add up.
    """
    sums = np.zeros((len(texts), 3, 3))
    similarity = pair_similarities(images, texts, concepts).astype(np.float64)  # (P,)
    sampled = np.isin(concepts.owners, sample)  # (P,)
    for group, pairs in ((0, slice(None)), (2, sampled)):
        for power in range(3):
            sums[:, group, power] = np.bincount(
                concepts.values[pairs], similarity[pairs] ** power, minlength=len(texts)
            )

    sums[:, 1, 0] = len(sample)
    for start in range(0, len(sample), AT_ONCE):
        background = (images[sample[start : start + AT_ONCE]] @ texts.T).astype(np.float64)  # (S, D) @ (D, V) -> (S, V)
        sums[:, 1, 1] += background.sum(0)
        sums[:, 1, 2] += np.einsum("sv,sv->v", background, background)
    return sums


def effect_sizes(sums: np.ndarray) -> np.ndarray:
    """Visualness (V,) float32: Cohen's d between images whose captions mention a concept and other images.

    ``sums`` (V, 3, 3) are those of :func:`image_text_sums`. d = (mean of t_c · f(x) where mentioned - mean elsewhere) /
    pooled standard deviation, the pool being the mean of the two sample variances. NaN where either side has fewer than
    two images.
    """
    mentioned = sums[:, 0]
    others = sums[:, 1] - sums[:, 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_mentioned, variance_mentioned = _moments(mentioned)
        mean_others, variance_others = _moments(others)
        pooled = np.maximum((variance_mentioned + variance_others) / 2, LEAST_VARIANCE)
        distance = (mean_mentioned - mean_others) / np.sqrt(pooled)

    measurable = (mentioned[:, 0] >= 2) & (others[:, 0] >= 2)
    return np.where(measurable, distance, np.nan).astype(np.float32)


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample variance, (V,) each, from sums (V, 3): count, sum, sum of squares."""
    count, total, squares = sums.T
    return total / count, (squares - total**2 / count) / (count - 1)


def calibration(sums: np.ndarray) -> np.ndarray:
    """Mean and standard deviation (V, 2), float32, of t_c · f(x) over the random sample of images (docs/method.md §3)."""
    count, total, squares = sums[:, 1].T
    mean = total / np.maximum(count, 1)
    variance = squares / np.maximum(count, 1) - mean**2
    return np.stack([mean, np.sqrt(np.maximum(variance, LEAST_VARIANCE))], axis=1).astype(np.float32)


def keep(counts: np.ndarray, visualness: np.ndarray, min_count: int, threshold: float | None) -> np.ndarray:
    """Which candidates (V,) stay in the vocabulary; with a threshold, those that could not be measured are dropped."""
    frequent = counts >= min_count
    if threshold is None:
        return frequent
    return frequent & (np.nan_to_num(visualness, nan=-np.inf) >= threshold)
