"""Recall, and the search effort that reaches it."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.base.embeddings import normalise
from curation.index.build import empty_index, train
from curation.index.open import effort
from curation.index.recall import exact_neighbours, recall, true_neighbours, tune


def test_training_gives_the_same_bits_with_any_number_of_threads() -> None:
    sample = normalise(np.random.default_rng(0).normal(size=(3000, 24)))
    trained = []
    before = faiss.omp_get_max_threads()
    for threads in (1, 2, 5):
        faiss.omp_set_num_threads(threads)
        index = empty_index("IVF32,SQfp16", 24)
        train(index, sample, "IVF32,SQfp16")
        trained.append(faiss.serialize_index(index).tobytes())
    faiss.omp_set_num_threads(before)
    assert trained[0] == trained[1] == trained[2]


def test_exact_neighbours_do_not_depend_on_the_blocks(vectors: np.ndarray) -> None:
    expected = np.sort(np.argsort(-(vectors[:20] @ vectors.T), axis=1)[:, :7])
    for cuts in ((), (3,), (100, 101, 200)):
        assert (np.sort(exact_neighbours(np.split(vectors, cuts), vectors[:20], 7)) == expected).all()
    few = exact_neighbours([vectors[:2], vectors[2:3]], vectors[:1], 5)
    assert sorted(few[0].tolist()) == [-1, -1, 0, 1, 2]


def test_recall_counts_the_expected_that_were_found() -> None:
    expected = np.array([[1, 2], [3, -1]])
    ids = np.array([[2, 9, 8], [-1, -1, 3]])
    assert recall(ids, expected) == pytest.approx(2 / 3)


@given(reached=st.integers(1, 300), largest=st.integers(1, 300), first=st.integers(1, 400))
def test_tuning_finds_the_least_setting_to_some_percent(reached: int, largest: int, first: int) -> None:
    asked = []

    def measure(setting: int) -> float:
        asked.append(setting)
        assert 1 <= setting <= largest
        return 0.95 if setting >= reached else 0.5

    setting, measured = tune(measure, 0.95, largest, first)
    if reached > largest:
        assert (setting, measured) == (largest, 0.5)
    else:
        assert measured == 0.95
        assert reached <= setting <= reached * 17 / 16 + 1
    assert len(asked) < 20


def test_effort_of_an_index() -> None:
    assert effort(empty_index("IVF4,Flat", 8)) == ("nprobe", 4)
    assert effort(empty_index("PCA4,IVF4,Flat", 8)) == ("nprobe", 4)
    assert effort(empty_index("HNSW8", 8))[0] == "efSearch"
    assert effort(empty_index("Flat", 8)) == ("", 0)


# --- what is as near as the true L-th counts ------------------------------------------------------------------------------


def asked_of(vectors: np.ndarray, queries: np.ndarray, asked: list[int]):
    def cosines(numbers: np.ndarray, ids: np.ndarray) -> np.ndarray:
        asked.append(len(ids))
        return (vectors[ids] * queries[numbers]).sum(axis=1)

    return cosines


def test_any_of_the_copies_of_one_picture_counts() -> None:
    vectors = normalise(np.random.default_rng(3).normal(size=(400, 16)))
    vectors[100:] = vectors[0]  # three hundred copies, of which L are as good as any other L
    rows = np.array([5, 150, 399])
    truth = true_neighbours(np.split(vectors, [130]), vectors[rows], rows, 4)
    asked: list[int] = []
    ids = np.argsort(-(vectors[rows] @ vectors.T), axis=1, kind="stable")[:, :5]
    ids[1:] = [[200, 201, 202, 203, 204], [399, 300, 301, 7, -1]]  # all are copies; two copies and a stranger
    assert recall(ids[1:], truth.ids[1:]) == 0
    assert truth.recall(ids, asked_of(vectors, vectors[rows], asked)) == pytest.approx((4 + 4 + 2) / 12)
    assert asked == [5 + 3]  # of the copies only


@given(seed=st.integers(0, 50), size=st.integers(1, 12))
def test_without_ties_it_is_the_share_of_the_true_neighbours(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    vectors = normalise(random.normal(size=(9, 6)))  # there may be fewer than L
    rows = np.array([0, 8])
    truth = true_neighbours([vectors], vectors[rows], rows, size)
    ids = np.stack([random.permutation(9) for _ in rows])[:, : size + 1]
    exact = [set(np.argsort(-(vectors @ vectors[row]))[1 : size + 1].tolist()) for row in rows]
    share = sum(len(ours & set(row.tolist())) for ours, row in zip(exact, ids, strict=True)) / sum(map(len, exact))
    assert truth.recall(ids, asked_of(vectors, vectors[rows], [])) == pytest.approx(share)
