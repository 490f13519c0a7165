"""An index that is open for searching: memory-mapped, with its search parameters set."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import faiss
import numpy as np
import torch

from curation.base import files
from curation.base.devices import has_fast_bf16
from curation.base.errors import CocuError, one_line
from curation.index.build import fills_in_parts, list_content
from curation.index.lists import Lists
from curation.index.search import VECTOR_BLOCK, search_lists

LISTS_A_PROBE = 512  # from which on FAISS is the faster one: a list has some 32 of 16,384 queries then
AMONG = 8  # times as many results of FAISS, of which some rows are kept


@dataclass(frozen=True)
class SearchIndex:
    """An index that is open for searching: ours where its lists can be read, else by FAISS."""

    faiss: faiss.Index
    lists: Lists | None
    bf16: bool
    device: str
    kept: np.ndarray | None = None  # (N,) bool: the rows that are found; None: all

    @property
    def rows(self) -> int:
        """Vectors in the index."""
        return int(self.faiss.ntotal)

    def one_by_one(self) -> SearchIndex:
        """The same index for single queries, which FAISS answers faster: our search gains from thousands at once."""
        return replace(self, lists=None)

    def among(self, kept: np.ndarray) -> SearchIndex:
        """The same index with only the rows ``kept`` (N,) bool."""
        lists = self.lists
        if lists is None and isinstance(self.faiss, faiss.IndexFlat) and self.rows:
            lists = _chunks(self.faiss)
        return replace(self, lists=lists and lists.among(kept), kept=kept)

    def search(self, queries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines (B, L) float32, descending, and ids (B, L) int64, -1 for none, of unit queries (B, D)."""
        cosines, ids = self._search(np.ascontiguousarray(queries, np.float32), size)
        if len(ids) and not -1 <= ids.min() <= ids.max() < self.rows:
            raise CocuError(f"the index has ids beyond its {self.rows:,} vectors; delete it and run again")
        return cosines, ids

    def _search(self, queries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        if self.lists is None:
            return self._search_by_faiss(queries, size)

        inverted = faiss.try_extract_index_ivf(self.faiss)
        on_cpu = self.device == "cpu" and self.kept is None
        if inverted is not None and on_cpu and faiss_is_faster(inverted.nprobe, inverted.nlist):
            return self.faiss.search(queries, size)
        if inverted is None:
            probes = np.broadcast_to(np.arange(self.lists.count), (len(queries), self.lists.count))
        else:
            probes = inverted.quantizer.search(queries, min(inverted.nprobe, inverted.nlist))[1]
        return search_lists(queries, probes, self.lists, size, self.bf16, self.device)

    def _search_by_faiss(self, queries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Where only some rows are kept, they are taken from more results: fewer than asked for may be left."""
        if self.kept is None:
            return self.faiss.search(queries, size)
        cosines, ids = self.faiss.search(queries, min(AMONG * size, max(self.rows, 1)))
        drops = (ids < 0) | ~self.kept[ids]
        order = np.argsort(drops, axis=1, kind="stable")[:, :size]
        cosines, ids, drops = (np.take_along_axis(values, order, axis=1) for values in (cosines, ids, drops))
        return np.where(drops, np.float32(-np.inf), cosines), np.where(drops, -1, ids)


def faiss_is_faster(probes: int, lists: int) -> bool:
    """Whether FAISS searches so few of the lists faster than we do: too few queries share each list that is read.

    It depends on the index only, so that a result does not depend on what else is searched for. Measured with 1,024 lists
    of 100,000 images and 10,000 queries, ours takes 2.1 times as long as FAISS at 1 probe, .8 at 4, .51 at 8, .26 at 16.

    >>> faiss_is_faster(1, 4096), faiss_is_faster(1, 256), faiss_is_faster(46, 2048)
    (True, False, False)
    """
    return probes * LISTS_A_PROBE < lists


def searchable(index: faiss.Index, device: str = "cpu", bf16: bool | None = None) -> SearchIndex:
    """An index ready for searching on ``device``. ``bf16``: compute products in it; by default on CPUs that are fast at it.

    >>> index = faiss.IndexFlatIP(2)
    >>> index.add(np.eye(2, dtype=np.float32))
    >>> searchable(index).search(np.array([[0.6, 0.8]]), 2)[1].tolist()
    [[1, 0]]
    """
    # On GPUs the margin holds for bf16 too (docs/gpus.md), but gains little: a tenth on an H200 (benchmarks/GPU.md).
    fast = device == "cpu" and has_fast_bf16(device) if bf16 is None else bf16
    if isinstance(index, faiss.IndexFlat):
        # FAISS' own exact search in fp32 is as fast as matrix products can be.
        lists = _chunks(index) if index.ntotal and (fast or device != "cpu") else None
    else:
        lists = _inverted_lists(index)
    return SearchIndex(index, lists, fast, device)


def _chunks(index: faiss.IndexFlat) -> Lists:
    """The vectors of a flat index, cut into lists that are all to be probed."""
    size = index.ntotal * index.d
    vectors = torch.from_numpy(faiss.rev_swig_ptr(index.get_xb(), size).reshape(-1, index.d))  # (N, D)
    ids = np.arange(index.ntotal)

    def read(number: int) -> tuple[torch.Tensor, np.ndarray]:
        chunk = slice(number * VECTOR_BLOCK, (number + 1) * VECTOR_BLOCK)
        return vectors[chunk], ids[chunk]

    return Lists(-(-index.ntotal // VECTOR_BLOCK), read)


def _inverted_lists(index: faiss.Index) -> Lists | None:
    """The inverted lists of an index; None where our search cannot read them."""
    dtype = _vector_type(index)
    if dtype is None or not fills_in_parts(index):
        return None

    @cache  # views, which take long to make
    def read(number: int) -> tuple[torch.Tensor, np.ndarray]:
        codes, ids = list_content(index, number)
        return torch.from_numpy(codes.view(dtype)), ids

    return Lists(index.nlist, read)


def _vector_type(index: faiss.Index) -> type | None:
    """The type of the vectors that inverted lists hold as they are; None where they are encoded in some other way."""
    if type(index) is faiss.IndexIVFFlat:
        return np.float32
    if isinstance(index, faiss.IndexIVFScalarQuantizer) and not index.by_residual:
        return np.float16 if index.sq.qtype == faiss.ScalarQuantizer.QT_fp16 else None
    return None


# --- search parameters ----------------------------------------------------------------------------------------------------


def effort(index: faiss.Index) -> tuple[str, int]:
    """The FAISS parameter that trades time for recall, and its largest value; "" where there is none."""
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        return "nprobe", inverted.nlist
    return ("efSearch", 4096) if isinstance(index, faiss.IndexHNSW) else ("", 0)


def set_search(index: faiss.Index, search: str | None) -> None:
    """Set FAISS search parameters ("nprobe=32"), if any.

    Raises CocuError when FAISS does not know a parameter for this index.
    """
    if search is None:
        return
    try:
        if re.search(r"nprobe=0*(,|$)", search):
            raise RuntimeError("nprobe must be at least 1")
        faiss.ParameterSpace().set_index_parameters(index, search)
    except (RuntimeError, TypeError) as error:  # TypeError: not text as C has it
        reason = str(error).splitlines()[-1]
        raise CocuError(f"retrieval.search: {search!r} does not fit the index ({reason})") from None


# --- on disk --------------------------------------------------------------------------------------------------------------


def open_index(
    path: str,
    search: str | None = None,
    size: int | None = None,
    device: str = "cpu",
    shape: tuple[int, int] | None = None,
) -> SearchIndex:
    """A searchable index, kept open for the life of the process.

    Memory-mapped, so that the worker processes of one machine share a single copy of the vectors. ``size``: bytes that
    the file must have; FAISS itself may crash on a truncated one. ``shape``: the vectors that it must hold, and their
    dimensions. Raises CocuError for a damaged file, and for one of something else.
    """
    version = files.version(path)
    if size is not None and version["size"] != size:
        raise CocuError(f"{path}: has {version['size']} bytes, not {size}; delete it and run again")
    opened = _open(path, str(version), search, device)
    if shape is not None and (opened.rows, opened.faiss.d) != shape:
        held = f"{opened.rows:,} vectors of {opened.faiss.d} dimensions"
        raise CocuError(f"{path}: holds {held}, not {shape[0]:,} of {shape[1]}; delete it and run again")
    return opened


@lru_cache(maxsize=2)
def _open(path: str, version: str, search: str | None, device: str) -> SearchIndex:
    local = files.local_path(path)
    limit_reading(os.path.getsize(local))
    reason = ""
    for flags in (faiss.IO_FLAG_MMAP_IFC, 0):  # some kinds of index cannot be mapped
        try:
            index = faiss.read_index(local, flags)
            check_structure(index)
        except (RuntimeError, MemoryError, ValueError) as error:
            reason = one_line(error.args[0].splitlines()[-1] if error.args and error.args[0] else error)
            continue
        if flags:
            _read_ahead(local)
        set_search(index, search)
        return searchable(index, device)
    raise CocuError(f"{path}: FAISS cannot read it ({reason}); delete it and run again")


def read_trained(path: str) -> faiss.Index:
    """An index that is yet to be filled, in memory."""
    local = files.local_path(path)
    limit_reading(os.path.getsize(local))  # an index that was opened before may have set less
    return faiss.read_index(local)


def limit_reading(size: int) -> None:
    """No array in a file is larger than the file: FAISS, where it is new enough, believes no length above that."""
    limit = getattr(faiss, "set_deserialization_vector_byte_limit", None)
    if limit is not None:
        limit(max(size, 1 << 20))


def check_structure(index: faiss.Index) -> None:
    """Raises ValueError where an index does not fit together, on which its search could crash."""
    inverted = faiss.try_extract_index_ivf(index)
    if not index.is_trained or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ValueError("not a trained index of inner products")
    if inverted is None:
        return
    if inverted.nprobe < 1:
        raise ValueError("its search would look into no list")
    lists = inverted.invlists
    if (
        inverted.quantizer.d != inverted.d
        or inverted.quantizer.ntotal != inverted.nlist
        or lists.nlist != inverted.nlist
    ):
        raise ValueError("its lists do not fit its quantizer")
    if not fills_in_parts(index):  # others pack several codes into one
        return
    if lists.code_size != inverted.code_size or sum(map(lists.list_size, range(lists.nlist))) != index.ntotal:
        raise ValueError("its lists do not hold its vectors")


def _read_ahead(path: str) -> None:
    """Let the kernel read a file that FAISS has mapped in large pieces; nothing happens where there is no /proc.

    FAISS asks for single pages, in random order, but our search reads whole lists: five to thirty times slower by pages.
    """
    if not os.path.exists("/proc/self/maps"):
        return
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as stream:
        mappings = [line.rstrip("\n").split(maxsplit=5) for line in stream]

    for start, end in (fields[0].split("-") for fields in mappings if fields[5:] == [os.path.realpath(path)]):
        address = int(start, 16)
        length = int(end, 16) - address
        # Only advice: where the kernel ignores it, reading is slow but correct.
        ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), mmap.MADV_NORMAL)
