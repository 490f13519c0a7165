"""Which samples of one download are which of another, by address or by content: never a wrong one, rather none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.identity import IDENTITIES

NONE, OTHER_CAPTION, AMBIGUOUS, CHANGED, UNUSABLE = -1, -2, -3, -4, -5  # in place of a row
REASONS = {
    NONE: "is not among the archives",
    OTHER_CAPTION: "is among the archives with another caption only",
    AMBIGUOUS: "is several of the archives, all with its caption",
    CHANGED: "has the address of an archive, but is another picture now",
    UNUSABLE: "has no picture or no caption",
}


class Match(NamedTuple):
    """What each of N samples is."""

    rows: np.ndarray  # (N,) int64: a row of the other download, or one of REASONS
    by: np.ndarray  # (N,) int64: the number of the identity that found it, of IDENTITIES; -1 for none


def match(new: pa.Table, old: pa.Table, by: Sequence[str] = IDENTITIES, any_caption: bool = False) -> Match:
    """Find N samples among M others; both tables have the columns of :data:`curation.archive.identity.SCHEMA`.

    Identities are tried in turn, each for the samples that those before have not found. A row counts if it has the same
    identity and, unless ``any_caption``, the same caption, and if no other row has both. One that is found by its address
    is refused where both know the hash of what was fetched and the hashes differ.
    """
    usable = new["caption"].is_valid().to_numpy()
    rows = np.where(usable, NONE, UNUSABLE)
    found_by = np.full(new.num_rows, -1)
    texts = _codes(new["caption"], old["caption"])
    width = max(column.max(initial=0) for column in texts) + 1
    hashes = _codes(new["original"], old["original"])
    for name in by:
        open_ = np.flatnonzero((rows < 0) & (rows != CHANGED) & (rows != UNUSABLE))
        codes, others = _codes(new[name], old[name])
        alike = _only(codes[open_], others)
        if not any_caption:
            exact = _only(_pairs(codes, texts[0], width)[open_], _pairs(others, texts[1], width))
            alike = np.where((exact == NONE) & (alike != NONE), OTHER_CAPTION, exact)

        if name == "url":
            known = (alike >= 0) & (hashes[0][open_] >= 0)
            known[known] = hashes[1][alike[known]] >= 0
            differs = np.zeros(len(alike), bool)
            differs[known] = hashes[0][open_][known] != hashes[1][alike[known]]
            alike = np.where(differs, CHANGED, alike)
        rows[open_] = np.where(alike == NONE, rows[open_], alike)
        found_by[open_[alike >= 0]] = IDENTITIES.index(name)
    return Match(rows, found_by)


def _codes(new: pa.ChunkedArray, old: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Equal numbers for equal texts of both columns, (N,) and (M,) int64; -1 for null."""
    both = pa.concat_arrays([column.cast(pa.string()).combine_chunks() for column in (new, old)])
    codes = pc.dictionary_encode(both).indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes[: len(new)], codes[len(new) :]


def _pairs(one: np.ndarray, other: np.ndarray, width: int) -> np.ndarray:
    """A number for each pair of numbers, the second of which is below ``width``; -1 where the first is."""
    return np.where(one < 0, -1, one * width + other)


def _only(codes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of the codes (N,) the position of the only equal one of the others (M,); NONE, or AMBIGUOUS for several."""
    order = np.argsort(others, kind="stable")
    first = np.searchsorted(others[order], codes, side="left")
    count = np.searchsorted(others[order], codes, side="right") - first
    position = order[np.minimum(first, len(order) - 1)] if len(order) else np.zeros(len(codes), np.int64)
    return np.where((count == 0) | (codes < 0), NONE, np.where(count == 1, position, AMBIGUOUS))
