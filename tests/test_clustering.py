"""Clusters of archives against scikit-learn and exhaustive search, and what has to hold of every clustering."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from curation import clustering
from curation.base.embeddings import normalise
from curation.base.ragged import Ragged
from curation.clustering import cluster_archives, inertia, kmeans, number_by_appearance, single_clusters, uniforms

WORDS = 120


@pytest.fixture(scope="module")
def texts() -> np.ndarray:
    """Concepts in loose groups, as near-synonyms are."""
    random = np.random.default_rng(11)
    groups = random.normal(size=(40, 24))
    return normalise(groups[np.arange(WORDS) % 40] + 0.7 * random.normal(size=(WORDS, 24)))


def block(sizes: list[int], seed: int = 0, words: int = WORDS) -> tuple[np.ndarray, np.ndarray]:
    """Archives of given sizes, in random order within: offsets and concepts."""
    random = np.random.default_rng(seed)
    rows = [random.choice(words, size, replace=False) for size in sizes]
    return np.cumsum([0, *sizes]), np.concatenate([*rows, np.zeros(0, int)]).astype(np.int32)


def split(offsets: np.ndarray, labels: np.ndarray) -> list[list[int]]:
    return [labels[a:b].tolist() for a, b in pairwise(offsets)]


def partition(concepts: np.ndarray, labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(concepts[labels == label].tolist()) for label in np.unique(labels)}


def slow_inertia(points: np.ndarray, labels: np.ndarray) -> float:
    """Sum of squared distances to the own centroid, in the D dimensions and in float64."""
    points, labels = points.astype(np.float64), np.asarray(labels)
    return sum(((points[labels == one] - points[labels == one].mean(axis=0)) ** 2).sum() for one in np.unique(labels))


# --- quality -------------------------------------------------------------------------------------------------------------


def test_inertia_is_as_low_as_that_of_scikit_learn(texts: np.ndarray) -> None:
    sizes = np.random.default_rng(2).integers(3, 25, 250).tolist()
    offsets, concepts = block(sizes, seed=3)
    labels = cluster_archives(Ragged(offsets, concepts), texts)
    ours = theirs = 0.0
    with threadpool_limits(1):
        for start, end in pairwise(offsets):
            points = texts[concepts[start:end]]
            ours += slow_inertia(points, labels[start:end])
            reference = KMeans((len(points) + 1) // 2, n_init=5, random_state=0).fit_predict(points)
            theirs += slow_inertia(points, reference)
    assert ours <= 1.01 * theirs


@pytest.mark.parametrize("size", [3, 4, 5, 6])
def test_small_archives_come_close_to_the_best_partition_of_all(size: int, texts: np.ndarray) -> None:
    offsets, concepts = block([size] * 60, seed=size)
    labels = cluster_archives(Ragged(offsets, concepts), texts)
    count = (size + 1) // 2
    candidates = np.array([row for row in product(range(count), repeat=size) if len(set(row)) == count])
    ours = best = 0.0
    for start, end in pairwise(offsets):
        points = texts[concepts[start:end]]
        ours += slow_inertia(points, labels[start:end])
        gram = np.broadcast_to(points @ points.T, (len(candidates), size, size))
        best += inertia(gram, candidates, count).min()
    assert best * 0.9999 <= ours <= best * 1.01


def test_no_single_move_of_a_concept_lowers_the_inertia(texts: np.ndarray) -> None:
    offsets, concepts = block([5, 8, 9, 12] * 5, seed=8)
    labels = cluster_archives(Ragged(offsets, concepts), texts)
    for start, end in pairwise(offsets):
        points, own = texts[concepts[start:end]], labels[start:end]
        least = slow_inertia(points, own)
        for point, cluster in product(range(len(points)), range(own.max() + 1)):
            moved = own.copy()
            moved[point] = cluster
            if len(np.unique(moved)) == len(np.unique(own)):
                assert slow_inertia(points, moved) >= least - 1e-5


def test_clear_pairs_are_found() -> None:
    directions = normalise(np.random.default_rng(0).normal(size=(20, 16)))
    texts = normalise(np.repeat(directions, 2, axis=0) + 0.01 * np.random.default_rng(1).normal(size=(40, 16)))
    order = np.random.default_rng(2).permutation(40).astype(np.int32)
    labels = cluster_archives(Ragged(np.array([0, 40]), order), texts)
    assert partition(order, labels) == {frozenset({2 * pair, 2 * pair + 1}) for pair in range(20)}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 12), clusters=st.integers(1, 6), seed=st.integers(0, 999))
def test_inertia_in_gram_space_equals_that_in_the_full_space(
    data: st.DataObject, size: int, clusters: int, seed: int
) -> None:
    points = normalise(np.random.default_rng(seed).normal(size=(3, size, 20)))
    row = st.lists(st.integers(0, clusters - 1), min_size=size, max_size=size)  # some clusters may be empty
    labels = np.array(data.draw(st.lists(row, min_size=3, max_size=3)))
    in_gram_space = inertia(points @ points.transpose(0, 2, 1), labels, clusters)
    expected = [slow_inertia(own, row) for own, row in zip(points, labels, strict=True)]
    np.testing.assert_allclose(in_gram_space, expected, rtol=1e-4, atol=1e-5)


# --- form ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(0, 11), max_size=8), seed=st.integers(0, 99))
def test_counts_and_numbers_of_clusters(texts: np.ndarray, sizes: list[int], seed: int) -> None:
    offsets, concepts = block(sizes, seed)
    labels = cluster_archives(Ragged(offsets, concepts), texts, seed)
    assert (labels.dtype, labels.shape) == (np.int16, concepts.shape)
    for size, own in zip(sizes, split(offsets, labels), strict=True):
        count = -(-size // 2) if size > 2 else size
        assert list(dict.fromkeys(own)) == list(range(count))  # 0, 1, ... by first appearance


def test_numbers_follow_the_first_appearance_in_each_archive() -> None:
    offsets = np.array([0, 4, 4, 5, 9])
    labels = np.array([3, 1, 3, 0, 2, 0, 0, 3, 1])
    assert split(offsets, number_by_appearance(Ragged(offsets, labels))) == [[0, 1, 0, 2], [], [0], [0, 0, 1, 2]]


def test_each_concept_its_own_cluster_when_clusters_are_off() -> None:
    offsets = np.array([0, 3, 3, 4, 8])
    labels = single_clusters(Ragged(offsets, np.zeros(offsets[-1])))
    assert labels.dtype == np.int16
    assert split(offsets, labels) == [[0, 1, 2], [], [0], [0, 1, 2, 3]]
    assert single_clusters(Ragged(np.array([0, 0]), np.zeros(0))).tolist() == []


# --- what the clusters depend on -----------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_clusters_and_others_may_differ(texts: np.ndarray) -> None:
    offsets, concepts = block([40] * 20, seed=4)
    first = cluster_archives(Ragged(offsets, concepts), texts, seed=0)
    assert (cluster_archives(Ragged(offsets, concepts), texts, seed=0) == first).all()
    assert (cluster_archives(Ragged(offsets, concepts), texts, seed=1) != first).any()


@settings(max_examples=40, deadline=None)
@given(data=st.data(), size=st.integers(3, 16), seed=st.integers(0, 99))
def test_order_of_an_archive_does_not_change_its_partition(
    texts: np.ndarray, data: st.DataObject, size: int, seed: int
) -> None:
    offsets, concepts = block([size], seed)
    shuffled = concepts[data.draw(st.permutations(range(size)))]
    before, after = (cluster_archives(Ragged(offsets, row), texts, seed) for row in (concepts, shuffled))
    assert partition(shuffled, after) == partition(concepts, before)


def test_clusters_do_not_depend_on_the_other_archives(texts: np.ndarray) -> None:
    sizes = [7, 3, 0, 12, 7, 2, 7, 30, 1, 5, 12, 4] * 4
    offsets, concepts = block(sizes, seed=6)
    together = split(offsets, cluster_archives(Ragged(offsets, concepts), texts))
    for own, start, end in zip(together, offsets, offsets[1:], strict=False):
        alone = cluster_archives(Ragged(np.array([0, end - start]), concepts[start:end]), texts)
        assert alone.tolist() == own


def test_clusters_do_not_depend_on_the_size_of_batches(texts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    offsets, concepts = block([9, 4, 9, 9, 4, 9], seed=7)
    whole = cluster_archives(Ragged(offsets, concepts), texts)
    for batch in (1, 2 * clustering.RESTARTS * 81):  # one archive at a time, and two
        monkeypatch.setattr(clustering, "BATCH", batch)
        assert (cluster_archives(Ragged(offsets, concepts), texts) == whole).all()


# --- corner cases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 4, 7, 20])
def test_coincident_concepts_still_fill_every_cluster(size: int) -> None:
    texts = np.repeat(normalise(np.random.default_rng(0).normal(size=(1, 8))), 20, axis=0)
    labels = cluster_archives(Ragged(np.array([0, size]), np.arange(size, dtype=np.int32)), texts)
    assert list(dict.fromkeys(labels.tolist())) == list(range((size + 1) // 2))


def test_few_distinct_embeddings_among_copies_are_never_mixed() -> None:
    texts = np.repeat(np.eye(3, 8, dtype=np.float32), 4, axis=0)  # concepts 0 to 3, 4 to 7 and 8 to 11 coincide
    offsets, concepts = block([12, 11, 10, 9] * 5, seed=1, words=12)
    labels = cluster_archives(Ragged(offsets, concepts), texts)
    for start, end in pairwise(offsets):
        for members in partition(concepts[start:end], labels[start:end]):
            assert len({concept // 4 for concept in members}) == 1


def test_archives_without_concepts_give_no_labels(texts: np.ndarray) -> None:
    for offsets in (np.array([0]), np.array([0, 0, 0])):
        labels = cluster_archives(Ragged(offsets, np.zeros(0, np.int32)), texts)
        assert (labels.dtype, labels.shape) == (np.int16, (0,))


def test_restart_with_the_least_inertia_wins() -> None:
    points = normalise(np.random.default_rng(4).normal(size=(30, 24, 6)))
    gram = points @ points.transpose(0, 2, 1)
    draws = np.random.default_rng(5).random((30, 4, 12))
    together = inertia(gram, kmeans(gram, 12, draws), 12)
    single = [inertia(gram, kmeans(gram, 12, draws[:, [one]]), 12) for one in range(4)]
    np.testing.assert_allclose(together, np.min(single, axis=0), rtol=1e-5)
    assert np.ptp(single, axis=0).max() > 1e-3  # or else there was nothing to choose from


# --- random numbers ------------------------------------------------------------------------------------------------------


def rows_of_ids() -> np.ndarray:
    return np.stack([np.arange(4000), np.arange(4000) + 1, np.full(4000, 7)], axis=1).astype(np.int32)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_uniforms_fill_the_unit_interval_evenly(seed: int) -> None:
    draws = uniforms(rows_of_ids(), 6, seed)
    assert draws.shape == (4000, 6)
    assert ((draws >= 0) & (draws < 1)).all()
    for column in draws.T:
        counts = np.histogram(column, bins=20, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 50  # chi-square, 19 degrees of freedom: 43.8 at one in a thousand


def test_uniforms_of_columns_neighbouring_rows_and_seeds_are_unrelated() -> None:
    draws, other = uniforms(rows_of_ids(), 4, 0), uniforms(rows_of_ids(), 4, 1)
    assert (draws != other).mean() > 0.999
    together = np.concatenate([draws[:-1], draws[1:], other[:-1]], axis=1)
    correlation = np.corrcoef(together, rowvar=False) - np.eye(12)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_uniforms_of_a_row_depend_on_its_numbers_alone() -> None:
    rows = rows_of_ids()[:50]
    draws = uniforms(rows, 5, 3)
    assert (uniforms(rows[::-1], 5, 3)[::-1] == draws).all()
    assert (uniforms(rows.astype(np.int64), 5, 3) == draws).all()
    assert (uniforms(rows[:, [1, 0, 2]], 5, 3) != draws).any(axis=1).all()
    assert (uniforms(rows[:, :2], 5, 3) != draws).any(axis=1).all()
