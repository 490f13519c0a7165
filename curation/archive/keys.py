"""Where the archive of a key lies: first what the footers of the files say, then the key columns that are in question.

A key is unique in its shard, not always in all of them: :func:`repeated_keys` finds those that are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.base.errors import CocuError
from curation.base.parquet import open_parquet

READERS = 16  # Parquet footers read at once: remote ones take long one by one
KEYS_AT_ONCE = 1 << 23  # hashes in memory, of 8 bytes each, while repeated keys are looked for


class Footer(NamedTuple):
    """What is known of a shard's archives without reading them."""

    rows: int
    least: str | None  # the smallest and the largest key; None where the file does not say
    greatest: str | None

    def may_hold(self, keys: pa.Array) -> pa.Array:
        """Which of the keys may be in the shard: bool, as many."""
        if self.least is None or self.greatest is None:
            return pa.array(np.full(len(keys), self.rows > 0))
        return pc.and_(pc.greater_equal(keys, self.least), pc.less_equal(keys, self.greatest))


def read_footer(path: str) -> Footer:
    """The footer of an archive file. Raises CocuError when the file is missing or damaged."""
    with open_parquet(path) as file:
        metadata = file.metadata
        column = _key_column(file, path)
        groups = [metadata.row_group(number).column(column).statistics for number in range(metadata.num_row_groups)]
        if not groups or any(group is None or not group.has_min_max for group in groups):
            return Footer(metadata.num_rows, None, None)
        return Footer(metadata.num_rows, min(group.min for group in groups), max(group.max for group in groups))


def read_footers(paths: Iterable[str]) -> list[Footer]:
    """The footers of many files, in order."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read_footer, paths))


def read_keys(path: str) -> pa.Array:
    """The keys of a shard, in the order of the tar."""
    with open_parquet(path, mapped=True) as file:
        _key_column(file, path)
        return file.read(["key"])["key"].cast(pa.string()).combine_chunks()


def _key_column(file: pq.ParquetFile, path: str) -> int:
    """The number of the column of keys among the leaves of a file. Raises CocuError where it has none."""
    for number in range(len(file.schema)):
        if file.schema.column(number).path == "key":
            return number
    raise CocuError(f"{path}: not a concept archive; it has no column key")


def locate(
    keys: Sequence[str],
    footers: list[Footer],
    column: Callable[[int], pa.Array],
    first: np.ndarray | None = None,
    last: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shard and row of each of K keys, (K,) int64 each; -1 where no shard has the key; the first shard that has it counts.

    footers: of all shards, in order; column: reads the key column of a shard, which is done for those in question only;
    first, last (K,): the shards between which to look for each key (default: all).
    """
    wanted = pa.array(keys, pa.string())
    shards = np.full(len(keys), -1)
    rows = np.full(len(keys), -1)
    for shard, footer in enumerate(footers):
        asked = (shards < 0) & footer.may_hold(wanted).to_numpy(zero_copy_only=False)
        if first is not None:
            asked &= first <= shard
        if last is not None:
            asked &= shard <= last
        unresolved = np.flatnonzero(asked)
        if len(unresolved) == 0:
            continue
        position = pc.index_in(wanted.take(pa.array(unresolved)), column(shard)).fill_null(-1).to_numpy()
        shards[unresolved[position >= 0]] = shard
        rows[unresolved] = position
    return shards, rows


class RepeatedKey(NamedTuple):
    """A key of several shards, with the first two, by number."""

    key: str
    shards: tuple[int, int]


def repeated_keys(
    footers: list[Footer], column: Callable[[int], pa.Array], examples: int = 2, at_once: int = KEYS_AT_ONCE
) -> tuple[int, list[RepeatedKey]]:
    """How many keys occur in more than one shard, and the first few of them.

    Shards whose keys cannot overlap, by their footers, are not read. Of the others, ``at_once`` hashes are in memory at a
    time, so that memory does not grow with the data. footers, column: as for :func:`locate`.
    """
    questionable = _overlapping(footers)
    passes = -(-sum(footers[shard].rows for shard in questionable) // at_once)
    count = 0
    positions: list[tuple[int, int, int]] = []  # of the first ones: shard, row, and the other shard
    for number in range(passes):
        hashes, owners, rows = [], [], []
        for shard in questionable:
            hashed = _hashes(column(shard))
            chosen = np.flatnonzero(hashed % np.uint64(passes) == number)
            hashes.append(hashed[chosen])
            owners.append(np.full(len(chosen), shard, np.int32))
            rows.append(chosen)
        every, owner, row = map(np.concatenate, (hashes, owners, rows))
        order = np.argsort(every, kind="stable")  # shards stay in order
        again = every[order][1:] == every[order][:-1]
        begins = again & np.concatenate([[True], ~again[:-1]])  # a key of three shards counts once
        count += int(begins.sum())
        one, other = order[:-1][begins], order[1:][begins]
        found = zip(owner[one].tolist(), row[one].tolist(), owner[other].tolist(), strict=True)
        positions = sorted([*positions, *found])[:examples]
    return count, [RepeatedKey(column(shard)[row].as_py(), (shard, other)) for shard, row, other in positions]


def _overlapping(footers: list[Footer]) -> list[int]:
    """The shards whose keys, by their footers, may be those of another shard too."""
    unknown = any(footer.rows and (footer.least is None or footer.greatest is None) for footer in footers)
    held = [shard for shard, footer in enumerate(footers) if footer.rows]
    if unknown:
        return held if len(held) > 1 else []

    questionable: set[int] = set()
    reach, holder = "", -1  # the greatest key so far, and the shard that has it
    for shard in sorted(held, key=lambda shard: (footers[shard].least or "", shard)):
        footer = footers[shard]
        if holder >= 0 and (footer.least or "") <= reach:
            questionable |= {holder, shard}
        if holder < 0 or (footer.greatest or "") > reach:
            reach, holder = footer.greatest or "", shard
    return sorted(questionable)


def _hashes(keys: pa.Array) -> np.ndarray:
    """A hash of every key, (N,) uint64: of twelve million, two are equal by accident once in a hundred thousand runs."""
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys.to_pylist())
    return np.frombuffer(b"".join(digests), "<u8")
