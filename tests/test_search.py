"""List-ordered search against brute force and against FAISS' own search."""

from __future__ import annotations

import re
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base.embeddings import normalise
from curation.index import search
from curation.index.build import empty_index
from curation.index.lists import Lists
from curation.index.open import searchable, set_search
from curation.index.search import (
    BF16_ERROR,
    SUM_ERROR,
    Products,
    by_list,
    descending,
    rounds,
    search_lists,
)

HALVES = normalise(np.array(np.meshgrid(*[[-1, 1]] * 4)).reshape(4, -1).T)  # products are multiples of 1/2: many ties


def random_units(rows: int, dimension: int, seed: int = 0) -> np.ndarray:
    return normalise(np.random.default_rng(seed).normal(size=(rows, dimension)))


def in_lists(vectors: np.ndarray, member: np.ndarray, count: int) -> Lists:
    """Vectors as lists, by the number of each vector's list."""
    ids = [np.flatnonzero(member == number) for number in range(count)]
    return Lists(count, lambda number: (torch.from_numpy(vectors[ids[number]]), ids[number]))


def brute_force(vectors: np.ndarray, member: np.ndarray, queries: np.ndarray, probes: np.ndarray, size: int) -> list:
    """(cosine, id) of the best vectors in the probed lists, one query at a time."""
    results = []
    for query, probed in zip(queries, probes, strict=True):
        rows = np.flatnonzero(np.isin(member, probed[probed >= 0]))
        ranked = sorted((-float(np.dot(vectors[row], query)), int(row)) for row in rows)[:size]
        results.append([(-cosine, row) for cosine, row in ranked] + [(-np.inf, -1)] * (size - len(ranked)))
    return results


@settings(max_examples=150, deadline=None)
@given(data=st.data(), bf16=st.booleans())
def test_equals_brute_force_with_ties_duplicates_and_empty_lists(data: st.DataObject, bf16: bool) -> None:
    rows, count, queries = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 6)), data.draw(st.integers(1, 9))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    vectors = HALVES[random.integers(0, data.draw(st.integers(1, 16)), rows)]
    member = random.integers(0, count, rows)
    asked = HALVES[random.integers(0, 16, queries)]
    width = data.draw(st.integers(1, count))
    probes = np.stack([random.permutation(count)[:width] for _ in range(queries)])
    probes[random.random(probes.shape) < 0.1] = -1
    size = data.draw(st.integers(1, 10))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("QUERY_BLOCK", "VECTOR_BLOCK", "BF16_QUERIES", "MOST_PENDING"):
            patch.setattr(search, name, data.draw(st.sampled_from([1, 3, 1000]), name))
        cosines, ids = search_lists(asked, probes, in_lists(vectors, member, count), size, bf16)
    expected = brute_force(vectors, member, asked, probes, size)
    assert ids.tolist() == [[row for _, row in results] for results in expected]
    assert cosines.tolist() == [[cosine for cosine, _ in results] for results in expected]


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_equals_exact_search_on_random_vectors(bf16: bool, dtype: type) -> None:
    vectors, member = random_units(3000, 48).astype(dtype), np.random.default_rng(1).integers(0, 7, 3000)
    queries = random_units(200, 48, seed=2)
    probes = np.broadcast_to(np.arange(7), (200, 7))
    cosines, ids = search_lists(queries, probes, in_lists(vectors, member, 7), 10, bf16)
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    assert (ids == np.argsort(-exact, axis=1)[:, :10]).all()
    np.testing.assert_allclose(cosines, -np.sort(-exact, axis=1)[:, :10], atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_crowds_of_duplicates_are_cut_to_the_best(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.repeat(random_units(3, 16), 400, axis=0)
    monkeypatch.setattr(search, "CROWD", 5)
    probes = np.zeros((100, 1), int)
    cosines, ids = search_lists(vectors[:100], probes, in_lists(vectors, np.zeros(1200, int), 1), 6, bf16)
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert (ids < 400).all()
    assert all(len(set(row)) == 6 for row in ids.tolist())


def test_bf16_products_cut_no_vector_that_they_cannot_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CROWD", 4000)
    near = 0.02 * np.random.default_rng(1).normal(size=(4000, 64))  # cosines differ by less than bf16 tells apart
    vectors = normalise(random_units(1, 64) + near)
    queries, member = random_units(128, 64, seed=2), np.zeros(4000, int)
    ids = search_lists(queries, np.zeros((128, 1), int), in_lists(vectors, member, 1), 8, bf16=True)[1]
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    assert (np.sort(ids, axis=1) == np.sort(np.argsort(-exact, axis=1)[:, :8], axis=1)).all()


def test_results_do_not_depend_on_the_block() -> None:
    vectors, member = random_units(2000, 32), np.random.default_rng(1).integers(0, 5, 2000)
    lists = in_lists(vectors, member, 5)
    probes = np.random.default_rng(2).permuted(np.tile(np.arange(5), (300, 1)), axis=1)[:, :3]
    for bf16 in (False, True):
        whole = search_lists(vectors[:300], probes, lists, 8, bf16)
        for part in (slice(0, 1), slice(7, 190), slice(100, 300)):
            some = search_lists(vectors[part], probes[part], lists, 8, bf16)
            assert (some[0] == whole[0][part]).all()
            assert (some[1] == whole[1][part]).all()


@pytest.mark.parametrize("factory", ["IVF32,Flat", "IVF32,SQfp16"])
@pytest.mark.parametrize("probes", [1, 5, 32])
def test_result_sets_are_those_of_faiss_at_the_same_probes(factory: str, probes: int) -> None:
    vectors = random_units(4000, 24)
    index = empty_index(factory, 24)
    index.train(vectors)
    index.add(vectors)
    set_search(index, f"nprobe={probes}")
    expected_cosines, expected = index.search(vectors[:500], 8)
    for bf16 in (False, True):
        ours = searchable(index, bf16=bf16)
        assert ours.lists is not None
        cosines, ids = ours.search(vectors[:500], 8)
        assert (np.sort(ids) == np.sort(expected)).mean() > 0.999  # the last bit of a cosine may decide
        present = expected >= 0
        np.testing.assert_allclose(cosines[present], expected_cosines[present], atol=2e-6)


def test_a_mapped_file_is_searched_by_lists_too(tmp_path) -> None:
    from curation.index.build import write_index
    from curation.index.open import open_index

    vectors = random_units(3000, 24)
    index = empty_index("IVF32,Flat", 24)
    index.train(vectors)
    index.add(vectors)
    write_index(index, str(tmp_path / "image.faiss"))
    opened = open_index(str(tmp_path / "image.faiss"), "nprobe=9")
    assert opened.lists is not None
    set_search(index, "nprobe=9")
    assert (opened.search(vectors[:50], 4)[1] == index.search(vectors[:50], 4)[1]).mean() > 0.99
    if Path("/proc/self/smaps").exists():
        mapping = re.search(r"image\.faiss\n(?:.*\n)*?VmFlags: (.*)", Path("/proc/self/smaps").read_text())
        assert "rr" not in mapping[1].split()  # not in random order: the kernel reads ahead


@pytest.mark.parametrize("factory", ["IVF8,SQ8", "HNSW8", "PCA8,IVF8,Flat", "IVF8,PQ4x4fs"])
def test_what_our_search_cannot_read_is_left_to_faiss(factory: str) -> None:
    vectors = random_units(600, 16)
    index = empty_index(factory, 16)
    index.train(vectors)
    index.add(vectors)
    opened = searchable(index, bf16=True)
    assert opened.lists is None
    assert (opened.search(vectors[:9], 3)[1] == index.search(vectors[:9], 3)[1]).all()


def check_coarse_products(queries: np.ndarray, vectors: np.ndarray) -> None:
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    everything = np.arange(len(queries))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BF16_QUERIES", 1)
        products = Products(torch.from_numpy(queries), bf16=True, roundings={})
        products.load(torch.from_numpy(vectors), (0, 0))
        coarse, margin = products.coarse(everything)
    assert coarse.dtype == torch.bfloat16
    assert margin.max() < 3 * BF16_ERROR  # no product of unit vectors can be farther off
    # Rounding keeps order, so that a product that was within the margin lies between the rounded ends.
    low, high = (torch.from_numpy(exact + sign * margin[:, None]).bfloat16() for sign in (-1, 1))
    assert ((low <= coarse) & (coarse <= high)).all()

    fine = Products(torch.from_numpy(queries), bf16=False, roundings={})
    fine.load(torch.from_numpy(vectors), (0, 0))
    assert np.abs(fine.coarse(everything)[0].numpy() - exact).max() < SUM_ERROR


@settings(deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 70), dimension=st.integers(1, 600), seed=st.integers(0, 99))
def test_coarse_products_stay_within_their_margin(rows: int, columns: int, dimension: int, seed: int) -> None:
    check_coarse_products(random_units(rows, dimension, seed), random_units(columns, dimension, seed + 1))


def test_coarse_products_of_vectors_that_round_all_one_way() -> None:
    # 1 / sqrt(254) lies nearly in the middle of two bf16 numbers.
    constant = np.full((3, 254), 254**-0.5, np.float32)
    check_coarse_products(constant, np.concatenate([constant, random_units(5, 254)]))


def test_rounds_cover_every_probe_once() -> None:
    for probes in (1, 2, 31, 32, 33, 1000, 5000):
        ranges = list(rounds(probes))
        assert [number for first, last in ranges for number in range(first, last)] == list(range(probes))
        assert ranges[0] == (0, 1)


@given(st.data())
def test_by_list_names_every_probing_row_once(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 5))
    probes = np.array(data.draw(st.lists(st.permutations(range(-1, count)), min_size=1, max_size=6)))[:, :3]
    probing = {number: rows.tolist() for number, rows in by_list(probes, count)}
    expected = {number: np.flatnonzero((probes == number).any(axis=1)).tolist() for number in range(count)}
    assert probing == {number: rows for number, rows in expected.items() if rows}


@pytest.mark.parametrize("count", [32_767, 32_768, 32_769, 70_000])
def test_by_list_tells_lists_apart_beyond_16_bits(count: int) -> None:
    probes = np.array([[0, count - 1, 5], [count - 1, -1, -1], [count - 2, 5, 0]])
    probing = {number: rows.tolist() for number, rows in by_list(probes, count)}
    assert probing == {0: [0, 2], 5: [0, 2], count - 2: [2], count - 1: [0, 1]}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from([-1.0, -0.5, -0.0, 0.0, 1e-30, 0.25, 1.0, -np.inf]), st.integers(0, 9)
        ),
        max_size=12,
    )
)
def test_descending_order_with_ties_by_id(items: list[tuple[int, float, int]]) -> None:
    rows, cosines, ids = (np.array([item[k] for item in items]) for k in range(3))
    order = descending(rows.astype(np.int64), cosines.astype(np.float32), ids.astype(np.int64))
    sorted_items = [items[k] for k in order]
    assert sorted_items == sorted(sorted_items, key=lambda item: (item[0], -item[1], item[2]))


def test_faiss_exact_search_is_the_oracle_of_the_flat_index() -> None:
    vectors = random_units(9000, 16)  # more than one chunk of columns
    index = faiss.IndexFlatIP(16)
    index.add(vectors)
    ids = searchable(index, bf16=True).search(vectors[:40], 6)[1]
    assert (ids == index.search(vectors[:40], 6)[1]).all()
