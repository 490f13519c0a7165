"""Lists of unequal lengths as two arrays (compressed sparse rows): where each list begins, and the values of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """B lists, one after another: list ``b`` is ``values[offsets[b] : offsets[b + 1]]``.

    >>> lists = Ragged.from_lists([[7, 8], [], [9]])
    >>> lists.offsets.tolist(), lists.owners.tolist(), lists.positions.tolist()
    ([0, 2, 2, 3], [0, 0, 2], [0, 1, 0])
    """

    offsets: np.ndarray  # (B + 1,) int64, from 0
    values: np.ndarray  # (P,) of any type

    @classmethod
    def from_lengths(cls, lengths: np.ndarray, values: np.ndarray) -> Ragged:
        """Lists of these lengths (B,), whose values (P,) follow one another."""
        offsets = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        return cls(offsets, values)

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[Any]], dtype: Any = np.int64) -> Ragged:
        """Lists from Python's."""
        lengths = np.array([len(items) for items in lists], np.int64)
        return cls.from_lengths(lengths, np.fromiter(chain.from_iterable(lists), dtype, lengths.sum()))

    @classmethod
    def from_arrow(cls, column: Any) -> Ragged:
        """Lists from an Arrow list array, which may be a slice of another."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        return cls(offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64), column.flatten().to_numpy())

    @classmethod
    def concatenate(cls, parts: Iterable[Ragged]) -> Ragged:
        """The lists of all parts, of which there is at least one, one part after another."""
        parts = list(parts)
        return cls.from_lengths(
            np.concatenate([part.lengths for part in parts]), np.concatenate([part.values for part in parts])
        )

    def __len__(self) -> int:
        """B, the number of lists."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The length of every list, (B,) int64."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The list that each value belongs to, (P,) int64."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def positions(self) -> np.ndarray:
        """The position of each value within its list, (P,) int64."""
        return np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)

    def with_values(self, values: np.ndarray) -> Ragged:
        """Lists of the same lengths with other values (P,)."""
        return Ragged(self.offsets, values)

    def slice(self, start: int, stop: int) -> Ragged:
        """Lists ``start`` to ``stop`` (exclusive)."""
        offsets = self.offsets[start : stop + 1]
        return Ragged(offsets - offsets[0], self.values[offsets[0] : offsets[-1]])

    def gather(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the values of chosen lists stand: indices (Q,) int64 into ``values``, and lengths (R,) of those lists.

        rows (R,): any lists in any order; one may be chosen twice.
        """
        starts = self.offsets[rows].astype(np.int64)
        lengths = self.offsets[rows + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total) + np.repeat(starts - (ends - lengths), lengths), lengths

    def take(self, rows: np.ndarray) -> Ragged:
        """The chosen lists, in the order of rows (R,)."""
        indices, lengths = self.gather(rows)
        return Ragged.from_lengths(lengths, self.values[indices])

    def where(self, mask: np.ndarray) -> Ragged:
        """The same lists without the values where ``mask`` (P,) is false; a list may become empty."""
        return Ragged.from_lengths(np.bincount(self.owners[mask], minlength=len(self)), self.values[mask])

    def pairs(self, width: int) -> np.ndarray:
        """Every (list, value) as one number, (P,) int64: list * width + value, for values from 0 to width - 1."""
        return self.owners * width + self.values


def is_in(lists: Ragged, others: Ragged) -> np.ndarray:
    """Which values of each list are also in the other list of the same row: bool (P,). Values: integers from 0.

    >>> is_in(Ragged.from_lists([[1, 2], [1]]), Ragged.from_lists([[2], []])).tolist()
    [False, True, False]
    """
    width = int(max(lists.values.max(initial=0), others.values.max(initial=0))) + 1
    return np.isin(lists.pairs(width), others.pairs(width))
