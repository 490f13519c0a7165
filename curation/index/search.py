"""Neighbour search for a whole data set (docs/method.md §2), where every image is a query: ordered by list, not by query.

An index is a set of *lists* of vectors; each query probes some of them, or all for an exact search. For each list there
is one matrix product with all the queries that probe it. That product only has to tell which vectors *might* be among the
best, so it may be computed in bf16, with a margin that rounding cannot exceed: the lengths of what both vectors have lost,
by the inequality of Cauchy and Schwarz. The few candidates are compared by their cosines in fp32, pair by pair, so that
results depend on neither the block nor the precision, and ties go to the smaller id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from curation.similarity import sampled_products

ROWS, COLUMNS = 1024, 8192  # most queries and vectors of one product: 32 MB of fp32
FEW = 64  # queries for which it does not pay to round a list's vectors to bf16
STEP = 64  # shapes of bf16 products are multiples of it
CROWD = 64  # candidates a query and product beyond which they are cut to the best L
WAITING = 1 << 23  # candidates that may wait for being merged: 200 MB

SUMMING = 1e-5  # most that the rounding of a sum in fp32 takes from a product of vectors that are nearly of unit length
BF16 = 2.0**-8  # most that rounding to bf16 takes from a number, for each unit of it


@dataclass(frozen=True)
class Lists:
    """Vectors in lists: ``read(number)`` gives those of a list, (n, D) fp32 or fp16, and their ids (n,) int64.

    ``lost`` remembers of each part of a list, by its number and first row, the most that rounding takes from a vector.
    """

    count: int
    read: Callable[[int], tuple[Tensor, np.ndarray]]
    lost: dict[tuple[int, int], float] = field(default_factory=dict)


def search_lists(
    queries: np.ndarray, probes: np.ndarray, lists: Lists, size: int, bf16: bool = False, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The L = ``size`` vectors of the probed lists that have the highest cosine to each query.

    queries (B, D) float32: unit rows; probes (B, P) int: the lists to look into, the most promising first, -1 for none.
    ``bf16``: compute the products in bf16, for hardware that is fast at it. Returns cosines (B, L) float32, descending,
    and ids (B, L) int64, -1 with cosine -inf where there are fewer than L.
    """
    best = Best(len(queries), size)
    products = Products(torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(device), bf16)
    for first, last in rounds(probes.shape[1]):
        floor, waiting = best.cosines[:, -1].copy(), 0
        for number, probing in by_list(probes[:, first:last], lists.count):
            vectors, ids = lists.read(number)
            for start in range(0, vectors.shape[0], COLUMNS):  # the len() of a tensor is slow
                products.hold(vectors[start : start + COLUMNS].to(device), lists.lost, (number, start))
                for rows in np.split(probing, range(ROWS, len(probing), ROWS)):
                    row, column, cosines = candidates(products, rows, floor[rows], size)
                    waiting += best.add(row, ids[column + start], cosines)
            if waiting > WAITING:
                best.merge()
                waiting = 0
        best.merge()
    return best.cosines, best.ids


def rounds(probes: int) -> Iterator[tuple[int, int]]:
    """Ranges of probes: what one has found sets a floor for the next. Nearly all there is to find is in the first."""
    first, last = 0, 1
    while first < probes:
        yield first, min(last, probes)
        first, last = last, 32 * last


def by_list(probes: np.ndarray, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """The lists that are probed, ascending, each with the ascending rows (R,) int64 of ``probes`` (B, P) that name it."""
    named = probes.reshape(-1)
    # numpy sorts 16 bits by radix, five times as fast.
    order = np.argsort(named.astype(np.int16) if count < 1 << 15 else named, kind="stable")
    bounds = np.searchsorted(named[order], np.arange(count + 1))
    rows = order // probes.shape[1]
    for number in np.flatnonzero(np.diff(bounds)):
        yield int(number), rows[bounds[number] : bounds[number + 1]]


def candidates(
    products: Products, rows: np.ndarray, floor: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The vectors held by ``products`` that may be among the ``size`` best of the queries that probe them.

    rows (R,): the queries that probe the list; floor (R,): cosine that a vector must reach. Returns row, column and fp32
    cosine of every candidate, (N,) each.
    """
    vectors = products.vectors  # (n, D)
    held = vectors.shape[0]
    coarse, lost = products.coarse(rows)  # (R, n), (R,)
    open_ = np.isneginf(floor)
    if open_.any() and held > size:  # nothing to beat yet: the best of this list will do
        lowest = coarse[torch.from_numpy(open_)].topk(size).values[:, -1].float().cpu().numpy()
        floor = floor.copy()
        floor[open_] = lowest - lost[open_] - (BF16 * np.abs(lowest) if coarse.dtype == torch.bfloat16 else 0)
    positions = _reaching(coarse, floor - lost)
    if len(positions) > CROWD * len(rows) and held > size:  # many near-duplicates
        columns = products.exact(rows).topk(size, sorted=False).indices.cpu().numpy()  # (R, L)
        positions = (np.arange(len(rows))[:, None] * held + columns).reshape(-1)
    row, column = np.divmod(positions, held)
    counts = np.bincount(row, minlength=len(rows))
    used = np.flatnonzero(counts)
    offsets = np.concatenate([[0], np.cumsum(counts[used])])
    pattern = (torch.from_numpy(array).to(vectors.device) for array in (offsets, column))
    cosines = sampled_products(take(products.queries, rows[used]), vectors.float(), *pattern)
    return rows[row], column, cosines.cpu().numpy()


class Products:
    """Matrix products of chosen queries with the vectors of a list, in memory that is used again and again."""

    def __init__(self, queries: Tensor, bf16: bool) -> None:
        self.queries = queries  # (B, D) fp32
        self.vectors = queries[:0]  # (n, D) fp32 or fp16
        rounded = queries.bfloat16() if bf16 else None
        self._rounded = rounded
        self._lost = np.zeros(len(queries), np.float32) if rounded is None else _lost(queries, rounded).cpu().numpy()
        self._right: Tensor | None = None  # the vectors in bf16
        self._lost_of_lists: dict[tuple[int, int], float] = {}
        self._part = (0, 0)
        self._memory: dict[tuple[str, torch.dtype], Tensor] = {}

    def hold(self, vectors: Tensor, lost: dict[tuple[int, int], float], part: tuple[int, int]) -> None:
        """Take vectors (n, D), a ``part`` of a list, as the right side of the products that follow. ``lost``: see Lists."""
        self.vectors, self._right, self._lost_of_lists, self._part = vectors, None, lost, part

    def coarse(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """Products (R, n) of the queries ``rows`` (R,), and how far they may be from the exact ones, (R,) float32.

        Where they are bf16, that is before the last rounding of each.
        """
        if self._rounded is None or len(rows) < FEW:
            return self.exact(rows), np.full(len(rows), SUMMING, np.float32)
        if self._right is None:
            self._right = self._round_vectors()
        right, lost = self._right, self._lost_of_lists[self._part]
        # A product of a new shape takes long to prepare in bf16, so shapes are rounded up.
        count = -(-len(rows) // STEP) * STEP
        left = self._buffer("left", torch.bfloat16, count, right.shape[1])
        take(self._rounded, rows, left[: len(rows)])
        out = self._buffer("products", torch.bfloat16, count, right.shape[0])
        torch.mm(left, right.T, out=out)  # (R, D) @ (D, n) -> (R, n)
        # q v - q' v' = (q - q') v' + q (v - v'), and |v'| < 1.01
        return out[: len(rows), : self.vectors.shape[0]], np.float32(1.01) * self._lost[rows] + np.float32(
            lost + SUMMING
        )

    def _round_vectors(self) -> Tensor:
        """The vectors in bf16, in a whole number of STEPs; notes the most that one of them has lost."""
        size = -(-self.vectors.shape[0] // STEP) * STEP
        right = self._buffer("right", torch.bfloat16, size, self.vectors.shape[1])
        rounded = right[: self.vectors.shape[0]].copy_(self.vectors)
        if self._part not in self._lost_of_lists:
            self._lost_of_lists[self._part] = float(_lost(self.vectors, rounded).max())
        return right

    def exact(self, rows: np.ndarray) -> Tensor:
        """Products (R, n) in fp32."""
        left = take(self.queries, rows, self._buffer("left", torch.float32, len(rows), self.queries.shape[1]))
        out = self._buffer("products", torch.float32, len(rows), self.vectors.shape[0])
        if out.is_cuda:
            return torch.mm(left, self.vectors.float().T, out=out)
        # numpy's BLAS is the faster one for fp32
        np.matmul(left.numpy(), self.vectors.float().numpy().T, out=out.numpy())
        return out

    def _buffer(self, name: str, dtype: torch.dtype, rows: int, columns: int) -> Tensor:
        """A tensor (rows, columns) over memory that later calls use again; not initialised."""
        held = self._memory.get((name, dtype))
        if held is None or held.numel() < rows * columns:
            held = torch.zeros(rows * columns, dtype=dtype, device=self.queries.device)
            self._memory[name, dtype] = held
        return held[: rows * columns].view(rows, columns)


def _lost(vectors: Tensor, rounded: Tensor) -> Tensor:
    """|v - v'| of vectors (n, D) and what they were rounded to: (n,) fp32."""
    lost: Tensor = torch.linalg.vector_norm(vectors.float() - rounded, dim=1)
    return lost


def take(queries: Tensor, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
    """Rows (R,), ascending, of queries (B, D): a view where they follow one another and no ``out`` is to be filled."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        part = queries[rows[0] : rows[-1] + 1]
        return part if out is None or out.dtype == torch.float32 else out.copy_(part)
    return torch.index_select(queries, 0, torch.from_numpy(rows).to(queries.device), out=out)


def _reaching(products: Tensor, floor: np.ndarray) -> np.ndarray:
    """Flat positions of the products (R, n) that are at least ``floor`` (R,), or of bf16 ones the floor rounded."""
    if products.is_cuda:
        reached = products >= torch.from_numpy(floor).to(products.device, products.dtype)[:, None]
        return reached.flatten().nonzero()[:, 0].cpu().numpy()
    if products.dtype == torch.bfloat16:
        # Positive floats order as their bits do; cutting bits off rounds down. A floor that is not positive lets all pass.
        bits = np.where(floor > 0, floor.view(np.int32) >> 16, np.iinfo(np.int16).min).astype(np.int16)
        return np.flatnonzero(products.view(torch.int16).numpy() >= bits[:, None])
    return np.flatnonzero(products.numpy() >= floor[:, None])


class Best:
    """The L best of each of B queries so far, in descending order, and candidates that wait for being merged."""

    def __init__(self, queries: int, size: int) -> None:
        self.cosines = np.full((queries, size), -np.inf, np.float32)
        self.ids = np.full((queries, size), -1, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: np.ndarray, ids: np.ndarray, cosines: np.ndarray) -> int:
        """Put candidates (N,) of queries ``rows`` (N,) on the waiting list; returns N."""
        self._waiting.append((rows, ids, cosines))
        return len(rows)

    def merge(self) -> None:
        """Let the waiting candidates take their places."""
        if not self._waiting:
            return
        rows, ids, cosines = map(np.concatenate, zip(*self._waiting, strict=True))
        self._waiting.clear()
        touched = np.zeros(len(self.ids), bool)
        touched[rows] = True
        held, column = np.nonzero((self.ids >= 0) & touched[:, None])
        rows = np.concatenate([held, rows])
        ids = np.concatenate([self.ids[held, column], ids])
        cosines = np.concatenate([self.cosines[held, column], cosines])
        order = descending(rows, cosines, ids)
        rows = rows[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(self.ids)))[rows]
        kept = place < self.ids.shape[1]
        self.ids[rows[kept], place[kept]] = ids[order[kept]]
        self.cosines[rows[kept], place[kept]] = cosines[order[kept]]


def descending(rows: np.ndarray, cosines: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The order (N,) by row, then descending cosine, then id."""
    # One integer to sort by: bits of floats order as the floats do, those of negative ones the other way round.
    bits = (np.float32(0) - cosines).view(np.int32).astype(np.int64)
    key = (rows << 32) + np.where(bits < 0, -(1 << 31) - bits, bits)
    order = np.argsort(key)
    ranked = key[order]
    same = np.concatenate([[False], ranked[1:] == ranked[:-1], [False]])
    tied = np.flatnonzero(same[1:] | same[:-1])
    order[tied] = order[tied][np.lexsort((ids[order[tied]], ranked[tied]))]
    return order
