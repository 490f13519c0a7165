"""Groups of near-identical images of a finished run, the largest first, as reports, pages and exports show them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from curation.archive import ConceptArchive
from curation.base import files
from curation.base.errors import CocuError
from curation.run.indexes import has_duplicates, read_duplicates
from curation.run.run import Run

COLUMNS = ("shard", "key", "kept_shard", "kept_key")


@dataclass(frozen=True)
class Groups:
    """All groups of a run. Rows are those of the index, which follow the shards in order."""

    run: Run

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of duplicates and of their representatives, (P,) int64 each, group by group, ascending."""
        table = read_duplicates(self.run) if has_duplicates(self.run) else None
        if table is None:
            nothing = np.zeros(0, np.int64)
            return nothing, nothing
        rows, first = (table[name].to_numpy() for name in ("row", "representative"))
        order = np.lexsort((rows, first))
        return rows[order], first[order]

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Where each group begins and ends in the pairs, the largest groups first."""
        _, starts, sizes = np.unique(self._pairs[1], return_index=True, return_counts=True)
        order = np.argsort(-sizes, kind="stable")
        return starts[order], starts[order] + sizes[order]

    @property
    def duplicates(self) -> int:
        """Images that another one represents."""
        return len(self._pairs[0])

    def __len__(self) -> int:
        """The number of groups."""
        return len(self._bounds[0])

    def rows(self, number: int) -> list[int]:
        """The rows of a group, its representative first; number 0 is the largest group."""
        start, stop = (int(bounds[number]) for bounds in self._bounds)
        rows, first = self._pairs
        return [int(first[start]), *rows[start:stop].tolist()]


def listed(archive: ConceptArchive) -> Iterator[tuple[str, str, str, str]]:
    """Shard and key of every duplicate, and of the image that is kept in its place.

    Raises CocuError where the run counted all images.
    """
    if "duplicate_of" not in archive.schema.names:
        raise CocuError(f"{archive.folder}: knows of no duplicates; curate with retrieval.duplicates: once")
    for name in archive.shards:
        table = archive.table(name).select(["key", "duplicate_of"])
        for row in table.filter(table["duplicate_of"].is_valid()).to_pylist():
            kept = row["duplicate_of"]
            yield name, row["key"], kept["shard"], kept["key"]


def write_list(archive: ConceptArchive, folder: str) -> int:
    """Write ``duplicates.csv``: what to delete, and what is kept in its place; returns the number of lines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    lines = list(listed(archive))
    writer.writerows(lines)
    with files.atomic_write(files.join(folder, "duplicates.csv")) as stream:
        stream.write(out.getvalue().encode())
    return len(lines)
