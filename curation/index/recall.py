"""How many true neighbours an approximate index finds, and the least search effort that finds enough of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from curation.index.search import Best


def exact_neighbours(blocks: Iterable[np.ndarray], queries: np.ndarray, size: int) -> np.ndarray:
    """The ``size`` nearest rows (Q, size) int64, the nearest first, of vectors that come in (n, D) blocks; -1 for none."""
    best = Best(len(queries), size)
    start = 0
    for block in blocks:
        cosines = queries @ block.T  # (Q, D) @ (D, n) -> (Q, n)
        row, column = np.nonzero(cosines > best.cosines[:, -1:])  # after some blocks hardly any
        best.add(row, start + column, cosines[row, column])
        best.merge()
        start += len(block)
    return best.ids


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """The share of the expected neighbours (Q, L) that are among those found (Q, K); -1 stands for none."""
    there = (expected[:, :, None] == found[:, None, :]).any(axis=2)
    return float(there[expected >= 0].mean())


def tune(measure: Callable[[int], float], target: float, largest: int) -> tuple[int, float]:
    """The smallest setting from 1 to ``largest``, to some percent, whose recall reaches ``target``, and that recall.

    ``measure(setting)`` must not fall as the setting rises. Where the target is out of reach: ``largest`` and its recall.
    """
    below, setting = 0, 1
    found = measure(setting)
    while found < target and setting < largest:
        below, setting = setting, min(2 * setting, largest)
        found = measure(setting)
    while found >= target and setting - below > max(1, setting // 16):
        middle = (below + setting) // 2
        value = measure(middle)
        if value >= target:
            setting, found = middle, value
        else:
            below = middle
    return setting, found
