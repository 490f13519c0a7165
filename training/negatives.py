"""Which prompts of a batch count against an image: all others, as published, or only those outside its archive.

A prompt drawn for one image may well be true of another: of a hundred pictures, twenty show grass. Contrast with all
prompts teaches that grass is wrong nineteen times for each time that it is right. What an archive holds is a good guess at
what must not be held against its image; that it holds some wrong concepts too only costs some negatives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

NEGATIVES = ("all", "outside")
NONE = -1  # in place of a concept


class Concepts(NamedTuple):
    """What the prompts of B images are about, and what their archives hold: ids of :func:`concept_ids`."""

    drawn: Tensor  # (B, M) int64; NONE for a prompt that is no concept's
    held: Tensor  # (B, A) int64; NONE fills up


@lru_cache(maxsize=1 << 20)
def concept_id(name: str) -> int:
    """A number for a concept that is the same in every vocabulary: 62 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 2


def concept_ids(names: Sequence[str]) -> np.ndarray:
    """Numbers (V,) int64 of concepts, and NONE behind them, so that position -1 is NONE."""
    return np.array([*map(concept_id, names), NONE], np.int64)


def stack(drawn: Sequence[np.ndarray], held: Sequence[np.ndarray]) -> Concepts:
    """The concepts of a batch from those of each sample, drawn (M,) and held (A_i,); what was drawn is held too."""
    all_held = [np.concatenate(parts) for parts in zip(drawn, held, strict=True)]
    filled = np.full((len(held), max(map(len, all_held))), NONE, np.int64)
    for row, ids in zip(filled, all_held, strict=True):
        row[: len(ids)] = ids
    return Concepts(torch.from_numpy(np.stack(drawn)), torch.from_numpy(filled))


def excused(held: Tensor, drawn: Tensor) -> Tensor:
    """Which of P prompts do not count against each of B images: bool (B, P), those of concepts that its archive holds.

    held (B, A), drawn (P,): concept ids. In memory and time of B·(A + P), whatever the size of the vocabulary.
    """
    known, column = drawn.unique(return_inverse=True)  # (U,), (P,)
    place = torch.searchsorted(known, held).clamp(max=len(known) - 1)  # (B, A)
    found = (known[place] == held) & (held != NONE)
    member = torch.zeros(len(held), len(known), dtype=torch.bool, device=held.device)
    member[found.nonzero()[:, 0], place[found]] = True  # (B, U)
    return member.index_select(1, column)
