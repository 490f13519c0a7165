"""The lists of vectors that an index is made of, as the search reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Lists:
    """Vectors in lists: ``read(number)`` gives those of a list, (n, D) fp32 or fp16, and their ids (n,) int64.

    ``roundings`` remembers the largest rounding of a vector in each part of a list, by list number and first row.
    """

    count: int
    read: Callable[[int], tuple[Tensor, np.ndarray]]
    roundings: dict[tuple[int, int], float] = field(default_factory=dict)

    def among(self, kept: np.ndarray) -> Lists:
        """The same lists with only the ids that are ``kept`` (N,) bool; copied whenever they are read."""

        def read(number: int) -> tuple[Tensor, np.ndarray]:
            vectors, ids = self.read(number)
            chosen = np.flatnonzero(kept[ids])
            return vectors[torch.from_numpy(chosen)], ids[chosen]

        return Lists(self.count, read)
