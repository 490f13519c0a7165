"""The index of images (METHOD 2): nearest neighbours by cosine, and what the caption of every indexed image mentions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
import pyarrow as pa

from curation import storage
from curation.errors import CurationError


@dataclass(frozen=True)
class Mentions:
    """C(y_j) and t_c · f(x_j) for every indexed image j, as CSR arrays.

    The similarity of an image to its own caption's concepts does not depend on the anchor that retrieves it, so it is
    computed once here and not once for every anchor.
    """

    offsets: np.ndarray  # (N + 1,) int64
    concepts: np.ndarray  # (P,) int32
    similarities: np.ndarray  # (P,) float32

    def __len__(self) -> int:
        """N, the number of indexed images."""
        return len(self.offsets) - 1


def factory_string(index: str) -> str:
    """The FAISS factory string of ``retrieval.index``: ``auto`` is the exact flat index."""
    return "Flat" if index == "auto" else index


def build_index(
    blocks: Callable[[], Iterable[np.ndarray]], rows: int, dimension: int, factory: str, train_sample: int
) -> faiss.Index:
    """A FAISS inner-product index over unit vectors; position = row.

    ``blocks()`` yields the (n, D) float32 blocks of the data, in order, and may be called twice: an index that needs
    training is trained on ``train_sample`` random rows first. Raises CurationError when FAISS rejects the factory string
    or there are too few rows to train it.
    """
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(_random_rows(blocks(), rows, train_sample))
        for block in blocks():
            index.add(block)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].split("Error: ")[-1]
        raise CurationError(
            f"retrieval.index: FAISS cannot build {factory} over {rows} vectors of {dimension} dimensions: {reason}"
        ) from None
    return index


def _random_rows(blocks: Iterable[np.ndarray], rows: int, size: int) -> np.ndarray:
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(size, rows), replace=False))
    parts, start = [], 0
    for block in blocks:
        first, last = np.searchsorted(chosen, [start, start + len(block)])
        parts.append(block[chosen[first:last] - start])
        start += len(block)
    return np.concatenate(parts)


def set_search(index: faiss.Index, search: str | None) -> None:
    """Set FAISS search parameters ("nprobe=32"); without any, an IVF index probes a sixteenth of its lists.

    Raises CurationError when FAISS does not know a parameter for this index.
    """
    if search is None:
        inverted = faiss.try_extract_index_ivf(index)
        if inverted is None:
            return
        search = f"nprobe={max(1, inverted.nlist // 16)}"
    try:
        if re.search(r"nprobe=0*(,|$)", search):
            raise RuntimeError("nprobe must be at least 1")
        faiss.ParameterSpace().set_index_parameters(index, search)
    except RuntimeError as error:
        raise CurationError(
            f"retrieval.search: {search!r} does not fit the index ({str(error).splitlines()[-1]})"
        ) from None


def write_index(index: faiss.Index, path: str) -> None:
    """Write a FAISS index; it appears whole or not at all."""
    with storage.atomic_path(path) as local:
        faiss.write_index(index, local)


@lru_cache(maxsize=2)
def _open(path: str, version: str, search: str | None) -> faiss.Index:
    reason = ""
    for flags in (faiss.IO_FLAG_MMAP_IFC, 0):  # some kinds of index cannot be mapped
        try:
            index = faiss.read_index(storage.local_path(path), flags)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
        else:
            set_search(index, search)
            return index
    raise CurationError(f"{path}: FAISS cannot read it ({reason}); delete it and run again")


def open_index(path: str, search: str | None = None, size: int | None = None) -> faiss.Index:
    """A searchable index, kept open for the life of the process.

    Memory-mapped, so that the worker processes of one machine share a single copy of the vectors. ``size``: bytes that
    the file must have; FAISS itself may crash on a truncated one. Raises CurationError for a damaged file.
    """
    version = storage.version(path)
    if size is not None and version["size"] != size:
        raise CurationError(f"{path}: has {version['size']} bytes, not {size}; delete it and run again")
    return _open(path, str(version), search)


def nearest(
    index: faiss.Index, queries: np.ndarray, anchors: np.ndarray, neighbors: int, include_anchor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours R_i of a block of anchors, and their cosines (METHOD 2).

    queries (B, D): unit rows; anchors (B,) int64: the anchors' own rows in the index, -1 where it does not hold them.
    Returns ids (B, L) int64, -1 where there are fewer than L, and cosines (B, L) float32.
    """
    # One more than L where the anchor is to be dropped from the answer.
    cosines, ids = index.search(np.ascontiguousarray(queries, dtype=np.float32), neighbors + (not include_anchor))
    return choose_neighbours(ids, cosines, anchors, neighbors, include_anchor)


def choose_neighbours(
    ids: np.ndarray, cosines: np.ndarray, anchors: np.ndarray, neighbors: int, include_anchor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Order search results: the anchor first or left out, then descending cosine, ties by id, -1 last.

    An anchor that the index holds is its own first neighbour even when more than L copies of it tie with it. Shapes as
    in :func:`nearest`, with K columns in, K >= L (K > L to leave the anchor out).
    """
    held = anchors >= 0
    own = (ids == anchors[:, None]) & held[:, None]  # -1 is no anchor
    if include_anchor:
        missing = held & ~own.any(axis=1)
        ids, cosines = ids.copy(), cosines.copy()
        ids[missing, -1], cosines[missing, -1] = anchors[missing], 1.0
        own = (ids == anchors[:, None]) & held[:, None]
    rank = np.where(ids < 0, np.inf, -cosines)
    rank[own] = -np.inf if include_anchor else np.inf
    order = np.lexsort((ids, rank), axis=1)
    ids, cosines, own = (np.take_along_axis(values, order, axis=1) for values in (ids, cosines, own))
    if not include_anchor:
        ids = np.where(own, -1, ids)
    return ids[:, :neighbors].astype(np.int64), np.where(ids < 0, 0, cosines)[:, :neighbors].astype(np.float32)


# --- mentions on disk --------------------------------------------------------------------------------------------------


def write_mentions(mentions: Mentions, path: str) -> None:
    """Write mentions as one Arrow IPC record batch, which :func:`open_mentions` maps without reading it."""
    columns = {
        "concepts": pa.LargeListArray.from_arrays(mentions.offsets, pa.array(mentions.concepts, pa.int32())),
        "similarities": pa.LargeListArray.from_arrays(mentions.offsets, pa.array(mentions.similarities, pa.float32())),
    }
    batch = pa.record_batch(columns)
    with storage.atomic_write(path) as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def open_mentions(path: str) -> Mentions:
    """Map a file of :func:`write_mentions` into memory, kept open for the life of the process."""
    return _open_mentions(path, str(storage.version(path)))


@lru_cache(maxsize=2)
def _open_mentions(path: str, version: str) -> Mentions:
    try:
        batch = pa.ipc.open_file(pa.memory_map(storage.local_path(path))).get_batch(0)
    except pa.ArrowInvalid as error:
        raise CurationError(f"{path}: not a whole Arrow file ({error}); delete it and run again") from None
    concepts, similarities = batch.column(0), batch.column(1)
    return Mentions(concepts.offsets.to_numpy(), concepts.values.to_numpy(), similarities.values.to_numpy())
