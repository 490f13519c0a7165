"""The index of images (METHOD 2): built with FAISS, searched for nearest neighbours by cosine."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import faiss
import numpy as np
import torch

from curation import storage
from curation.encoder import has_fast_bf16
from curation.errors import CurationError
from curation.search import COLUMNS, Lists, search_lists

TRAIN_SEED = 0
MERGED_AT_ONCE = 1 << 28  # bytes of codes


def empty_index(factory: str, dimension: int) -> faiss.Index:
    """A FAISS inner-product index without vectors. Raises CurationError when FAISS rejects the factory string."""
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _rejected(factory, dimension, error) from None
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        index.by_residual = False  # a code is then the vector itself, and our search can read it
    return index


def exact_index(vectors: np.ndarray) -> faiss.Index:
    """The flat index of vectors (n, D) float32 that fit into memory."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def train(index: faiss.Index, sample: np.ndarray, factory: str) -> None:
    """Train an index on a random sample (n, D) float32, where it needs that. Raises CurationError for too few rows."""
    if index.is_trained:
        return
    try:
        index.train(sample)
    except RuntimeError as error:
        raise _rejected(factory, sample.shape[1], error, len(sample)) from None


def _rejected(factory: str, dimension: int, error: RuntimeError, rows: int | None = None) -> CurationError:
    reason = str(error).strip().splitlines()[-1].split("Error: ")[-1]
    over = f" over {rows} vectors" if rows is not None else ""
    return CurationError(f"retrieval.index: FAISS cannot build {factory}{over} of {dimension} dimensions: {reason}")


def sample_rows(rows: int, size: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Random rows to train on, and others held out as queries; both ascending.

    Where there are too few rows for both to be apart, the queries are among those trained on.
    """
    order = np.random.default_rng(TRAIN_SEED).permutation(rows)
    held_out, rest = order[:queries], order[queries:]
    trained = rest[:size] if len(rest) >= size else order[:size]
    return np.sort(trained), np.sort(held_out)


def pick(blocks: Iterable[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Ascending rows (R,) of vectors that come in (n, D) blocks."""
    parts, start = [], 0
    for block in blocks:
        first, last = np.searchsorted(rows, [start, start + len(block)])
        parts.append(block[rows[first:last] - start])
        start += len(block)
    return np.concatenate(parts)


# --- filling an index in parts --------------------------------------------------------------------------------------------


def fills_in_parts(index: faiss.Index) -> bool:
    """Whether vectors can be encoded apart from the index and put into its lists later."""
    inverted = faiss.try_extract_index_ivf(index)
    return inverted is not None and isinstance(
        faiss.downcast_InvertedLists(inverted.invlists), faiss.ArrayInvertedLists
    )


def encode(index: faiss.Index, vectors: np.ndarray) -> np.ndarray:
    """The list number and code of each vector (n, D): (n, bytes) uint8, as FAISS' codecs write them."""
    codes: np.ndarray = index.sa_encode(np.ascontiguousarray(vectors, np.float32))
    return codes


def fill(index: faiss.Index, parts: Callable[[], Iterable[np.ndarray]]) -> None:
    """Put the codes of :func:`encode` into an empty index; position = row. ``parts()`` may be called twice."""
    inverted = faiss.extract_index_ivf(index)
    lists = inverted.invlists
    width = index.sa_code_size() - inverted.code_size  # of the list number
    sizes = np.zeros(inverted.nlist, np.int64)
    for codes in parts():
        sizes += np.bincount(_numbers(codes, width), minlength=inverted.nlist)
    for number in np.flatnonzero(sizes):
        lists.resize(int(number), int(sizes[number]))
    filled, row = np.zeros(inverted.nlist, np.int64), 0
    for codes in _gathered(parts(), MERGED_AT_ONCE):
        numbers = _numbers(codes, width)
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(inverted.nlist + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            chosen = order[bounds[number] : bounds[number + 1]]
            to = slice(filled[number], filled[number] + len(chosen))
            held, ids = list_content(inverted, int(number))
            held[to], ids[to] = codes[chosen, width:], row + chosen
            filled[number] = to.stop
        row += len(codes)
    index.ntotal = inverted.ntotal = row


def _numbers(codes: np.ndarray, width: int) -> np.ndarray:
    """List numbers (n,) int64: the first ``width`` bytes of each code, the lowest byte first."""
    return codes[:, :width].astype(np.int64) @ (1 << 8 * np.arange(width))


def _gathered(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Join small parts into ones of ``size`` bytes or a little more."""
    held: list[np.ndarray] = []
    for part in parts:
        held.append(part)
        if sum(item.nbytes for item in held) >= size:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def list_content(inverted: faiss.IndexIVF, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, bytes) uint8 and ids (n,) int64 of an inverted list: views into the index."""
    lists, size = inverted.invlists, inverted.invlists.list_size(number)
    if not size:
        return np.zeros((0, inverted.code_size), np.uint8), np.zeros(0, np.int64)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * inverted.code_size)
    return codes.reshape(size, -1), faiss.rev_swig_ptr(lists.get_ids(number), size)


# --- searching ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchIndex:
    """An index that is open for searching: ours where its lists can be read, else by FAISS."""

    faiss: faiss.Index
    lists: Lists | None
    bf16: bool
    device: str

    @property
    def rows(self) -> int:
        """Vectors in the index."""
        return int(self.faiss.ntotal)

    def search(self, queries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (B, L) float32, descending, and ids (B, L) int64, -1 for none, of unit queries (B, D)."""
        queries = np.ascontiguousarray(queries, np.float32)
        inverted = faiss.try_extract_index_ivf(self.faiss)
        if self.lists is None:
            cosines, ids = self.faiss.search(queries, size)
            return cosines, ids
        if inverted is None:
            probes = np.broadcast_to(np.arange(self.lists.count), (len(queries), self.lists.count))
        else:
            probes = inverted.quantizer.search(queries, min(inverted.nprobe, inverted.nlist))[1]
        return search_lists(queries, probes, self.lists, size, self.bf16, self.device)


def searchable(index: faiss.Index, device: str = "cpu", bf16: bool | None = None) -> SearchIndex:
    """An index ready for searching on ``device``. ``bf16``: compute products so; by default where a CPU is fast at it."""
    # On GPUs the sums of bf16 products may be rounded too, beyond the margin of our search.
    fast = device == "cpu" and has_fast_bf16(device) if bf16 is None else bf16
    return SearchIndex(index, _lists(index, device, fast), fast, device)


def _lists(index: faiss.Index, device: str, bf16: bool) -> Lists | None:
    if isinstance(index, faiss.IndexFlat):
        if not index.ntotal or (device == "cpu" and not bf16):
            return None  # FAISS' own exact search in fp32 is as fast as matrix products can be
        size = index.ntotal * index.d
        vectors = torch.from_numpy(faiss.rev_swig_ptr(index.get_xb(), size).reshape(-1, index.d))
        ids = np.arange(index.ntotal)

        def chunk(number: int) -> tuple[torch.Tensor, np.ndarray]:
            part = slice(number * COLUMNS, (number + 1) * COLUMNS)
            return vectors[part], ids[part]

        return Lists(-(-index.ntotal // COLUMNS), chunk)
    dtype = _vector_type(index)
    if dtype is None or not fills_in_parts(index):
        return None

    def inverted_list(number: int) -> tuple[torch.Tensor, np.ndarray]:
        codes, ids = list_content(index, number)
        return torch.from_numpy(codes.view(dtype)), ids

    return Lists(index.nlist, inverted_list)


def _vector_type(index: faiss.Index) -> type | None:
    """The type of the vectors that inverted lists hold as they are; None where they are encoded in some other way."""
    if type(index) is faiss.IndexIVFFlat:
        return np.float32
    if isinstance(index, faiss.IndexIVFScalarQuantizer) and not index.by_residual:
        return np.float16 if index.sq.qtype == faiss.ScalarQuantizer.QT_fp16 else None
    return None


def effort(index: faiss.Index) -> tuple[str, int]:
    """The FAISS parameter that trades time for recall, and its largest value; "" where there is none."""
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        return "nprobe", inverted.nlist
    return ("efSearch", 4096) if isinstance(index, faiss.IndexHNSW) else ("", 0)


def set_search(index: faiss.Index, search: str | None) -> None:
    """Set FAISS search parameters ("nprobe=32"), if any.

    Raises CurationError when FAISS does not know a parameter for this index.
    """
    if search is None:
        return
    try:
        if re.search(r"nprobe=0*(,|$)", search):
            raise RuntimeError("nprobe must be at least 1")
        faiss.ParameterSpace().set_index_parameters(index, search)
    except RuntimeError as error:
        raise CurationError(
            f"retrieval.search: {search!r} does not fit the index ({str(error).splitlines()[-1]})"
        ) from None


# --- on disk --------------------------------------------------------------------------------------------------------------


def write_index(index: faiss.Index, path: str) -> None:
    """Write a FAISS index; it appears whole or not at all."""
    with storage.atomic_path(path) as local:
        faiss.write_index(index, local)


@lru_cache(maxsize=2)
def _open(path: str, version: str, search: str | None, device: str) -> SearchIndex:
    reason = ""
    for flags in (faiss.IO_FLAG_MMAP_IFC, 0):  # some kinds of index cannot be mapped
        try:
            index = faiss.read_index(storage.local_path(path), flags)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1]
        else:
            if flags:
                _read_ahead(storage.local_path(path))
            set_search(index, search)
            return searchable(index, device)
    raise CurationError(f"{path}: FAISS cannot read it ({reason}); delete it and run again")


def _read_ahead(path: str) -> None:
    """Let the kernel read a file that FAISS has mapped in large pieces; nothing happens where there is no /proc.

    FAISS asks for single pages, in random order, but our search reads whole lists: five to thirty times slower by pages.
    """
    if not os.path.exists("/proc/self/maps"):
        return
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        mapped = [line.rstrip("\n").split(maxsplit=5) for line in stream]
    for start, end in (fields[0].split("-") for fields in mapped if fields[5:] == [os.path.realpath(path)]):
        size = int(end, 16) - int(start, 16)
        # Only advice: where it is not taken, reading is slow, and right all the same.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(int(start, 16)), ctypes.c_size_t(size), mmap.MADV_NORMAL)


def open_index(path: str, search: str | None = None, size: int | None = None, device: str = "cpu") -> SearchIndex:
    """A searchable index, kept open for the life of the process.

    Memory-mapped, so that the worker processes of one machine share a single copy of the vectors. ``size``: bytes that
    the file must have; FAISS itself may crash on a truncated one. Raises CurationError for a damaged file.
    """
    version = storage.version(path)
    if size is not None and version["size"] != size:
        raise CurationError(f"{path}: has {version['size']} bytes, not {size}; delete it and run again")
    return _open(path, str(version), search, device)


# --- the neighbours of anchors --------------------------------------------------------------------------------------------


def nearest(
    index: SearchIndex, queries: np.ndarray, anchors: np.ndarray, neighbors: int, include_anchor: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours R_i of a block of anchors, and their cosines (METHOD 2).

    queries (B, D): unit rows; anchors (B,) int64: the anchors' own rows in the index, -1 where it does not hold them.
    Returns ids (B, L) int64, -1 where there are fewer than L, and cosines (B, L) float32.
    """
    # One more than L where the anchor is to be dropped from the answer.
    cosines, ids = index.search(queries, neighbors + (not include_anchor))
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
