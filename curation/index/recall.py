"""How many true neighbours an approximate index finds, and the least search effort that finds enough of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from curation.index.search import TopNeighbours

TIE = 1e-6  # cosines that differ by less are equal: the sums of fp32 products depend on the block


def exact_neighbours(blocks: Iterable[np.ndarray], queries: np.ndarray, size: int) -> np.ndarray:
    """The ``size`` nearest rows (Q, size) int64, the nearest first, of vectors that come in (n, D) blocks; -1 for none."""
    return _exact(blocks, queries, size).ids


def _exact(blocks: Iterable[np.ndarray], queries: np.ndarray, size: int) -> TopNeighbours:
    top = TopNeighbours(len(queries), size)
    start = 0
    for block in blocks:
        cosines = queries @ block.T  # (Q, D) @ (D, n) -> (Q, n)
        row, column = np.nonzero(cosines > top.cosines[:, -1:])  # after some blocks hardly any
        top.add(row, start + column, cosines[row, column])
        top.merge()
        start += len(block)
    return top


@dataclass(frozen=True)
class TrueNeighbours:
    """The true neighbours of Q held-out rows, without the rows themselves: to find oneself is no merit.

    Where more than L rows are as near as the L-th, as with copies of one picture, any of them counts.
    """

    rows: np.ndarray  # (Q,) int64: the held-out rows
    ids: np.ndarray  # (Q, L) int64, the nearest first, -1 for none
    farthest: np.ndarray  # (Q,) float32: the cosine of the last of them
    tied: np.ndarray  # (Q,) bool: whether rows beyond them are as near

    def recall(self, ids: np.ndarray, cosines: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
        """The share of L that a search found: ids (Q, K), K > L; -1 stands for none.

        ``cosines(queries, ids)``, (N,) each, gives the true cosines of pairs; it is only asked about tied queries.
        """
        others = (ids >= 0) & (ids != self.rows[:, None])
        expected = np.where(self.ids >= 0, self.ids, -2)
        hits = ((expected[:, :, None] == ids[:, None, :]).any(axis=2)).sum(axis=1)

        query, column = np.nonzero(others & self.tied[:, None])
        if len(query):
            near = cosines(query, ids[query, column]) >= self.farthest[query] - TIE
            as_near = np.bincount(query[near], minlength=len(ids))
            hits = np.where(self.tied, np.minimum(as_near, self.ids.shape[1]), hits)
        return float(hits.sum() / max((self.ids >= 0).sum(), 1))


def true_neighbours(blocks: Iterable[np.ndarray], queries: np.ndarray, rows: np.ndarray, size: int) -> TrueNeighbours:
    """The ``size`` true neighbours of queries (Q, D), which are ``rows`` (Q,) of vectors that come in (n, D) blocks."""
    top = _exact(blocks, queries, size + 2)  # itself, and one more, to see ties
    is_self = top.ids == rows[:, None]
    last = np.argsort(is_self, axis=1, kind="stable")
    ids = np.take_along_axis(np.where(is_self, -1, top.ids), last, axis=1)
    cosines = np.take_along_axis(np.where(is_self, -np.inf, top.cosines), last, axis=1)

    present = np.minimum((ids >= 0).sum(axis=1), size)
    farthest = np.take_along_axis(cosines, np.maximum(present - 1, 0)[:, None], axis=1)[:, 0]
    tied = (ids[:, size] >= 0) & (cosines[:, size] >= farthest - TIE)
    return TrueNeighbours(rows, ids[:, :size], farthest, tied)


def recall(ids: np.ndarray, expected: np.ndarray) -> float:
    """The share of the expected neighbours (Q, L) that are among those of a search, ids (Q, K); -1 stands for none.

    >>> recall(np.array([[2, 9], [3, 4]]), expected=np.array([[1, 2], [3, -1]]))
    0.6666666666666666
    """
    hits = (expected[:, :, None] == ids[:, None, :]).any(axis=2)
    return float(hits[expected >= 0].mean())


def tune(measure: Callable[[int], float], target: float, largest: int, first: int = 1) -> tuple[int, float]:
    """The smallest setting from 1 to ``largest``, to some percent, whose recall reaches ``target``, and that recall.

    ``measure(setting)`` must not fall as the setting rises. Where the target is out of reach: ``largest`` and its recall.
    ``first``: the setting to begin with, better a little too large.

    >>> tune(lambda setting: setting / 100, target=0.6, largest=100)
    (60, 0.6)
    """
    below = 0  # the largest setting that is known to be too small
    setting = min(first, largest)
    reached = measure(setting)
    while reached < target and setting < largest:
        below = setting
        setting = min(2 * setting, largest)
        reached = measure(setting)

    while reached >= target and setting - below > max(1, setting // 16):
        middle = (below + setting) // 2
        recall_there = measure(middle)
        if recall_there >= target:
            setting, reached = middle, recall_there
        else:
            below = middle
    return setting, reached
