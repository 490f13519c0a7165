"""Groups of near-identical images: from pairs of neighbours to one representative a group, which retrieval counts once.

A group's representative is its first row. Every member is near-identical to the representative itself, not only to some
other member: else the pictures of a slow film, each like the next, would be one group.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.errors import CocuError, one_line

COSINE = 0.99  # from which images without pictures to compare are copies; measured, docs/duplicates.md
LEAST_COSINE = 0.75  # below which pictures are not compared

Pairs = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # two rows (P,) each -> whether they are near-identical, (P,) bool

# What ``duplicates.arrow`` holds, for every image that is not the representative of its group, by ascending row.
COLUMNS = pa.schema(
    [
        ("row", pa.int64()),
        ("representative", pa.int64()),
        ("shard", pa.dictionary(pa.int32(), pa.string())),  # of the representative
        ("key", pa.string()),
    ]
)


def close_pairs(ids: np.ndarray, cosines: np.ndarray, first: int, floor: float) -> tuple[np.ndarray, ...]:
    """The pairs of a block of a graph, rows from ``first`` on, that reach a cosine: smaller and larger row, cosines, (P,).

    ids, cosines (B, K), as in the graph, where a pair may be in the lists of both its rows.
    """
    row, column = np.nonzero((ids >= 0) & (cosines >= floor))
    other = ids[row, column].astype(np.int64)
    row = row + first
    differs = row != other
    row, other, cosine = row[differs], other[differs], cosines[row[differs] - first, column[differs]]
    return np.minimum(row, other), np.maximum(row, other), cosine


def representatives(rows: int, one: np.ndarray, other: np.ndarray, are_same: Pairs) -> np.ndarray:
    """The representative (rows,) int64 of every row, itself where it is alone, from near-identical pairs (P,) of rows.

    ``are_same`` says of further pairs whether they are near-identical; what is in the pairs is known to be.
    """
    chosen = np.arange(rows)
    known = np.unique(np.stack([np.minimum(one, other), np.maximum(one, other)], axis=1), axis=0)
    pairs = known
    while len(pairs):
        nodes, ends = np.unique(pairs, return_inverse=True)
        first = nodes[components(len(nodes), *ends.reshape(-1, 2).T)]
        members = first != nodes
        same = members.copy()
        direct = _among(np.stack([first, nodes], axis=1)[members], known)
        same[members] = direct
        asked = np.flatnonzero(members & ~same)
        same[asked] = are_same(first[asked], nodes[asked])

        chosen[nodes[same]] = first[same]
        rest = nodes[members & ~same]  # those that are not like the first of their component have groups of their own
        pairs = pairs[np.isin(pairs, rest).all(axis=1)]
    return chosen


def components(size: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smallest node (size,) that is connected with each of the nodes 0..size-1, by edges (P,) of nodes.

    >>> components(5, np.array([4, 3]), np.array([3, 1])).tolist()
    [0, 1, 2, 1, 1]
    """
    label = np.arange(size)
    while True:
        before = label.copy()
        least = np.minimum(label[one], label[other])
        np.minimum.at(label, one, least)
        np.minimum.at(label, other, least)
        label = label[label]
        if (label == before).all():
            return label


def _among(pairs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of the pairs (P, 2) are rows of ``known`` (Q, 2), which ascend: bool (P,)."""
    numbers = [(array[:, 0] << 32) + array[:, 1] for array in (pairs, known)]
    place = np.minimum(np.searchsorted(numbers[1], numbers[0]), len(known) - 1)
    return np.asarray(numbers[1][place] == numbers[0])


def collapse(ids: np.ndarray, cosines: np.ndarray, anchors: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Search results (B, K) in descending cosine in which each group counts once, as its representative; -1 elsewhere.

    anchors (B,): the anchors' own rows, -1 for none; ``chosen`` (N,): the representative of every row. An anchor stays
    itself, and its own duplicates are left out.

    >>> chosen = np.array([0, 0, 2, 2, 4])
    >>> collapse(np.array([[1, 0, 3, 2, 4]]), np.ones((1, 5)), np.array([1]), chosen).tolist()
    [[1, -1, 2, -1, 4]]
    """
    groups = np.where(ids >= 0, chosen[ids], -1).astype(np.int64)
    order = np.argsort(groups, axis=1, kind="stable")
    ranked = np.take_along_axis(groups, order, axis=1)
    is_later = np.zeros(groups.shape, bool)
    np.put_along_axis(is_later, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)

    known = anchors >= 0
    own = known[:, None] & (groups == chosen[np.maximum(anchors, 0)][:, None])
    groups[is_later | own] = -1
    return np.where(known[:, None] & (ids == anchors[:, None]), ids, groups)


# --- on disk --------------------------------------------------------------------------------------------------------------


def write_duplicates(table: pa.Table, path: str) -> None:
    """Write a table of COLUMNS as an Arrow file, which :func:`open_duplicates` maps."""
    with files.atomic_write(path) as stream, pa.ipc.new_file(stream, COLUMNS) as writer:
        writer.write_table(table)


def open_duplicates(path: str, size: int, rows: int) -> pa.Table:
    """The duplicates of an index of so many rows. Raises CocuError for a file of other than ``size`` bytes or content."""
    if files.version(path)["size"] != size:
        raise CocuError(f"{path}: has {files.version(path)['size']} bytes, not {size}; delete it and run again")
    try:
        table = pa.ipc.open_file(pa.memory_map(files.local_path(path))).read_all()
        table.validate()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CocuError(f"{path}: not a complete Arrow file ({one_line(error)}); delete it and run again") from None

    if not table.schema.equals(COLUMNS) or any(column.null_count for column in table.columns):
        raise CocuError(f"{path}: not the duplicates of an index; delete it and run again")
    row, first = (table[name].to_numpy() for name in ("row", "representative"))
    is_sound = (first >= 0).all() and (first < row).all() and (np.diff(row) > 0).all() and (row < rows).all()
    if not is_sound or np.isin(first, row).any():
        raise CocuError(f"{path}: its rows are not those of {rows:,} images; delete it and run again")
    return table


def chosen_rows(table: pa.Table, rows: int) -> np.ndarray:
    """The representative (rows,) int64 of every row, from a table of COLUMNS."""
    chosen = np.arange(rows)
    chosen[table["row"].to_numpy()] = table["representative"].to_numpy()
    return chosen
