"""How well archives agree with what is visible: recall and precision, with errors by bootstrap over images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.base.ragged import Ragged, is_in

CUTS = (1, 2, 3, 5)
MEASURES = ("concepts", "recall", "recall_top", *(f"p@{k}" for k in CUTS), *(f"n@{k}" for k in CUTS))
RESAMPLES = 1000  # fewer where there are so many images that these many draws would take minutes
DRAWS = 200_000_000
AT_ONCE = 1 << 24  # draws in memory


@dataclass(frozen=True)
class LabelledData:
    """Curated images with their truth: N of them."""

    images: np.ndarray  # (N, D) float32, unit rows
    captions: list[str]
    mentioned: Ragged  # N lists of concept ids: what the captions mention
    visible: Ragged  # the truth; concepts outside the vocabulary have ids of their own
    rows: np.ndarray  # (N,) int64: of the run that they are part of
    judged: np.ndarray | None = None  # ids that the truth speaks of, where it speaks of some only; None: of all


@dataclass(frozen=True)
class Quality:
    """How well archives agree with the truth; shares from 0 to 1."""

    concepts: float  # per archive
    recall: float  # of the visible concepts, mean over images that have some
    recall_top: float  # of the three best concepts and the caption together
    precision: dict[int, float]  # of the k best (or all, if fewer), over images with a non-empty archive
    new_precision: dict[int, float]  # of the k best that the caption does not mention, over images that have k of them
    error: Quality | None = None  # standard errors of all these

    @classmethod
    def of(cls, values: np.ndarray, errors: np.ndarray | None = None) -> Quality:
        """From one number for each of MEASURES, (M,) float64."""
        numbers = dict(zip(MEASURES, values.tolist(), strict=True))
        return cls(
            numbers["concepts"],
            numbers["recall"],
            numbers["recall_top"],
            {k: numbers[f"p@{k}"] for k in CUTS},
            {k: numbers[f"n@{k}"] for k in CUTS},
            None if errors is None else cls.of(errors),
        )


def quality(archives: Ragged, visible: Ragged, mentioned: Ragged) -> Quality:
    """Compare archives, in descending score, with what is visible and what captions mention, for the same N images."""
    values = by_image(archives, visible, mentioned)
    return Quality.of(means(values), standard_errors(values))


def by_image(archives: Ragged, visible: Ragged, mentioned: Ragged) -> np.ndarray:
    """Every one of MEASURES for every image, (N, M) float64; NaN for an image that does not count in a measure."""
    images, sizes = len(archives), archives.lengths
    width = int(max(lists.values.max(initial=0) for lists in (archives, visible, mentioned))) + 1
    truth = visible.pairs(width)
    pairs = archives.pairs(width)
    is_right = is_in(archives, visible)
    is_new = ~is_in(archives, mentioned)
    positions = archives.positions
    new = archives.where(is_new)
    new_positions = np.full(len(pairs), len(pairs))  # among the new ones of the archive
    new_positions[is_new] = new.positions

    def recall(concepts: np.ndarray) -> np.ndarray:
        distinct = np.unique(concepts)
        hits = np.bincount(distinct[np.isin(distinct, truth)] // width, minlength=images)
        return _share(hits, visible.lengths)

    def right(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(archives.owners[chosen & is_right], minlength=images)

    return np.stack(
        [
            sizes.astype(np.float64),
            recall(pairs),
            recall(np.concatenate([pairs[positions < 3], mentioned.pairs(width)])),
            *(_share(right(positions < k), np.minimum(sizes, k)) for k in CUTS),
            *(_share(right(new_positions < k), np.where(new.lengths >= k, k, 0)) for k in CUTS),
        ],
        axis=1,
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole (N,), NaN where there is nothing to have a part of."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def means(values: np.ndarray) -> np.ndarray:
    """Means (M,) of values (N, M) over the images that count; NaN where none does."""
    counts = (~np.isnan(values)).sum(0)
    return np.where(counts > 0, np.nansum(values, axis=0) / np.maximum(counts, 1), np.nan)


def resampled(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means (B, M) over B bootstrap samples of the images, from values (N, M): N images drawn with replacement each time.

    Two arms measured on the same images are drawn alike, so that the difference of their rows is that of pairs.
    """
    images = len(values)
    rng = np.random.default_rng(seed)
    counted = ~np.isnan(values)
    both = np.concatenate([np.where(counted, values, 0), counted], axis=1)  # (N, 2M)
    left = max(100, min(RESAMPLES, DRAWS // max(images, 1)))
    parts = []
    while left > 0:
        size = min(left, max(1, AT_ONCE // max(images, 1)))
        drawn = rng.integers(0, images, (size, images)) + images * np.arange(size)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=size * images).reshape(size, images)
        parts.append(times.astype(np.float64) @ both)
        left -= size

    total, count = np.split(np.concatenate(parts), 2, axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def standard_errors(values: np.ndarray) -> np.ndarray:
    """Standard errors (M,) of :func:`means` by bootstrap over images; NaN where no image counts."""
    sums = resampled(values)
    counts = (~np.isnan(sums)).sum(0)
    deviations = np.where(np.isnan(sums), 0, sums - means(sums))
    return np.where(counts > 1, np.sqrt((deviations**2).sum(0) / np.maximum(counts - 1, 1)), np.nan)


def without(lists: Ragged, concepts: np.ndarray) -> Ragged:
    """Lists of concept ids without some of them."""
    return lists.where(~np.isin(lists.values, concepts))
