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
from curation.index.recall import exact_neighbours, recall, tune


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


@given(reached=st.integers(1, 300), largest=st.integers(1, 300))
def test_tuning_finds_the_least_setting_to_some_percent(reached: int, largest: int) -> None:
    asked = []

    def measure(setting: int) -> float:
        asked.append(setting)
        assert 1 <= setting <= largest
        return 0.95 if setting >= reached else 0.5

    setting, measured = tune(measure, 0.95, largest)
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
