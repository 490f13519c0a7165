"""The concepts of a table of archives as one flat list: some of them left out, or one row each; archives by concept."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.parquet import entry_fields
from curation.base.errors import CocuError
from curation.base.ragged import Ragged


@dataclass(frozen=True)
class Filter:
    """Which concepts of an archive count.

    Attributes:
        score: the least score; what scores mean depends on the ranking of the run.
        support: the fewest retrieved captions that mention the concept.
        top: how many concepts an archive keeps, the best ones of those that the other conditions leave.
        omitted: only concepts that the caption does not mention.
        distinct: no concepts of images that are near-identical to another one, and no training on them.
    """

    score: float = -math.inf
    support: int = 0
    top: int | None = None
    omitted: bool = False
    distinct: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if math.isnan(self.score):
            raise CocuError("filter.score: nan is not a number")
        if self.support < 0:
            raise CocuError(f"filter.support: {self.support} must be at least 0")
        if self.top is not None and self.top < 1:
            raise CocuError(f"filter.top: {self.top} must be at least 1")

    def passes(self, archives: Ragged, score: np.ndarray, support: np.ndarray, omitted: np.ndarray) -> np.ndarray:
        """Which of P entries pass: bool (P,).

        archives: N lists of entries, in descending score; score, support (P,); omitted (P,) bool: the caption does not
        mention the concept.
        """
        passes = (score >= self.score) & (support >= self.support)
        if self.omitted:
            passes &= omitted
        if self.top is not None:
            passing = np.flatnonzero(passes)
            passes[passing[archives.where(passes).positions >= self.top]] = False
        return passes


@dataclass(frozen=True)
class Holding:
    """The archives that hold one of these concepts, at least; the others are left out, unlike by a :class:`Filter`."""

    concepts: tuple[str, ...]

    def holds(self, table: pa.Table) -> np.ndarray:
        """Which archives of a table stay: bool (N,)."""
        archives, structs = entries(table)
        names = structs.field("concept")
        wanted = pc.is_in(names.dictionary, pa.array(self.concepts, pa.string())).to_numpy(zero_copy_only=False)
        owners = archives.owners[wanted[names.indices.to_numpy()]]
        return np.bincount(owners, minlength=table.num_rows) > 0


def entries(table: pa.Table) -> tuple[Ragged, pa.StructArray]:
    """The concepts of all archives, one after another, P structs; and N lists of their numbers, 0 to P - 1."""
    column = one_chunk(table["concepts"])
    structs = column.flatten()
    offsets = column.offsets.to_numpy().astype(np.int64)
    offsets = offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)
    return Ragged(offsets, np.arange(len(structs))), structs


def duplicates_in(table: pa.Table) -> np.ndarray:
    """Which archives (N,) are of images that another one represents: bool; none where all images count."""
    if "duplicate_of" not in table.column_names:
        return np.zeros(len(table), bool)
    return table["duplicate_of"].is_valid().to_numpy()


def keep(table: pa.Table, mask: np.ndarray) -> pa.Table:
    """The archives without the entries where ``mask`` (P,) is false; an archive may become empty."""
    archives, structs = entries(table)
    offsets = pa.array(archives.where(mask).offsets, pa.int32())
    lists = pa.ListArray.from_arrays(offsets, structs.filter(pa.array(mask)))
    return table.set_column(
        table.schema.get_field_index("concepts"), "concepts", lists.cast(table.schema.field("concepts").type)
    )


def flatten(table: pa.Table) -> pa.Table:
    """One row for every concept of every archive: key, caption, concept, score, global, local, cluster, support; and
    sources, where images may have several captions."""
    archives, structs = entries(table)
    owners = pa.array(archives.owners)
    columns = {name: pc.take(table[name], owners) for name in ("key", "caption")}
    return pa.table(columns | {field.name: structs.field(field.name) for field in entry_fields(table.schema)})


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """One array of all chunks; their dictionaries become one."""
    return pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
