"""Clusters of an archive's concepts (docs/method.md §4): seeded k-means over t_c, for thousands of tiny archives at once.

With n concepts and k clusters, k-means needs only the n x n Gram matrix of the concepts, never the D dimensions: with A
the (k, n) matrix that averages each cluster's members, the squared distance of concept x to the centroid of cluster c is

    G[x, x] - 2 (A G)[c, x] + (A G A^T)[c, c].

Archives of one size form one batch of small matrix products. With clusters of about two concepts Lloyd's algorithm is
easily stuck, so that Hartigan's moves of single points follow it.
"""

from __future__ import annotations

import numpy as np

from curation.base.ragged import Ragged
from curation.base.random_numbers import GOLDEN, mix, unit

RESTARTS = 3
ITERATIONS = 25
LAST_CLUSTER = np.iinfo(np.int16).max  # of an archive; with more clusters, all that follow are put into it
BATCH = 1 << 21  # floats in one batch of Gram matrices, over all restarts


def cluster_archives(archives: Ragged, texts: np.ndarray, seed: int = 0) -> np.ndarray:
    """Cluster every archive: ceil(n / 2) clusters when n > 2, else a cluster for each concept.

    archives: B lists of P concept ids in all, in descending score; texts (V, D): unit rows. Returns labels (P,) int16,
    numbered 0, 1, ... in the order in which the archive first shows them. An archive's clusters depend on its set of
    concepts and the seed alone, not on order or on the other archives of the block.
    """
    concepts, sizes = archives.values, archives.lengths
    labels = np.zeros(len(concepts), np.int64)
    for size in np.unique(sizes[sizes > 0]):
        positions = archives.offsets[:-1][sizes == size][:, None] + np.arange(size)  # (M, n): archives of n concepts
        if size <= 2:
            labels[positions] = np.arange(size)
            continue

        clusters = (size + 1) // 2
        by_id = np.argsort(concepts[positions], axis=1)
        positions = np.take_along_axis(positions, by_id, axis=1)
        step = max(1, BATCH // int(RESTARTS * size * size))
        for start in range(0, len(positions), step):
            batch = positions[start : start + step]
            members = texts[concepts[batch]]  # (M, n, D)
            gram = members @ members.transpose(0, 2, 1)  # (M, n, D) @ (M, D, n) -> (M, n, n)
            draws = uniforms(concepts[batch], RESTARTS * clusters, seed)  # (M, R k)
            labels[batch] = kmeans(gram, clusters, draws.reshape(len(batch), RESTARTS, clusters))
    return _as_column(number_by_appearance(archives.with_values(labels)))


def uniforms(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random numbers in [0, 1) that depend only on the integers of a row: rows (M, n) -> (M, count) float64."""
    state = mix(np.full(len(rows), seed, np.uint64))
    for column in rows.T:
        state = mix(state ^ column.astype(np.uint64))
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    return unit(mix(state[:, None] + steps))


def kmeans(gram: np.ndarray, clusters: int, draws: np.ndarray) -> np.ndarray:
    """k-means in Gram space: k-means++ starts, Lloyd's steps, Hartigan's moves; the restart with the least inertia wins.

    gram (M, n, n): products of the points of M problems; draws (M, R, k): uniform numbers, one for each starting centre
    of each restart. Returns labels (M, n) int64; no cluster is empty.
    """
    problems, size = gram.shape[:2]
    restarts = draws.shape[1]
    gram = np.repeat(gram, restarts, axis=0)  # (M R, n, n)
    labels = _plus_plus(gram, clusters, draws.reshape(problems * restarts, clusters))  # (M R, n)

    for step in (_lloyd_step, _hartigan_step):
        moving = np.arange(len(gram))
        for _ in range(ITERATIONS):
            updated = step(gram[moving], labels[moving], clusters)
            changed = (updated != labels[moving]).any(axis=1)
            labels[moving] = updated
            moving = moving[changed]
            if not len(moving):
                break

    best = inertia(gram, labels, clusters).reshape(problems, restarts).argmin(axis=1)  # (M,)
    return labels.reshape(problems, restarts, size)[np.arange(problems), best]


def inertia(gram: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Sum over points of the squared distance to their own centroid: gram (M, n, n), labels (M, n) -> (M,)."""
    distances = _centroid_distances(gram, labels, clusters)
    return np.take_along_axis(distances, labels[:, None], axis=1).sum(axis=(1, 2))


def _plus_plus(gram: np.ndarray, clusters: int, draws: np.ndarray) -> np.ndarray:
    """Labels (M, n) of the nearest k-means++ centre: each centre is drawn in proportion to the squared distance."""
    problems, size = gram.shape[:2]
    rows = np.arange(problems)
    norms = np.einsum("mxx->mx", gram)
    distances = np.empty((problems, clusters, size), gram.dtype)
    closest = np.ones((problems, size))  # to the nearest centre so far: equal chances for the first one
    for number in range(clusters):
        cumulative = np.cumsum(closest, axis=1)
        centre = (cumulative <= draws[:, number, None] * cumulative[:, -1:]).sum(axis=1)
        centre = np.minimum(centre, size - 1)  # all points coincide with a centre: any will do
        distances[:, number] = norms + norms[rows, centre, None] - 2 * gram[rows, centre]
        to_centre = np.maximum(distances[:, number], 0)
        to_centre[rows, centre] = 0  # not a rounding error above it
        closest = to_centre if number == 0 else np.minimum(closest, to_centre)
    return _without_empty(distances.argmin(axis=1), distances, clusters)


def _lloyd_step(gram: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Every point joins its nearest centroid: labels (M, n) -> (M, n)."""
    distances = _centroid_distances(gram, labels, clusters)
    return _without_empty(distances.argmin(axis=1), distances, clusters)


def _hartigan_step(gram: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """The one point of each problem whose move lowers the inertia most changes its cluster: labels (M, n) -> (M, n).

    Moving x from cluster a to b adds |b| / (|b| + 1) d(x, b) and takes away |a| / (|a| - 1) d(x, a); a point that is
    alone in its cluster stays.
    """
    distances = _centroid_distances(gram, labels, clusters)  # (M, k, n)
    counts = _cluster_sizes(labels, clusters)  # (M, k)
    own_count = np.take_along_axis(counts, labels, axis=1)  # (M, n)
    own_distance = np.take_along_axis(distances, labels[:, None], axis=1)[:, 0]  # (M, n)
    gain = np.where(own_count > 1, own_distance * own_count / np.maximum(own_count - 1, 1), 0)
    weight = (counts / (counts + 1)).astype(distances.dtype)
    cost = np.where(counts[..., None] > 0, distances, 0) * weight[..., None] - gain[:, None]  # (M, k, n)
    np.put_along_axis(cost, labels[:, None], 0, axis=1)

    best = cost.reshape(len(labels), -1).argmin(axis=1)
    cluster, point = np.divmod(best, labels.shape[1])  # (M,) each
    rows = np.arange(len(labels))
    better = cost[rows, cluster, point] < -1e-6  # above rounding, so that the moves come to an end
    updated = labels.copy()
    updated[rows[better], point[better]] = cluster[better]
    return updated


def _centroid_distances(gram: np.ndarray, labels: np.ndarray, clusters: int) -> np.ndarray:
    """Squared distances (M, k, n) of every point to every centroid; infinite for an empty cluster."""
    member = (labels[:, None] == np.arange(clusters)[:, None]).astype(gram.dtype)  # (M, k, n)
    counts = member.sum(axis=2, keepdims=True)
    mean = member / np.maximum(counts, 1)
    products = mean @ gram  # (M, k, n) @ (M, n, n) -> (M, k, n)
    norms = np.einsum("mkn,mkn->mk", products, mean)
    distances = np.einsum("mxx->mx", gram)[:, None] - 2 * products + norms[..., None]
    return np.where(counts > 0, np.maximum(distances, 0), np.inf)


def _without_empty(labels: np.ndarray, distances: np.ndarray, clusters: int) -> np.ndarray:
    """Move the point farthest from its centre into each empty cluster, out of a cluster that can spare it."""
    counts = _cluster_sizes(labels, clusters)  # (M, k)
    lacking = np.flatnonzero((counts == 0).any(axis=1))  # (M',)
    if not len(lacking):
        return labels

    own_distance = np.take_along_axis(distances[lacking], labels[lacking][:, None], axis=1)[:, 0]  # (M', n)
    while len(lacking):
        spare = np.take_along_axis(counts[lacking], labels[lacking], axis=1) > 1
        point = np.where(spare, own_distance, -1).argmax(axis=1)
        empty = (counts[lacking] == 0).argmax(axis=1)
        counts[lacking, labels[lacking, point]] -= 1
        counts[lacking, empty] += 1
        labels[lacking, point] = empty
        own_distance[np.arange(len(lacking)), point] = 0

        still = (counts[lacking] == 0).any(axis=1)
        lacking = lacking[still]
        own_distance = own_distance[still]
    return labels


def _cluster_sizes(labels: np.ndarray, clusters: int) -> np.ndarray:
    """Points in each cluster: labels (M, n) -> (M, k)."""
    return (labels[:, None] == np.arange(clusters)[:, None]).sum(axis=2)


def number_by_appearance(labels: Ragged) -> np.ndarray:
    """The labels (P,) of each list, renumbered to 0, 1, ... in the order of first appearance.

    >>> number_by_appearance(Ragged.from_lists([[7, 4, 7], [4, 4]])).tolist()
    [0, 1, 0, 0, 0]
    """
    if not len(labels.values):
        return labels.values
    row = labels.owners
    cluster = labels.pairs(labels.values.max() + 1)  # a number that no other list uses
    _, first, inverse = np.unique(cluster, return_index=True, return_inverse=True)

    # Clusters in the order of their first element, numbered from 0 within each row.
    by_first = np.argsort(first)
    rank = np.empty_like(by_first)
    rank[by_first] = np.arange(len(first))
    clusters_of_row = np.bincount(row[first], minlength=len(labels))
    clusters_before = np.concatenate([[0], np.cumsum(clusters_of_row)[:-1]])
    return rank[inverse] - clusters_before[row]


def single_clusters(archives: Ragged) -> np.ndarray:
    """Labels (P,) int16 that put every concept into a cluster of its own (``archive.clusters: false``).

    >>> single_clusters(Ragged.from_lists([[8, 2, 5], [2, 8]])).tolist()
    [0, 1, 2, 0, 1]
    """
    return _as_column(archives.positions)


def _as_column(labels: np.ndarray) -> np.ndarray:
    """Labels as archives store them, int16: the least relevant concepts of a huge archive share the last cluster."""
    return np.minimum(labels, LAST_CLUSTER).astype(np.int16)
