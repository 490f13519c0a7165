"""The graph of all neighbours: K nearest rows of every row, found from either end of an edge.

A search for the neighbours of i may miss j, while the search for those of j finds i. The edge is one and the same and its
cosine is known, so j becomes a neighbour of i for nothing. Which rows are searched together changes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from curation.base import files
from curation.base.errors import CocuError, one_line
from curation.index.search import descending

EXTRA = 4  # neighbours beyond L that a search keeps, to be found from their ends
SPARE = 16  # at most as many more, as many as L, where duplicates are taken out: enough for a copy of each
TARGETS = 1 << 18  # rows whose edges are in memory at once: 16 edges each take 100 MB

Part = tuple[int, np.ndarray, np.ndarray]  # the first row of consecutive ones, their ids (n, K), and cosines (n, K)


def groups(rows: list[int], most: int) -> list[range]:
    """Consecutive shards, by number, of ``most`` rows together, or single ones of more.

    >>> groups([3, 3, 3, 9, 1], most=6)
    [range(0, 2), range(2, 3), range(3, 4), range(4, 5)]
    """
    bounds = [0]
    total = 0
    for number, count in enumerate(rows):
        if number > bounds[-1] and total + count > most:
            bounds.append(number)
            total = 0
        total += count
    return [range(first, last) for first, last in itertools.pairwise([*bounds, len(rows)])]


def from_either_end(
    parts: Callable[[], Iterable[Part]], rows: int, size: int, targets: int = TARGETS
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The ``size`` nearest of every row, in blocks of consecutive rows: ids (n, size) int64, -1 for none, and cosines.

    ``parts()`` gives all rows' searches, in order; it is called once, and again for every ``targets`` rows. In descending
    cosine, ties by id; cosine -inf for none.
    """
    floor = np.concatenate([np.where(ids[:, -1] >= 0, cosines[:, -1], -np.inf) for _, ids, cosines in parts()])
    for first in range(0, rows, targets):
        last = min(first + targets, rows)
        yield _of_targets(parts(), first, last, size, floor[first:last])


def _of_targets(
    parts: Iterable[Part], first: int, last: int, size: int, floor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the rows from ``first`` to ``last``; only edges that reach the ``floor`` of each can matter."""
    edges: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, ids, cosines in parts:
        own = slice(max(first - start, 0), max(min(last - start, len(ids)), 0))
        row, column = np.nonzero(ids[own] >= 0)
        edges.append((start + own.start - first + row, ids[own][row, column], cosines[own][row, column]))

        row, column = np.nonzero((ids >= first) & (ids < last))
        near = cosines[row, column] >= floor[ids[row, column] - first]
        row, column = row[near], column[near]
        edges.append((ids[row, column] - first, start + row, cosines[row, column]))
    rows, ids, cosines = (np.concatenate(arrays) for arrays in zip(*edges, strict=True))

    order = np.argsort((rows.astype(np.int64) << 32) + ids, kind="stable")  # where both ends found it: once
    rows, ids, cosines = rows[order], ids[order], cosines[order]
    once = np.ones(len(rows), bool)
    once[1:] = (np.diff(rows) != 0) | (np.diff(ids) != 0)
    rows, ids, cosines = rows[once], ids[once], cosines[once]

    order = descending(rows, cosines, ids)
    rows = rows[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, np.arange(last - first))[rows]
    best = rank < size
    nearest = np.full((last - first, size), -1, np.int64)
    nearness = np.full((last - first, size), -np.inf, np.float32)
    nearest[rows[best], rank[best]] = ids[order[best]]
    nearness[rows[best], rank[best]] = cosines[order[best]]
    return nearest, nearness


# --- on disk --------------------------------------------------------------------------------------------------------------


def graph_type(rows: int, size: int) -> np.dtype:
    """What ``graph.npy`` holds of every row: ``ids`` and ``cosines`` of its K neighbours."""
    return np.dtype([("ids", "<i4" if rows < 1 << 31 else "<i8", (size,)), ("cosines", "<f4", (size,))])


def read_graph(path: str, size: int, rows: int, neighbors: int) -> np.ndarray:
    """A graph, mapped into memory: (rows,) of :func:`graph_type`, for at least so many neighbours.

    Raises CocuError for a file of other than ``size`` bytes, of other rows, or of fewer neighbours.
    """
    if files.version(path)["size"] != size:
        raise CocuError(f"{path}: has {files.version(path)['size']} bytes, not {size}; delete it and run again")
    try:
        graph = np.load(files.local_path(path), mmap_mode="r", allow_pickle=False)
        columns = graph["ids"].shape[1]
    except (ValueError, IndexError, EOFError) as error:
        raise CocuError(f"{path}: not a graph of neighbours ({one_line(error)}); delete it and run again") from None
    if graph.shape != (rows,) or graph.dtype != graph_type(rows, columns) or columns < neighbors:
        raise CocuError(f"{path}: not the {neighbors} neighbours of {rows:,} images; delete it and run again")
    return graph


def look_up(graph: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids (B, K) int64 and cosines (B, K) float32 of rows (B,). Raises CocuError for ids that are no rows."""
    edges = graph[rows]
    ids = edges["ids"].astype(np.int64)
    if len(ids) and not -1 <= ids.min() <= ids.max() < len(graph):
        raise CocuError(f"the graph of neighbours names rows beyond its {len(graph):,}; delete it and run again")
    return ids, edges["cosines"].copy()
