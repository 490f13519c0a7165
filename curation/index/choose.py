"""Which index for n vectors in so much memory: a pure function, so that it can be tested as a table."""

from __future__ import annotations

import math
from typing import NamedTuple

from curation.base.errors import CocuError

EXACT_UP_TO = {False: 200_000, True: 4_000_000}  # rows whose all-pairs search takes minutes, by "on a GPU"
TRAINING_ROWS = 40  # vectors in the training sample for each list
LEAST_ROWS = 39  # vectors for each list, below which FAISS warns that the index cannot be trained well
WORKING = 256 << 20  # most bytes of a worker's blocks and buffers


class Codec(NamedTuple):
    """How the vectors of an inverted list are stored."""

    suffix: str
    bytes_each: float  # for each dimension
    ceiling: float  # recall with every list probed; measured on clustered vectors of 512 dimensions


CODECS = (Codec("Flat", 4, 1.0), Codec("SQfp16", 2, 1.0), Codec("SQ8", 1, 0.99), Codec("SQ4", 0.5, 0.9))


class IndexChoice(NamedTuple):
    """An index: its FAISS factory string, search parameters to start from, and memory in bytes while it is built."""

    factory: str
    search: str | None
    bytes: int


def choose_index(
    rows: int, dimension: int, memory: int, recall: float, gpu: bool = False, graph: bool = False
) -> IndexChoice:
    """The most accurate index for ``rows`` vectors that fits into ``memory`` bytes and can reach ``recall``.

    Exact search up to EXACT_UP_TO rows, or where recall is 1; else inverted lists, with vectors as fine as memory allows.
    For a graph of all neighbours half as many: so many queries at once make up for longer lists.
    Raises CocuError with the bytes that are needed when nothing fits.

    >>> choose_index(1_000_000, 512, 2 << 30, recall=0.95).factory
    'IVF4096,SQfp16'
    """
    vectors = 4 * rows * dimension
    working = min(2 * vectors, WORKING)  # few vectors make small blocks
    exact = IndexChoice("Flat", None, vectors + working)
    lists = list_count(rows) // (2 if graph else 1)
    inverted = [
        IndexChoice(
            f"IVF{lists},{codec.suffix}",
            f"nprobe={max(1, lists // 32)}",
            index_bytes(rows, dimension, lists, codec.bytes_each) + working,
        )
        for codec in CODECS
        if codec.ceiling >= recall
    ]

    if (
        recall == 1 or rows < LEAST_ROWS * lists
    ):  # a few hundred vectors cannot train an index, and are small in any form
        choices = [exact]
    elif rows <= EXACT_UP_TO[gpu]:
        choices = [exact, *inverted]
    else:
        choices = inverted

    for choice in choices:
        if choice.bytes <= memory:
            return choice
    least = min(choices, key=lambda choice: choice.bytes)
    raise CocuError(
        f"retrieval.memory: {rows:,} vectors of {dimension} dimensions need {least.bytes} bytes "
        f"({least.bytes / 2**30:.1f}G, {least.factory}) for a recall of {recall}, but it allows {memory}; "
        "raise it, or lower retrieval.recall"
    )


def list_count(rows: int) -> int:
    """Inverted lists for so many vectors: the power of two next to 4 sqrt(n), at least 64."""
    return max(64, 1 << round(math.log2(4 * math.sqrt(max(rows, 1)))))


def index_bytes(rows: int, dimension: int, lists: int, bytes_each: float) -> int:
    """Bytes of an index of inverted lists: codes, ids and centroids; or its training sample, where that is more."""
    filled = rows * (math.ceil(bytes_each * dimension) + 8)
    sample = 4 * min(rows, TRAINING_ROWS * lists) * dimension
    return max(filled, sample) + 4 * lists * dimension
