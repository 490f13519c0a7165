"""Building a FAISS index of unit vectors: empty, trained on a sample, filled in parts, written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import faiss
import numpy as np

from curation.base import files
from curation.base.errors import CocuError

TRAIN_SEED = 0
MERGED_AT_ONCE = 1 << 28  # bytes of codes


def empty_index(factory: str, dimension: int) -> faiss.Index:
    """A FAISS inner-product index without vectors. Raises CocuError when FAISS rejects the factory string."""
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _rejected(factory, dimension, error) from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise CocuError(f"retrieval.index: {factory} finds no cosines in FAISS; choose another index, or auto")
    if isinstance(index, faiss.IndexIVFScalarQuantizer):
        index.by_residual = False  # a code is then the vector itself, which our search can read
    return index


def exact_index(vectors: np.ndarray) -> faiss.Index:
    """The flat index of vectors (n, D) float32 that fit into memory."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def train(index: faiss.Index, sample: np.ndarray, factory: str) -> None:
    """Train an index on a random sample (n, D) float32, if it needs that. Raises CocuError for too few rows."""
    if index.is_trained:
        return
    try:
        index.train(sample)
    except RuntimeError as error:
        raise _rejected(factory, sample.shape[1], error, len(sample)) from None


def faiss_reason(error: Exception) -> str:
    """What FAISS says of an error, without where in its source it says so."""
    return re.sub(r".*(\.cpp:\d+: |Error: |failed: )", "", str(error).strip().splitlines()[-1])


def _rejected(factory: str, dimension: int, error: RuntimeError, rows: int | None = None) -> CocuError:
    reason = faiss_reason(error)
    over = f" over {rows} vectors" if rows is not None else ""
    return CocuError(f"retrieval.index: FAISS cannot build {factory}{over} of {dimension} dimensions: {reason}")


def sample_rows(rows: int, size: int, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Random rows to train on, and others held out as queries; both ascending.

    Where there are too few rows to keep the two apart, the queries are among those trained on.
    """
    order = np.random.default_rng(TRAIN_SEED).permutation(rows)
    held_out = order[:queries]
    rest = order[queries:]
    trained = rest[:size] if len(rest) >= size else order[:size]
    return np.sort(trained), np.sort(held_out)


def pick(blocks: Iterable[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Ascending rows (R,) of vectors that come in (n, D) blocks.

    >>> pick([np.eye(3)[:2], np.eye(3)[2:]], np.array([0, 2])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    parts = []
    start = 0
    for block in blocks:
        first, last = np.searchsorted(rows, [start, start + len(block)])
        parts.append(block[rows[first:last] - start])
        start += len(block)
    return np.concatenate(parts)


# --- filling an index in parts --------------------------------------------------------------------------------------------


def fills_in_parts(index: faiss.Index) -> bool:
    """Whether vectors can be encoded apart from the index and put into its lists later."""
    inner = index
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    inverted = faiss.try_extract_index_ivf(inner)
    if inverted is None or not isinstance(inner, faiss.IndexIVF):  # others keep vectors, or ids, beside the lists
        return False
    return isinstance(faiss.downcast_InvertedLists(inverted.invlists), faiss.ArrayInvertedLists)


def encode(index: faiss.Index, vectors: np.ndarray) -> np.ndarray:
    """The list number and code of each vector (n, D): (n, bytes) uint8, as FAISS' codecs write them."""
    return index.sa_encode(np.ascontiguousarray(vectors, np.float32))


def fill(index: faiss.Index, parts: Callable[[], Iterable[np.ndarray]]) -> None:
    """Put the codes of :func:`encode` into an empty index; position = row. ``parts()`` is called twice."""
    inverted = faiss.extract_index_ivf(index)
    width = index.sa_code_size() - inverted.code_size  # bytes of the list number

    sizes = np.zeros(inverted.nlist, np.int64)
    for codes in parts():
        sizes += np.bincount(_list_numbers(codes, width), minlength=inverted.nlist)
    for number in np.flatnonzero(sizes):
        inverted.invlists.resize(int(number), int(sizes[number]))

    filled = np.zeros(inverted.nlist, np.int64)
    row = 0
    for codes in _merged(parts(), MERGED_AT_ONCE):
        numbers = _list_numbers(codes, width)
        order = np.argsort(numbers, kind="stable")
        bounds = np.searchsorted(numbers[order], np.arange(inverted.nlist + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            members = order[bounds[number] : bounds[number + 1]]
            target = slice(filled[number], filled[number] + len(members))
            list_codes, list_ids = list_content(inverted, int(number))
            list_codes[target] = codes[members, width:]
            list_ids[target] = row + members
            filled[number] = target.stop
        row += len(codes)
    index.ntotal = inverted.ntotal = row


def _list_numbers(codes: np.ndarray, width: int) -> np.ndarray:
    """List numbers (n,) int64: the first ``width`` bytes of each code, the lowest byte first."""
    return codes[:, :width].astype(np.int64) @ (1 << 8 * np.arange(width))


def _merged(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Join small parts into ones of ``size`` bytes or a little more."""
    small: list[np.ndarray] = []
    for part in parts:
        small.append(part)
        if sum(item.nbytes for item in small) >= size:
            yield np.concatenate(small)
            small = []
    if small:
        yield np.concatenate(small)


def list_content(inverted: faiss.IndexIVF, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, bytes) uint8 and ids (n,) int64 of an inverted list: views into the index."""
    lists = inverted.invlists
    size = lists.list_size(number)
    if not size:
        return np.zeros((0, inverted.code_size), np.uint8), np.zeros(0, np.int64)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), size * inverted.code_size)
    ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
    return codes.reshape(size, -1), ids


# --- on disk --------------------------------------------------------------------------------------------------------------


def write_index(index: faiss.Index, path: str) -> None:
    """Write a FAISS index; it appears whole or not at all."""
    with files.atomic_write(path) as stream:  # by our own stream: FAISS prints a failing close, and goes on
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))
