"""Embeddings as they are stored: unit vectors in fp16, one a row of a Parquet column, scaled to unit length when read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from curation.base.errors import CocuError, one_line

SHORTEST, LONGEST = 1e-15, 1e15  # lengths whose squares fp32 holds well


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows of (..., D) scaled to unit length, as float32, whatever their length before.

    >>> normalise(np.array([[3, 4]])).tolist(), normalise(np.array([[0, 1e-30], [1e26, 0]])).tolist()
    ([[0.6000000238418579, 0.800000011920929]], [[0.0, 1.0], [1.0, 0.0]])
    """
    with np.errstate(over="ignore"):
        rows = embeddings.astype(np.float32)
        lengths = np.sqrt(np.einsum("...d,...d->...", rows, rows))

    extreme = ~((lengths > SHORTEST) & (lengths < LONGEST))
    if extreme.any():
        rows[extreme] = _scaled(embeddings[extreme])
        lengths[extreme] = np.linalg.norm(rows[extreme], axis=-1)
    return rows / lengths[..., None]


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Rows (n, D) divided by their largest number, so that their squares neither vanish nor overflow; zeros stay."""
    rows = rows.astype(np.float64)
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    return rows / np.where(largest > 0, largest, 1)


def has_direction(embeddings: np.ndarray) -> np.ndarray:
    """Which rows of (N, D) can be scaled to unit length, (N,) bool: they are finite and not zero."""
    return np.isfinite(embeddings).all(axis=1) & (embeddings != 0).any(axis=1)


def embedding_array(embeddings: np.ndarray) -> pa.FixedSizeListArray:
    """(N, D) -> fixed_size_list<halffloat>[D], as every embedding is stored."""
    halves = np.ascontiguousarray(embeddings, dtype=np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(halves.reshape(-1)), embeddings.shape[1])


def embedding_matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """fixed_size_list<halffloat>[D] -> (N, D) float32, unit rows: fp16 as stored, renormalised."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not pa.types.is_fixed_size_list(array.type) or array.type.value_type != pa.float16() or array.null_count:
        raise CocuError(f"embeddings are {one_line(array.type, 80)}, not vectors of halffloat; run cocu curate again")
    halves = array.flatten().to_numpy(zero_copy_only=False)
    return normalise(halves.reshape(len(array), array.type.list_size))
