"""Texts as token ids: CLIP's byte pair encoding, and the texts of a batch in two matrices, short ones and long ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

START_OF_TEXT, END_OF_TEXT = 49406, 49407  # the largest ids
CACHED = 1 << 16  # texts whose ids are kept; some 30 MB


class Texts(NamedTuple):
    """T texts as token ids, in two matrices so that short ones are not padded to the length of long ones."""

    short: Tensor  # (S, L_short) int64; (0, 0) where all texts are of one length
    long: Tensor  # (T - S, L_long) int64
    rows: Tensor  # (T,) int64: the row of each text in the two matrices, one below the other

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """Those of the two that have rows."""
        return tuple(matrix for matrix in (self.short, self.long) if len(matrix))


def arrange(texts: Sequence[str], context: int) -> Texts:
    """Token ids of T >= 1 texts, cut to ``context``; zeros follow END_OF_TEXT.

    >>> texts = arrange(["grass", "a red fox on a rock", "sky"], context=77)
    >>> texts.short.shape, texts.long.shape, texts.rows.tolist()
    (torch.Size([2, 3]), torch.Size([1, 8]), [0, 2, 1])
    """
    ids = [token_ids(text, context) for text in texts]
    lengths = np.array([len(row) for row in ids])  # (T,)
    order = np.argsort(lengths, kind="stable")  # (T,): the text of each row

    cut = number_of_short(lengths[order])
    short = _padded([ids[text] for text in order[:cut]])
    long = _padded([ids[text] for text in order[cut:]])
    return Texts(short, long, torch.from_numpy(np.argsort(order)))


def number_of_short(lengths: np.ndarray) -> int:
    """How many of T texts of ascending ``lengths`` (T,) to put into a matrix of their own, so that it takes the fewest ids.

    A matrix has as many ids as it has rows, times the length of its longest text.

    >>> number_of_short(np.array([3, 3, 4, 9]))
    3
    """
    counts = np.arange(len(lengths) + 1)  # 0, 1, ..., T short texts
    return int((counts * np.append(0, lengths) + counts[::-1] * lengths[-1]).argmin())


def _padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Token ids (R, L) int64 of R rows in ascending length; zeros fill up."""
    matrix = np.zeros((len(rows), len(rows[-1]) if rows else 0), np.int64)
    for padded, row in zip(matrix, rows, strict=True):
        padded[: len(row)] = row
    return torch.from_numpy(matrix)


@lru_cache(maxsize=CACHED)
def token_ids(text: str, context: int) -> np.ndarray:
    """Token ids (L,) int32 of a text, from START_OF_TEXT to END_OF_TEXT, cut to ``context``."""
    return tokenize([text], context)[0].numpy().astype(np.int32)


def tokenize(texts: Sequence[str], context: int = 77) -> Tensor:
    """Token ids (T, L), int64, of texts: as long as the longest, at most ``context``; a longer text is cut.

    What follows END_OF_TEXT never matters to the text tower, so the padding (zeros) is no longer than it must be.

    >>> tokenize(["a photo of a cat"]).tolist()
    [[49406, 320, 1125, 539, 320, 2368, 49407]]
    """
    if not texts:
        return torch.zeros((0, 1), dtype=torch.long)
    ids = tokenizer()(list(texts), context_length=context)  # (T, context)
    return ids[:, : int((ids == END_OF_TEXT).int().argmax(1).max()) + 1]


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    """CLIP's byte pair encoding, from open_clip's package. Loaded on first use: importing open_clip takes seconds."""
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()
