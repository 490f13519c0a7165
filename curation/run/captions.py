"""The captions of a block of rows, one a row or several, with what they mention and which fields they came from.

The fields of ``captions`` are bits: bit k of a row's, or a concept's, ``sources`` is the k-th field of the configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.captions import Caption
from curation.archive.parquet import CAPTION
from curation.base.errors import CocuError
from curation.base.ragged import Ragged
from curation.concepts import Matcher, unite
from curation.config import CurationConfig

# N lists of concept ids; and (P,) int32: the sources of each, where these are known.
Mentioned = tuple[Ragged, np.ndarray | None]


def caption_column(config: CurationConfig) -> str:
    """The column of ``embeddings/<shard>.parquet`` that has all captions of a run."""
    return "captions" if config.captions else "caption"


@dataclass(frozen=True)
class BlockCaptions:
    """All captions of a block of B rows: C of them, those of a row one after another."""

    texts: list[str]
    lengths: np.ndarray  # (B,) int64: how many each row has
    sources: np.ndarray | None  # (C,) int32, where a row may have several

    @property
    def rows(self) -> np.ndarray:
        """The row of each caption, (C,) int64."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    def mentioned(self, matcher: Matcher, nouns: Sequence[Any] | None = None) -> Mentioned:
        """The concepts that the captions of each row mention together, and whose captions mention each.

        nouns: of each row, positions of the nouns of its caption, or a list of such lists where it may have several.
        """
        if self.sources is None:
            return matcher.match_all(self.texts, nouns), None
        flat = None if nouns is None else list(chain.from_iterable(nouns))
        return unite(matcher.match_all(self.texts, flat), self.rows, self.sources, len(self.lengths))


def block_captions(block: pa.RecordBatch | pa.Table, config: CurationConfig) -> BlockCaptions:
    """The captions of rows of an embeddings file, by the configuration of the run that wrote it."""
    if not config.captions:
        texts = block["caption"].to_pylist()
        return BlockCaptions(texts, np.ones(len(texts), np.int64), None)

    column = block["captions"]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    captions = column.flatten()
    lists = pc.struct_field(captions, "sources")
    bits = pc.index_in(lists.flatten(), value_set=pa.array(config.caption_sources, pa.string()))
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False)
    if bits.null_count or (lengths < 1).any():
        raise CocuError("embeddings: captions of fields that the run does not have; run cocu curate again")
    sources = np.zeros(len(captions), np.int32)
    if len(captions):
        starts = np.cumsum(lengths) - lengths
        sources = np.bitwise_or.reduceat(np.left_shift(1, bits.to_numpy()).astype(np.int32), starts)
    sizes = pc.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
    return BlockCaptions(pc.struct_field(captions, "text").to_pylist(), sizes, sources)


def caption_array(captions: Sequence[Sequence[Caption]]) -> pa.Array:
    """The column ``captions`` of rows that have several."""
    rows = [[caption._asdict() for caption in row] for row in captions]
    return pa.array(rows, pa.list_(CAPTION))


def source_names(sources: np.ndarray, names: Sequence[str]) -> pa.ListArray:
    """The names of sources (P,) int32 given as bits: P lists of strings, in the order of ``names``."""
    distinct, inverse = np.unique(sources, return_inverse=True)
    lists = [[name for bit, name in enumerate(names) if bits >> bit & 1] for bits in distinct.tolist()]
    return pa.array(lists, pa.list_(pa.string())).take(pa.array(inverse))
