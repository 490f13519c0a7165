"""Cosine similarities between unit vectors: the arithmetic that every step shares."""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from curation.base.ragged import Ragged


def normalise(embeddings: np.ndarray) -> np.ndarray:
    """Rows of (..., D) scaled to unit length, as float32. Stored fp16 embeddings are read back through this."""
    rows = embeddings.astype(np.float32)
    unit: np.ndarray = rows / np.sqrt(np.einsum("...d,...d->...", rows, rows))[..., None]
    return unit


def sampled_products(left: Tensor, right: Tensor, offsets: Tensor, columns: Tensor) -> Tensor:
    """Chosen entries of the matrix product ``left @ right.T``, and no others (a sampled dense-dense product).

    left (R, D), right (C, D): float32. The entries are a CSR pattern: offsets (R + 1,), columns (P,), int64, each at most
    once in a row. Returns (P,) float32. An entry's value depends on its two vectors only, not on the rest of the block.
    """
    _quiet()
    pattern = torch.sparse_csr_tensor(offsets, columns, left.new_zeros(len(columns)), (len(left), len(right)))
    products: Tensor = torch.sparse.sampled_addmm(pattern, left, right.T, beta=0).values()
    return products


@lru_cache(maxsize=1)
def _quiet() -> None:
    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


def pair_similarities(images: np.ndarray, texts: np.ndarray, concepts: Ragged) -> np.ndarray:
    """Cosines of every image to its own concepts.

    images (B, D) and texts (V, D): unit rows, float32; concepts: B lists of P ids in all. Returns (P,) float32.
    """
    arrays = (images, texts, concepts.offsets.astype(np.int64), concepts.values.astype(np.int64))
    return sampled_products(*map(torch.from_numpy, arrays)).numpy()
