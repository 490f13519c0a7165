"""Texts as token ids: each distinct text is tokenised once, and short texts are not padded to the length of long ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from segmenters.groupvit import Texts, tokenize

CACHED = 1 << 16  # texts; some 30 MB
PARTS = 2  # matrices of one lot of texts: three save 4% more tokens, and lose more than that to small matrices


@lru_cache(maxsize=CACHED)
def token_ids(text: str, context: int) -> np.ndarray:
    """Token ids (L,) int32 of a text, from start to END_OF_TEXT, cut to ``context``."""
    return tokenize([text], context)[0].numpy().astype(np.int32)


def arrange(texts: Sequence[str], context: int, parts: int = PARTS) -> Texts:
    """Token ids of T >= 1 texts, in at most ``parts`` matrices of texts of like length; zeros follow END_OF_TEXT."""
    ids = [token_ids(text, context) for text in texts]
    lengths = np.array([len(found) for found in ids])  # (T,)
    order = np.argsort(lengths, kind="stable")  # (T,): the text of each row
    matrices, start = [], 0
    for end in part_ends(lengths[order], parts):
        matrix = np.zeros((end - start, int(lengths[order[end - 1]])), np.int64)
        for row, text in enumerate(order[start:end]):
            matrix[row, : lengths[text]] = ids[text]
        matrices.append(torch.from_numpy(matrix))
        start = end
    return Texts(tuple(matrices), torch.from_numpy(np.argsort(order)))


def part_ends(lengths: np.ndarray, parts: int) -> list[int]:
    """Where to cut ascending ``lengths`` (T,), T >= 1, into at most ``parts`` parts so that the least padding is needed.

    A part costs its number of texts times the length of its last. Returns the ends of the parts, the last of them T.
    """
    longest, counts = np.unique(lengths, return_counts=True)  # (U,): cuts are between different lengths only
    ends = np.concatenate([[0], counts.cumsum()])  # (U + 1,)
    # costs[a, b]: of a part of the lengths from a to b; nothing where it is empty
    costs = np.where(ends[:, None] <= ends, (ends - ends[:, None]) * np.append(0, longest), np.inf)  # (U + 1, U + 1)
    best, before = costs[0], []  # (U + 1,): the least for all lengths up to b, and the end of the part before
    for _ in range(parts - 1):
        totals = best[:, None] + costs
        before.append(totals.argmin(0))
        best = totals.min(0)
    found = [len(longest)]
    for choice in reversed(before):
        found.append(int(choice[found[-1]]))
    return sorted({int(ends[place]) for place in found} - {0})
