"""Lists of unequal lengths as two arrays (compressed sparse rows): where each begins, and the elements of all of them."""

from __future__ import annotations

import numpy as np


def row_numbers(offsets: np.ndarray) -> np.ndarray:
    """The row of every element of a CSR array: offsets (B + 1,) -> (P,) int64, such as [0, 2, 3] -> [0, 0, 1]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def gather_rows(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the elements of chosen rows of a CSR array.

    offsets (N + 1,), rows (R,) -> positions (P,) int64 into the elements, and lengths (R,) of the chosen rows.
    """
    starts = offsets[rows].astype(np.int64)
    lengths = offsets[rows + 1] - starts
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths), lengths
