"""An inverted index as arrays: for every concept, or word, the rows that hold it. Pure functions, a shard at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.base.ragged import Ragged

BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}]+"


def slots(groups: np.ndarray, cursors: np.ndarray) -> np.ndarray:
    """Where each of n values goes in an array that is sorted by group, (n,) int64; ``cursors`` (V,) move on in place.

    groups (n,): the group of each value; cursors: the next free slot of each group. A counting sort, a part at a time:
    values of one group keep their order.

    >>> cursors = np.array([0, 2])
    >>> slots(np.array([1, 0, 1]), cursors).tolist(), cursors.tolist()
    ([2, 0, 3], [1, 4])
    """
    order = np.argsort(groups, kind="stable")
    counts = np.bincount(groups, minlength=len(cursors))
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = Ragged.from_lengths(counts, order).positions
    targets = cursors[groups] + ranks
    cursors += counts
    return targets


def starts_of(counts: np.ndarray) -> np.ndarray:
    """Where each group begins, (V + 1,) int64, from counts (V,)."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def companions(archives: Ragged, cluster: np.ndarray) -> np.ndarray:
    """For every entry, the concept of the best other entry of its archive and cluster; (P,) int64, -1 for none.

    archives: N lists of concept ids, the most relevant first, P in all; cluster (P,).

    >>> companions(Ragged.from_lists([[7, 8, 9], [5]]), np.array([0, 1, 0, 0])).tolist()
    [9, -1, 7, -1]
    """
    if not len(archives.values):
        return np.zeros(0, np.int64)
    pairs = archives.with_values(cluster.astype(np.int64)).pairs(int(cluster.max()) + 1)
    order = np.argsort(pairs, kind="stable")
    sizes = np.diff(np.flatnonzero(np.diff(pairs[order], prepend=-1)), append=len(order))
    members = Ragged.from_lengths(sizes, order)

    first = members.offsets[:-1]
    second = np.where(sizes > 1, first + 1, first)
    other = np.where(members.positions == 0, second[members.owners], first[members.owners])
    best = archives.values[order[other]].astype(np.int64)
    result = np.empty(len(order), np.int64)
    result[order] = np.where(sizes[members.owners] > 1, best, -1)
    return result


# --- words --------------------------------------------------------------------------------------------------------------


def words_of(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The lower-cased words of N texts, one after another, and the row (P,) of each; what is no letter or digit divides.

    >>> words, rows = words_of(pa.array(["A dog's bed", "Fußball!"]))
    >>> words.to_pylist(), rows.tolist()
    (['a', 'dog', 's', 'bed', 'fußball'], [0, 0, 0, 0, 1])
    """
    lists = pc.split_pattern_regex(pc.utf8_lower(texts), BETWEEN_WORDS)
    rows = np.repeat(np.arange(len(texts)), lists.value_lengths().to_numpy(zero_copy_only=False))
    words = lists.flatten()
    present = pc.not_equal(words, "")
    return words.filter(present), rows[present.to_numpy(zero_copy_only=False)]


def in_all(lists: Sequence[np.ndarray]) -> np.ndarray:
    """The numbers that are in every one of some ascending lists, ascending; the shortest decides how long it takes.

    >>> in_all([np.array([1, 3, 5, 9]), np.array([3, 9])]).tolist()
    [3, 9]
    """
    if not lists:
        return np.zeros(0, np.int64)
    common, *others = sorted(lists, key=len)
    for other in others:
        positions = np.searchsorted(other, common)
        inside = positions < len(other)
        inside[inside] = other[positions[inside]] == common[inside]
        common = common[inside]
    return np.asarray(common)
