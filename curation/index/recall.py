"""How many true neighbours an approximate index finds, and the least search effort that finds enough of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from curation.index.search import TopNeighbours


def exact_neighbours(blocks: Iterable[np.ndarray], queries: np.ndarray, size: int) -> np.ndarray:
    """The ``size`` nearest rows (Q, size) int64, the nearest first, of vectors that come in (n, D) blocks; -1 for none."""
    top = TopNeighbours(len(queries), size)
    start = 0
    for block in blocks:
        cosines = queries @ block.T  # (Q, D) @ (D, n) -> (Q, n)
        row, column = np.nonzero(cosines > top.cosines[:, -1:])  # after some blocks hardly any
        top.add(row, start + column, cosines[row, column])
        top.merge()
        start += len(block)
    return top.ids


def recall(ids: np.ndarray, expected: np.ndarray) -> float:
    """The share of the expected neighbours (Q, L) that are among those of a search, ids (Q, K); -1 stands for none.

    >>> recall(np.array([[2, 9], [3, 4]]), expected=np.array([[1, 2], [3, -1]]))
    0.6666666666666666
    """
    hits = (expected[:, :, None] == ids[:, None, :]).any(axis=2)
    return float(hits[expected >= 0].mean())


def tune(measure: Callable[[int], float], target: float, largest: int) -> tuple[int, float]:
    """The smallest setting from 1 to ``largest``, to some percent, whose recall reaches ``target``, and that recall.

    ``measure(setting)`` must not fall as the setting rises. Where the target is out of reach: ``largest`` and its recall.

    >>> tune(lambda setting: setting / 100, target=0.6, largest=100)
    (60, 0.6)
    """
    below = 0  # the largest setting that is known to be too small
    setting = 1
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
