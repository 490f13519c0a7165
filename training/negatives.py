"""Which prompts of a batch count against an image: all others, as published, or only those outside its archive.

A prompt drawn for one image may well be true of another: of a hundred pictures, twenty show grass. Contrast with all
prompts teaches that grass is wrong nineteen times for each time that it is right. What an archive holds is a good guess at
what must not be held against its image; that it holds some wrong concepts too costs some negatives, those of concepts that
are easily confused, unless a filter keeps to what is likely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.archive import ConceptArchive, ShardArchives

NONE = -1  # in place of a concept


@dataclass(frozen=True)
class Negatives:
    """A way to choose which prompts count against an image.

    Attributes:
        sentence: what ``--help`` says of it.
        held: from an archive, whose filter is ``data.excused``, and the name of a shard, the concepts of each sample whose
            prompts do not count against it; None where all prompts do.
    """

    sentence: str
    held: Callable[[ConceptArchive, str], ShardArchives] | None = None


# The values of data.negatives; adding one here is all that configuration, errors and --help need.
NEGATIVES = {
    "all": Negatives("every prompt of another sample, as published"),
    "outside": Negatives(
        "only prompts about concepts that the image's archive does not hold (whatever data.filter; data.excused is which "
        "of them), so that what the image may show is not denied",
        ConceptArchive.read,
    ),
}


# --- concepts of samples and of batches -----------------------------------------------------------------------------------


class SampleConcepts(NamedTuple):
    """What the prompts of a sample are about, and what does not count against it: ids of :func:`concept_ids`."""

    drawn: np.ndarray  # (M,) int64; NONE for a prompt that is no concept's
    held: np.ndarray  # (A,) int64


class Concepts(NamedTuple):
    """What the prompts of B samples are about, and what does not count against each: ids of :func:`concept_ids`."""

    drawn: Tensor  # (B, M) int64; NONE for a prompt that is no concept's
    held: Tensor  # (B, A) int64; NONE fills up


@lru_cache(maxsize=1 << 20)
def concept_id(name: str) -> int:
    """A number for a concept that is the same in every vocabulary: 62 bits of a hash."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 2


def concept_ids(names: Sequence[str]) -> np.ndarray:
    """Numbers (V,) int64 of concepts, and NONE behind them, so that position -1 is NONE."""
    return np.array([*map(concept_id, names), NONE], np.int64)


def stack(samples: Sequence[SampleConcepts]) -> Concepts:
    """The concepts of a batch from those of its samples; what was drawn for a sample does not count against it either."""
    held = filled([np.concatenate(sample) for sample in samples])  # (B, A)
    return Concepts(filled([sample.drawn for sample in samples]), held)


def filled(rows: Sequence[np.ndarray]) -> Tensor:
    """B rows of ids as a matrix (B, longest), int64; NONE fills up."""
    matrix = np.full((len(rows), max(map(len, rows))), NONE, np.int64)
    for line, ids in zip(matrix, rows, strict=True):
        line[: len(ids)] = ids
    return torch.from_numpy(matrix)


def excused(held: Tensor, drawn: Tensor) -> Tensor:
    """Which of P prompts do not count against each of B images: bool (B, P), those of concepts that the image holds.

    held (B, A), drawn (P,): concept ids. In memory and time of B·(A + P), whatever the size of the vocabulary.

    >>> excused(torch.tensor([[3, 5], [4, NONE]]), torch.tensor([5, 4, NONE]))
    tensor([[ True, False, False],
            [False,  True, False]])
    """
    # Equal concepts share the position of the first of them in ascending order. Shapes do not depend on values, as they
    # would with the distinct concepts: a GPU would have to tell the host how many there are.
    concepts = drawn.sort().values  # (P,)
    column = torch.searchsorted(concepts, drawn)  # (P,)
    position = torch.searchsorted(concepts, held).clamp(max=len(concepts) - 1)  # (B, A)
    matches = (concepts[position] == held) & (held != NONE)  # (B, A)

    holds = torch.zeros(len(held), len(concepts) + 1, dtype=torch.bool, device=held.device)  # the last: of no match
    holds.scatter_(1, torch.where(matches, position, len(concepts)), True)  # (B, P + 1)
    return holds.index_select(1, column)  # (B, P)
