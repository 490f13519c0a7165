"""Cosines of chosen pairs of unit vectors (docs/method.md §3), without those of all the other pairs."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from curation.base.ragged import Ragged

if TYPE_CHECKING:  # torch takes a second to import, and whoever asks for --help never needs it
    from torch import Tensor


def sampled_products(left: Tensor, right: Tensor, offsets: Tensor, columns: Tensor) -> Tensor:
    """Chosen entries of the matrix product ``left @ right.T``, and no others (a sampled dense-dense product).

    left (R, D), right (C, D): float32. The entries are a CSR pattern: offsets (R + 1,), columns (P,), int64, each at most
    once in a row. Returns (P,) float32. An entry's value depends on its two vectors only, not on the rest of the block.
    """
    import torch

    _silence_sparse_warnings()
    pattern = torch.sparse_csr_tensor(offsets, columns, left.new_zeros(len(columns)), (len(left), len(right)))
    return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0).values()


@lru_cache(maxsize=1)
def _silence_sparse_warnings() -> None:
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


def pair_similarities(images: np.ndarray, texts: np.ndarray, concepts: Ragged) -> np.ndarray:
    """Cosines of every image to its own concepts.

    images (B, D) and texts (V, D): unit rows, float32; concepts: B lists of P ids in all. Returns (P,) float32.

    >>> texts = np.eye(3, dtype=np.float32)
    >>> pair_similarities(texts[:2], texts, Ragged.from_lists([[0, 1], [1]])).tolist()
    [1.0, 0.0, 1.0]
    """
    import torch

    arrays = (images, texts, concepts.offsets.astype(np.int64), concepts.values.astype(np.int64))
    return sampled_products(*map(torch.from_numpy, arrays)).numpy()
