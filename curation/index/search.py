"""Neighbour search for a whole data set (docs/method.md §2), where every image is a query: ordered by list, not by query.

An index is a set of *lists* of vectors; each query probes some of them, or all for an exact search. For each list there
is one matrix product with all the queries that probe it. That product only has to tell which vectors *might* be among the
best, so it may be computed in bf16, with a *margin* that its error cannot exceed: it follows from the *rounding* of both
vectors, |v - v'| where v' is v in bf16, by the inequality of Cauchy and Schwarz. The few candidates are compared by their
cosines in fp32, pair by pair, so that results depend on neither the block nor the precision, and ties go to the smaller id.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from curation.base.devices import to_device, to_host
from curation.index.lists import Lists
from curation.similarity import sampled_products

QUERY_BLOCK, VECTOR_BLOCK = 4096, 8192  # most queries and vectors of one product
PRODUCT = 1 << 20  # entries of one product, about: what a core's cache holds of bf16
ROUNDS = (1, 4)  # probes after which floors are raised, where a list is the first of SHARED queries or more
SHARED = 32
BF16_QUERIES = 64  # fewer queries do not make up for rounding a list's vectors to bf16
BF16_MULTIPLE = 64  # shapes of bf16 products are multiples of it
CROWD = 64  # candidates per query and product, beyond which they are cut to the best L
PENDING, MOST_PENDING = 6, 1 << 22  # candidates that may wait to be merged: of a query, and in all (80 MB)

SUM_ERROR = (
    1e-5  # most that the rounding of a sum in fp32 takes from a product of vectors that are nearly of unit length
)
GPU_SUM_ERROR = 2.0**-22  # the same on a GPU, for each dimension, whatever the order: docs/gpus.md
BF16_ERROR = 2.0**-8  # most that rounding to bf16 takes from a number, relative to it


def search_lists(
    queries: np.ndarray, probes: np.ndarray, lists: Lists, size: int, bf16: bool = False, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The L = ``size`` vectors of the probed lists that have the highest cosine to each query.

    queries (B, D) float32: unit rows; probes (B, P) int: the lists to look into, the most promising first, -1 for none.
    ``bf16``: compute the products in bf16, for hardware that is fast at it. Returns cosines (B, L) float32, descending,
    and ids (B, L) int64, -1 with cosine -inf where there are fewer than L.
    """
    with unrounded_sums():
        return _search_lists(queries, probes, lists, size, bf16, device)


@contextmanager
def unrounded_sums() -> Iterator[None]:
    """Matrix products on a GPU as the margin assumes them, within the block: whatever the program has allowed otherwise.

    fp32 is not cut to TF32, and the parts of a sum that cuBLAS computes apart (split-k) are not rounded to bf16.
    """
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction
    settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = False, False
    try:
        yield
    finally:
        settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = before


def _search_lists(
    queries: np.ndarray, probes: np.ndarray, lists: Lists, size: int, bf16: bool, device: str
) -> tuple[np.ndarray, np.ndarray]:
    contiguous = torch.from_numpy(np.ascontiguousarray(queries, np.float32))
    products = Products(to_device(contiguous, device), bf16, lists.roundings)
    candidates = Candidates(len(queries), size)

    # Where few queries share a list, to visit it once is worth more than floors that the nearest lists set.
    in_rounds = len(queries) >= SHARED * lists.count
    most_pending = MOST_PENDING if in_rounds else min(max(PENDING * len(queries), 1 << 15), MOST_PENDING)
    for first, last in rounds(probes.shape[1]) if in_rounds else [(0, probes.shape[1])]:
        floor = candidates.floor.copy()
        for number, probing in by_list(probes[:, first:last], lists.count):
            vectors, _ = lists.read(number)
            count = vectors.shape[0]  # the len() of a tensor is slow
            step = min(QUERY_BLOCK, _rounded_down(PRODUCT // max(min(count, VECTOR_BLOCK), 1)))
            for start in range(0, count, VECTOR_BLOCK):
                products.load(to_device(vectors[start : start + VECTOR_BLOCK], device), (number, start))
                for begin in range(0, len(probing), step):
                    candidates.add(number, start, *reaching(products, probing[begin : begin + step], floor, size))
            if candidates.pending > most_pending:
                candidates.merge()
                np.maximum(floor, candidates.floor, out=floor)
        candidates.merge()
    return _exactly(products.queries, candidates, lists, size)


def _exactly(queries: Tensor, candidates: Candidates, lists: Lists, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The best candidates of queries (B, D), by their cosines in fp32: what :func:`search_lists` returns."""
    top = TopNeighbours(queries.shape[0], size)
    for number, chosen in by_list(candidates.lists[:, None], lists.count):
        vectors, ids = lists.read(number)
        rows, columns = candidates.rows[chosen], candidates.columns[chosen]
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        offsets = np.append(starts, len(rows))
        pattern = (to_device(torch.from_numpy(array.astype(np.int64)), queries.device) for array in (offsets, columns))
        right = to_device(vectors, queries.device).float()
        cosines = sampled_products(select(queries, rows[starts]), right, *pattern)
        top.add(rows, ids[columns], to_host(cosines))
    top.merge()
    return top.cosines, top.ids


def rounds(probes: int) -> Iterator[tuple[int, int]]:
    """Ranges of probes: the results of one set a floor for the next. Most of what there is to find is in the first."""
    bounds = [0, *(bound for bound in ROUNDS if bound < probes), probes]
    yield from itertools.pairwise(bounds)


def by_list(probes: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The lists that are probed, ascending, each with the ascending rows (R,) int64 of ``probes`` (B, P) that name it."""
    numbers = probes.reshape(-1)
    # numpy sorts 16 bits by radix, five times as fast.
    order = np.argsort(numbers.astype(np.int16) if count < 1 << 15 else numbers, kind="stable")
    bounds = np.searchsorted(numbers[order], np.arange(count + 1))
    rows = order // probes.shape[1]
    for number in np.flatnonzero(np.diff(bounds)):
        yield int(number), rows[bounds[number] : bounds[number + 1]]


def reaching(
    products: Products, rows: np.ndarray, floor: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The vectors loaded into ``products`` that may be among the ``size`` best of the queries that probe them.

    rows (R,): the queries that probe the list; floor (B,): cosine that a vector must reach, -inf where there is none yet,
    which is then raised to what the best of this list set. Returns row and column of every candidate, (N,) int64 each, and
    two numbers (N,) float32 between which its cosine lies.
    """
    count = products.vectors.shape[0]
    coarse, margin = products.coarse(rows)  # (R, n), (R,)

    least = floor[rows]
    unbounded = np.isneginf(least)
    if unbounded.any() and count > size:  # nothing to beat yet: the best of this list will do
        every = unbounded.all()
        chosen = to_device(torch.from_numpy(np.flatnonzero(unbounded)), coarse.device)
        best = (coarse if every else coarse.index_select(0, chosen)).topk(size).values[:, -1]
        lowest = to_host(best.float())
        last_rounding = BF16_ERROR * np.abs(lowest) if coarse.dtype == torch.bfloat16 else 0
        least[unbounded] = lowest - margin[unbounded] - last_rounding
        floor[rows] = least
    row, column = _reaching(coarse, least - margin)

    if len(row) > CROWD * len(rows) and count > size:  # many near-duplicates
        coarse = products.exact(rows)
        column = to_host(coarse.topk(size, sorted=False).indices).reshape(-1)  # (R, L)
        row = np.repeat(np.arange(len(rows)), size)
        margin = np.full(len(rows), SUM_ERROR, np.float32)
    near = _entries(coarse, row, column)
    far = margin[row] + (BF16_ERROR * np.abs(near) if coarse.dtype == torch.bfloat16 else 0)
    return rows[row], column, near - far, near + far


class Products:
    """Matrix products of chosen queries with the vectors of a list, in memory that is used again and again.

    queries (B, D) float32; ``roundings``: those of :class:`Lists`, to read and to add to.
    """

    def __init__(self, queries: Tensor, bf16: bool, roundings: dict[tuple[int, int], float]) -> None:
        self.queries = queries  # (B, D) fp32
        self.vectors = queries[:0]  # (n, D) fp32 or fp16
        self._part = (0, 0)  # of which list the vectors are, from which row
        self._bf16_queries = queries.bfloat16() if bf16 else None
        self._bf16_vectors: Tensor | None = None  # made when the first product needs it
        self._query_roundings = np.zeros(len(queries), np.float32)
        if self._bf16_queries is not None:
            self._query_roundings = to_host(rounding(queries, self._bf16_queries))
        self._largest_roundings = roundings
        self._sum_error = max(SUM_ERROR, GPU_SUM_ERROR * queries.shape[1]) if queries.is_cuda else SUM_ERROR
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def load(self, vectors: Tensor, part: tuple[int, int]) -> None:
        """Make vectors (n, D) the right side of the products that follow; ``part``: their list and first row in it."""
        self.vectors = vectors
        self._part = part
        self._bf16_vectors = None

    def coarse(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Products (R, n) of the queries ``rows`` (R,), and how far they may be from the exact ones, (R,) float32.

        Where they are bf16, that margin is before the last rounding of each product.
        """
        if self._bf16_queries is None or len(rows) < BF16_QUERIES:
            return self.exact(rows), np.full(len(rows), self._sum_error, np.float32)
        if self._bf16_vectors is None:
            self._bf16_vectors = self._round_vectors()
        right = self._bf16_vectors  # (n', D)

        # A product of a new shape takes long to prepare in bf16, so shapes are rounded up.
        left = self._buffer("left", torch.bfloat16, _rounded_up(len(rows)), right.shape[1])  # (R', D)
        select(self._bf16_queries, rows, left[: len(rows)])
        out = self._buffer("products", torch.bfloat16, left.shape[0], right.shape[0])
        torch.mm(left, right.T, out=out)  # (R', D) @ (D, n') -> (R', n')

        # q v - q' v' = (q - q') v' + q (v - v'), and |v'| < 1.01
        of_queries = np.float32(1.01) * self._query_roundings[rows]
        of_vectors = np.float32(self._largest_roundings[self._part] + self._sum_error)
        return out[: len(rows), : self.vectors.shape[0]], of_queries + of_vectors

    def _round_vectors(self) -> Tensor:
        """The vectors in bf16, padded to a multiple of BF16_MULTIPLE; notes the largest rounding of one of them."""
        count, dimension = self.vectors.shape
        padded = self._buffer("right", torch.bfloat16, _rounded_up(count), dimension)
        # Copied by way of fp32: torch rounds fp16 to bf16 four times as slowly.
        rounded = padded[:count].copy_(self.vectors.float())
        if self._part not in self._largest_roundings:
            self._largest_roundings[self._part] = float(rounding(self.vectors, rounded).max())
        return padded

    def exact(self, rows: np.ndarray) -> Tensor:
        """Products (R, n) in fp32."""
        left = select(self.queries, rows, self._buffer("left", torch.float32, len(rows), self.queries.shape[1]))
        out = self._buffer("products", torch.float32, len(rows), self.vectors.shape[0])
        if out.is_cuda:
            return torch.mm(left, self.vectors.float().T, out=out)
        # numpy's BLAS is the faster one for fp32
        with np.errstate(invalid="ignore", over="ignore"):  # a damaged index may hold infinities
            np.matmul(left.numpy(), self.vectors.float().numpy().T, out=out.numpy())
        return out

    def _buffer(self, name: str, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
        """A tensor (rows, columns) over memory that later calls use again; not initialised."""
        memory = self._memory.get((name, dtype))
        if memory is None or memory.numel() < rows * columns:
            memory = torch.zeros(rows * columns, dtype=dtype, device=self.queries.device)
            self._memory[name, dtype] = memory
        return memory[: rows * columns].view(rows, columns)


def _rounded_up(length: int) -> int:
    """The next multiple of BF16_MULTIPLE that has at most four significant bits, so that there are few shapes."""
    multiple = max(BF16_MULTIPLE, _rounded_down(length) >> 3)
    return -(-length // multiple) * multiple


def _rounded_down(length: int) -> int:
    """The power of two that is not above, at least 1."""
    return 1 << max(length.bit_length() - 1, 0)


def rounding(vectors: Tensor, rounded: Tensor) -> Tensor:
    """|v - v'| of vectors (n, D) and what they were rounded to: (n,) fp32."""
    return torch.linalg.vector_norm(vectors.float() - rounded, dim=1)


def select(queries: Tensor, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
    """Rows (R,), ascending, of queries (B, D): in ``out`` where it is given.

    Consecutive rows in fp32 are returned as a view, and ``out`` is left as it is; bf16 ones must lie in their buffer.
    """
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        part = queries[rows[0] : rows[-1] + 1]
        return part if out is None or out.dtype == torch.float32 else out.copy_(part)
    return torch.index_select(queries, 0, to_device(torch.from_numpy(rows), queries.device), out=out)


def _reaching(products: Tensor, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the products (R, n) that are at least ``floor`` (R,), or of bf16 ones the floor rounded."""
    if products.is_cuda:
        least = to_device(torch.from_numpy(floor).to(products.dtype), products.device)  # (R,)
        row_column = to_host((products >= least[:, None]).nonzero())
        return row_column[:, 0], row_column[:, 1]
    if products.dtype == torch.bfloat16:
        # Positive floats order as their bits do; cutting bits off rounds down. A floor that is not positive lets all pass.
        bits = np.where(floor > 0, floor.view(np.int32) >> 16, np.iinfo(np.int16).min).astype(np.int16)
        positions = np.flatnonzero(products.view(torch.int16).numpy() >= bits[:, None])
    else:
        positions = np.flatnonzero(products.numpy() >= floor[:, None])
    row = positions // products.shape[1]
    return row, positions - row * products.shape[1]


def _entries(products: Tensor, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Entries (N,) float32 of products (R, n)."""
    if products.is_cuda:
        entries = (to_device(torch.from_numpy(index), products.device) for index in (row, column))
        return to_host(products[tuple(entries)].float())
    if products.dtype == torch.bfloat16:
        bits = products.view(torch.int16).numpy()[row, column]
        return (bits.astype(np.int32) << 16).view(np.float32)
    return products.numpy()[row, column]


class Candidates:
    """Vectors that may be among the L best of B queries, where the lists hold them, and how near they are at least and at
    most. ``floor`` (B,): the cosine that a vector must reach to matter, -inf while fewer than L are there."""

    def __init__(self, queries: int, size: int) -> None:
        self.floor = np.full(queries, -np.inf, np.float32)
        self.rows = np.zeros(0, np.int32)  # (N,) each, by row
        self.lists = np.zeros(0, np.int32)
        self.columns = np.zeros(0, np.int32)
        self.least = np.zeros(0, np.float32)
        self.most = np.zeros(0, np.float32)
        self.pending = 0  # candidates that wait to be merged
        self._size = size
        self._pending: list[tuple[np.ndarray, ...]] = []

    def add(
        self, number: int, start: int, rows: np.ndarray, columns: np.ndarray, least: np.ndarray, most: np.ndarray
    ) -> None:
        """Note candidates (N,) of queries ``rows`` in a list whose part begins at ``start``, for the next merge."""
        if len(rows):
            numbers = np.full(len(rows), number, np.int32)
            self._pending.append((rows.astype(np.int32), numbers, (columns + start).astype(np.int32), least, most))
            self.pending += len(rows)

    def merge(self) -> None:
        """Raise the floors by the pending candidates, and keep those that reach them."""
        if not self._pending:
            return
        parts = [(self.rows, self.lists, self.columns, self.least, self.most), *self._pending]
        rows, lists, columns, least, most = map(np.concatenate, zip(*parts, strict=True))
        self._pending.clear()
        self.pending = 0

        order = by_row(rows, least)
        ranked = rows[order]
        last = np.searchsorted(ranked, np.arange(len(self.floor))) + self._size - 1
        there = last < len(ranked)
        there[there] = ranked[last[there]] == np.flatnonzero(there)  # L of its own
        self.floor[there] = least[order[last[there]]]

        order = order[most[order] >= self.floor[ranked]]
        self.rows, self.lists, self.columns = rows[order], lists[order], columns[order]
        self.least, self.most = least[order], most[order]


class TopNeighbours:
    """The L best of each of B queries so far, in descending order, and candidates that wait to be merged."""

    def __init__(self, queries: int, size: int) -> None:
        self.cosines = np.full((queries, size), -np.inf, np.float32)
        self.ids = np.full((queries, size), -1, np.int64)
        self.pending = 0  # candidates that wait
        self._pending: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: np.ndarray, ids: np.ndarray, cosines: np.ndarray) -> None:
        """Note candidates (N,) of queries ``rows`` (N,), for the next merge."""
        self._pending.append((rows, ids, cosines))
        self.pending += len(rows)

    def merge(self) -> None:
        """Keep the L best of those so far and the pending candidates."""
        if not self._pending:
            return
        rows, ids, cosines = map(np.concatenate, zip(*self._pending, strict=True))
        self._pending.clear()
        self.pending = 0

        touched = np.zeros(len(self.ids), bool)
        touched[rows] = True
        old_rows, old_columns = np.nonzero((self.ids >= 0) & touched[:, None])
        rows = np.concatenate([old_rows, rows])
        ids = np.concatenate([self.ids[old_rows, old_columns], ids])
        cosines = np.concatenate([self.cosines[old_rows, old_columns], cosines])

        order = descending(rows, cosines, ids)
        rows = rows[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(self.ids)))[rows]  # within its query
        best = rank < self.ids.shape[1]
        self.ids[rows[best], rank[best]] = ids[order[best]]
        self.cosines[rows[best], rank[best]] = cosines[order[best]]


def descending(rows: np.ndarray, cosines: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The order (N,) by row, then descending cosine, then id."""
    key = _row_key(rows, cosines)
    order = np.argsort(key)

    ranked = key[order]
    same = np.concatenate([[False], ranked[1:] == ranked[:-1], [False]])
    tied = np.flatnonzero(same[1:] | same[:-1])
    order[tied] = order[tied][np.lexsort((ids[order[tied]], ranked[tied]))]
    return order


def by_row(rows: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """The order (N,) by row, then descending cosine."""
    return np.argsort(_row_key(rows, cosines))


def _row_key(rows: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    # One integer to sort by: bits of floats order as the floats do, those of negative ones the other way round.
    bits = (np.float32(0) - cosines).view(np.int32).astype(np.int64)
    return (rows.astype(np.int64) << 32) + np.where(bits < 0, -(1 << 31) - bits, bits)
