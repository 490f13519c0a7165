"""The neighbours R_i of anchors (docs/method.md §2): the results of a search, with the anchor first or left out."""

from __future__ import annotations

import numpy as np

from curation.index.open import SearchIndex


def nearest(
    index: SearchIndex, queries: np.ndarray, anchors: np.ndarray, neighbors: int, include_anchor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours R_i of a block of anchors, and their cosines (docs/method.md §2).

    queries (B, D): unit rows; anchors (B,) int64: the anchors' own rows in the index, -1 where it does not hold them.
    Returns ids (B, L) int64, -1 where there are fewer than L, and cosines (B, L) float32.
    """
    # One more than L where the anchor is to be dropped from the results.
    cosines, ids = index.search(queries, neighbors + (not include_anchor))
    return choose_neighbours(ids, cosines, anchors, neighbors, include_anchor)


def choose_neighbours(
    ids: np.ndarray, cosines: np.ndarray, anchors: np.ndarray, neighbors: int, include_anchor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Order search results: the anchor first or left out, then descending cosine, ties by id, -1 last.

    An anchor that the index holds is its own first neighbour even when more than L copies of it tie with it. Shapes as
    in :func:`nearest`, with K columns in, K >= L (K > L to leave the anchor out).

    >>> ids, cosines = np.array([[7, 4, 5]]), np.array([[1.0, 0.5, 0.5]])
    >>> choose_neighbours(ids, cosines, anchors=np.array([7]), neighbors=2, include_anchor=False)[0].tolist()
    [[4, 5]]
    """
    indexed = anchors >= 0
    is_anchor = (ids == anchors[:, None]) & indexed[:, None]  # -1 is not an anchor
    if include_anchor:
        missing = indexed & ~is_anchor.any(axis=1)
        ids = ids.copy()
        cosines = cosines.copy()
        ids[missing, -1] = anchors[missing]
        cosines[missing, -1] = 1.0
        is_anchor = (ids == anchors[:, None]) & indexed[:, None]

    rank = np.where(ids < 0, np.inf, -cosines)
    rank[is_anchor] = -np.inf if include_anchor else np.inf
    order = np.lexsort((ids, rank), axis=1)
    ids, cosines, is_anchor = (np.take_along_axis(values, order, axis=1) for values in (ids, cosines, is_anchor))

    if not include_anchor:
        ids = np.where(is_anchor, -1, ids)
    cosines = np.where(ids < 0, 0, cosines)
    return ids[:, :neighbors].astype(np.int64), cosines[:, :neighbors].astype(np.float32)
