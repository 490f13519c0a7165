"""The concepts of a table of archives as one flat list: some of them left out, or one row each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.parquet import CONCEPT
from curation.base.errors import CocuError
from curation.base.ragged import row_numbers


@dataclass(frozen=True)
class Filter:
    """Which concepts of an archive count.

    Attributes:
        score: the least score; what scores mean depends on the ranking of the run.
        support: the fewest retrieved captions that mention the concept.
        top: how many concepts an archive keeps, the best ones of those that the other conditions leave.
        omitted: only concepts that the caption does not mention.
    """

    score: float = -math.inf
    support: int = 0
    top: int | None = None
    omitted: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        if math.isnan(self.score):
            raise CocuError("filter.score: nan is not a number")
        if self.support < 0:
            raise CocuError(f"filter.support: {self.support} must be at least 0")
        if self.top is not None and self.top < 1:
            raise CocuError(f"filter.top: {self.top} must be at least 1")

    def kept(self, offsets: np.ndarray, score: np.ndarray, support: np.ndarray, omitted: np.ndarray) -> np.ndarray:
        """Which of P entries are kept: bool (P,).

        offsets (N + 1,): the archives as CSR, in descending score; score, support (P,); omitted (P,) bool: the caption does
        not mention the concept.
        """
        kept = (score >= self.score) & (support >= self.support)
        if self.omitted:
            kept &= omitted
        if self.top is not None:
            before = np.concatenate([[0], np.cumsum(kept)])  # kept entries before each one
            lengths = np.diff(offsets)
            kept &= before[:-1] - np.repeat(before[offsets[:-1]], lengths) < self.top
        return kept


def entries(table: pa.Table) -> tuple[np.ndarray, pa.StructArray]:
    """Where each archive begins, (N + 1,) int64, and the concepts of all of them, one after another (P,)."""
    lists = whole(table["concepts"])
    return offsets_of(lists), lists.flatten()


def keep(table: pa.Table, mask: np.ndarray) -> pa.Table:
    """The archives without the entries where ``mask`` (P,) is false; an archive may become empty."""
    offsets, flat = entries(table)
    count = np.concatenate([[0], np.cumsum(mask)])
    lists = pa.ListArray.from_arrays(pa.array(count[offsets], pa.int32()), flat.filter(pa.array(mask)))
    return table.set_column(table.schema.get_field_index("concepts"), "concepts", lists.cast(pa.list_(CONCEPT)))


def flatten(table: pa.Table) -> pa.Table:
    """One row for every concept of every archive: key, caption, concept, score, global, local, cluster, support."""
    offsets, flat = entries(table)
    owner = pa.array(row_numbers(offsets))
    columns = {name: pc.take(table[name], owner) for name in ("key", "caption")}
    return pa.table(columns | {field.name: flat.field(field.name) for field in CONCEPT})


def is_omitted(
    offsets: np.ndarray, concepts: np.ndarray, caption_offsets: np.ndarray, caption_concepts: np.ndarray
) -> np.ndarray:
    """Which of P entries are no concept of their caption: bool (P,).

    offsets (N + 1,), concepts (P,): the archives as CSR, concept ids; caption_offsets, caption_concepts: C(y) of the same N
    samples, ids of the same vocabulary.
    """
    width = int(max(concepts.max(initial=0), caption_concepts.max(initial=0))) + 1
    said = row_numbers(caption_offsets) * width + caption_concepts
    return ~np.isin(row_numbers(offsets) * width + concepts, said)


def whole(column: pa.ChunkedArray) -> pa.ListArray:
    """One array of all chunks; their dictionaries become one."""
    return pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)


def offsets_of(lists: pa.ListArray) -> np.ndarray:
    """Where each list begins in ``lists.flatten()``: (N + 1,) int64."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64)
