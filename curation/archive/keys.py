"""Where the archive of a key lies: first what the footers of the files say, then the key columns that are in question."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.base.errors import CocuError
from curation.base.parquet import open_parquet

READERS = 16  # Parquet footers read at once: remote ones take long one by one


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


def locate(keys: list[str], footers: list[Footer], column: Callable[[int], pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Shard and row of each of K keys, (K,) int64 each; -1 where no shard has the key; the first shard that has it counts.

    footers: of all shards, in order; column: reads the key column of a shard, which is done for those in question only.
    """
    wanted = pa.array(keys, pa.string())
    shards, rows = np.full(len(keys), -1), np.full(len(keys), -1)
    for shard, footer in enumerate(footers):
        unresolved = np.flatnonzero((shards < 0) & footer.may_hold(wanted).to_numpy(zero_copy_only=False))
        if len(unresolved) == 0:
            continue
        position = pc.index_in(wanted.take(pa.array(unresolved)), column(shard)).fill_null(-1).to_numpy()
        shards[unresolved[position >= 0]] = shard
        rows[unresolved] = position
    return shards, rows
