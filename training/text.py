"""Texts as token ids: each distinct text is tokenised once, and a batch is no longer than its longest text."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from training.groupvit import tokenize

CACHED = 1 << 16  # texts; some 30 MB


@lru_cache(maxsize=CACHED)
def token_ids(text: str, context: int) -> np.ndarray:
    """Token ids (L,) int32 of a text, from start to END_OF_TEXT, cut to ``context``."""
    return tokenize([text], context)[0].numpy().astype(np.int32)


def pad(texts: Sequence[str], context: int) -> Tensor:
    """Token ids (T, L) int64 of texts, as long as the longest; zeros follow END_OF_TEXT and never matter."""
    ids = [token_ids(text, context) for text in texts]
    matrix = np.zeros((len(ids), max(map(len, ids))), np.int64)
    for row, found in enumerate(ids):
        matrix[row, : len(found)] = found
    return torch.from_numpy(matrix)
