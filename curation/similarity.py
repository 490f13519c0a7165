"""Cosine similarities between unit vectors: the arithmetic that every step shares."""

from __future__ import annotations

import numpy as np

PAIRS_AT_ONCE = 1 << 14  # keeps the gathered rows (2 x 16384 x D floats) in tens of megabytes


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows of (..., D) scaled to unit length, as float32. Stored fp16 embeddings are read back through this."""
    rows = embeddings.astype(np.float32)
    return rows / np.sqrt(np.einsum("...d,...d->...", rows, rows))[..., None]


def pair_similarities(images: np.ndarray, texts: np.ndarray, rows: np.ndarray, concepts: np.ndarray) -> np.ndarray:
    """Cosines of chosen (image, text) pairs: ``images[rows] · texts[concepts]``.

    images (B, D) and texts (V, D): unit rows, float32; rows (P,) and concepts (P,): int. Returns (P,) float32.
    A pair's value depends on its two vectors only, not on its neighbours in the block.
    """
    found = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        part = slice(start, start + PAIRS_AT_ONCE)
        found[part] = np.einsum("pd,pd->p", images[rows[part]], texts[concepts[part]])
    return found


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
