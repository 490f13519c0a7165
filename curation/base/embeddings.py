"""Embeddings as they are stored: unit vectors in fp16, one a row of a Parquet column, scaled to unit length when read."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows of (..., D) scaled to unit length, as float32.

    >>> normalise(np.array([[3, 4]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    rows = embeddings.astype(np.float32)
    lengths = np.sqrt(np.einsum("...d,...d->...", rows, rows))
    return rows / lengths[..., None]


def embedding_array(embeddings: np.ndarray) -> pa.FixedSizeListArray:
    """(N, D) -> fixed_size_list<halffloat>[D], as every embedding is stored."""
    halves = np.ascontiguousarray(embeddings, dtype=np.float16)
    return pa.FixedSizeListArray.from_arrays(pa.array(halves.reshape(-1)), embeddings.shape[1])


def embedding_matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """fixed_size_list<halffloat>[D] -> (N, D) float32, unit rows: fp16 as stored, renormalised."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    halves = array.flatten().to_numpy(zero_copy_only=False)
    return normalise(halves.reshape(len(array), array.type.list_size))
