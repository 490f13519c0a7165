"""Neighbours of anchors, and indexes of FAISS: built, filled, searched, opened."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_formula import neighbours as slow_neighbours

from curation.base.embeddings import normalise
from curation.base.errors import CocuError
from curation.index.build import (
    empty_index,
    encode,
    exact_index,
    fill,
    fills_in_parts,
    list_content,
    pick,
    sample_rows,
    train,
    write_index,
)
from curation.index.neighbours import choose_neighbours, nearest
from curation.index.open import SearchIndex, faiss_is_faster, open_index, read_trained, searchable, set_search
from curation.mentions import open_mentions

# 24 unit vectors whose products are exactly 0, ±1/2 or ±1, so that ties are frequent and nothing is rounded.
UNITS = np.concatenate([np.eye(4), -np.eye(4), np.array(list(product([0.5, -0.5], repeat=4)))]).astype(np.float32)


def flat(vectors: np.ndarray, bf16: bool | None = None) -> SearchIndex:
    return searchable(exact_index(vectors), bf16=bf16)


@st.composite
def searches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Indexed vectors with many duplicates, anchors indexed and not, and L, which may exceed the index."""
    units = st.integers(0, draw(st.integers(0, 23)))
    vectors = UNITS[draw(st.lists(units, min_size=1, max_size=12))]
    anchors = np.array(draw(st.lists(st.integers(-1, len(vectors) - 1), min_size=1, max_size=4)))
    foreign = UNITS[draw(st.lists(st.integers(0, 23), min_size=len(anchors), max_size=len(anchors)))]
    queries = np.where(anchors[:, None] >= 0, vectors[anchors], foreign)
    return vectors, queries, anchors, draw(st.integers(1, 14))


def sorted_search(cosines: np.ndarray, tie_break: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Search results as FAISS returns them, with ties in the order of ``tie_break`` and -1 where the index ends."""
    order = np.lexsort((np.broadcast_to(tie_break, cosines.shape), -cosines), axis=1)
    padding = ((0, 0), (0, max(0, columns - cosines.shape[1])))
    ids = np.pad(order, padding, constant_values=-1)
    values = np.pad(np.take_along_axis(cosines, order, 1), padding, constant_values=np.finfo(np.float32).min)
    return ids[:, :columns], values[:, :columns]


def assert_neighbours(
    results: tuple[np.ndarray, np.ndarray],
    vectors: np.ndarray,
    queries: np.ndarray,
    anchors: np.ndarray,
    size: int,
    include_anchor: bool,
    cut: bool,
) -> None:
    """Equal to brute force; with ``cut``, of images that tie at the L-th place any may have been returned."""
    ids, cosines = results
    assert (ids.shape, ids.dtype, cosines.dtype) == ((len(anchors), size), np.int64, np.float32)
    for row, values, query, anchor in zip(ids.tolist(), cosines.tolist(), queries, anchors.tolist(), strict=True):
        expected = slow_neighbours(vectors, query, anchor, size, include_anchor)
        assert values == [cosine for _, cosine in expected]
        if not cut:
            assert row == [number for number, _ in expected]
            continue
        present = [number for number in row if number >= 0]
        assert len(set(present)) == len(present) == sum(number >= 0 for number, _ in expected)
        assert row[len(present) :] == [-1] * (size - len(present))
        assert values[: len(present)] == [float(vectors[number] @ query) for number in present]
        first = anchor >= 0 and include_anchor
        assert present[:1] == [anchor] if first else anchor not in present
        rest = list(zip((-value for value in values), present, strict=False))[first:]
        assert rest == sorted(rest)
        above = [item for item in expected if item[1] > expected[-1][1]]
        assert {number for number, _ in above} <= set(row)


@pytest.mark.parametrize("include_anchor", [False, True])
@settings(max_examples=100, deadline=None)
@given(search=searches(), data=st.data())
def test_choice_from_a_whole_search_equals_brute_force(
    include_anchor: bool, search: tuple, data: st.DataObject
) -> None:
    vectors, queries, anchors, size = search
    tie_break = np.array(data.draw(st.permutations(range(len(vectors)))))
    ids, cosines = sorted_search(queries @ vectors.T, tie_break, max(len(vectors), size + 1))
    results = choose_neighbours(ids, cosines, anchors, size, include_anchor)
    assert_neighbours(results, vectors, queries, anchors, size, include_anchor, cut=False)


@pytest.mark.parametrize("include_anchor", [False, True])
@settings(max_examples=100, deadline=None)
@given(search=searches(), data=st.data())
def test_choice_from_a_cut_search_has_the_anchor_and_the_best_cosines(
    include_anchor: bool, search: tuple, data: st.DataObject
) -> None:
    vectors, queries, anchors, size = search
    tie_break = np.array(data.draw(st.permutations(range(len(vectors)))))  # may leave the anchor beyond the cut
    ids, cosines = sorted_search(queries @ vectors.T, tie_break, size + (not include_anchor))
    results = choose_neighbours(ids, cosines, anchors, size, include_anchor)
    assert_neighbours(results, vectors, queries, anchors, size, include_anchor, cut=True)


@pytest.mark.parametrize("include_anchor", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@settings(max_examples=100, deadline=None)
@given(search=searches())
def test_nearest_in_a_flat_index_equals_brute_force(include_anchor: bool, bf16: bool, search: tuple) -> None:
    vectors, queries, anchors, size = search
    results = nearest(flat(vectors, bf16), queries, anchors, size, include_anchor)
    assert_neighbours(results, vectors, queries, anchors, size, include_anchor, cut=True)


def test_choice_leaves_the_search_results_as_they_were() -> None:
    ids, cosines = np.array([[0, 1]]), np.array([[1.0, 1.0]], np.float32)
    choose_neighbours(ids, cosines, np.array([5]), 2, include_anchor=True)
    assert (ids.tolist(), cosines.tolist()) == ([[0, 1]], [[1.0, 1.0]])


@pytest.mark.parametrize("anchor", [0, 7, 19])
def test_anchor_comes_first_though_more_than_l_copies_tie_with_it(anchor: int) -> None:
    vectors = np.repeat(UNITS[:1], 20, axis=0)
    ids, cosines = nearest(flat(vectors), vectors[:1], np.array([anchor]), 4, include_anchor=True)
    assert ids[0, 0] == anchor
    assert len(set(ids[0].tolist())) == 4
    assert (ids[0, 1:] == np.sort(ids[0, 1:])).all()
    assert (cosines == 1).all()


@pytest.mark.parametrize("anchor", [0, 7, 19])
def test_anchor_left_out_is_replaced_by_a_copy(anchor: int) -> None:
    vectors = np.repeat(UNITS[:1], 20, axis=0)
    ids, cosines = nearest(flat(vectors), vectors[:1], np.array([anchor]), 4, include_anchor=False)
    assert anchor not in ids
    assert (ids >= 0).all()
    assert len(set(ids[0].tolist())) == 4
    assert (cosines == 1).all()


def test_anchor_that_is_not_indexed_gets_no_place_of_its_own() -> None:
    vectors = UNITS[[0, 1, 0, 4]]
    for include_anchor in (False, True):
        ids, cosines = nearest(flat(vectors), UNITS[:1], np.array([-1]), 3, include_anchor)
        assert (ids.tolist(), cosines.tolist()) == ([[0, 2, 1]], [[1.0, 1.0, 0.0]])


def test_index_smaller_than_l_is_padded_with_minus_one_and_zero() -> None:
    vectors = UNITS[[0, 4]]
    ids, cosines = nearest(flat(vectors), vectors, np.array([0, -1]), 4, include_anchor=False)
    assert ids.tolist() == [[1, -1, -1, -1], [1, 0, -1, -1]]
    assert cosines.tolist() == [[-1, 0, 0, 0], [1, -1, 0, 0]]


# --- FAISS indexes -------------------------------------------------------------------------------------------------------


def build(vectors: np.ndarray, factory: str) -> faiss.Index:
    """As the stages build it: trained on a sample, filled in parts where that is possible."""
    index = empty_index(factory, vectors.shape[1])
    train(index, vectors[:200], factory)
    if fills_in_parts(index):
        fill(index, lambda: [encode(index, part) for part in np.split(vectors, [1, 100])])
    else:
        index.add(vectors)
    return index


def overlap(ids: np.ndarray, expected: np.ndarray) -> float:
    """The share of expected neighbours that were found."""
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(ids.tolist(), expected.tolist(), strict=True)])


def test_position_in_a_flat_index_is_the_row_whatever_the_blocks(vectors: np.ndarray) -> None:
    ids, cosines = nearest(searchable(build(vectors, "Flat")), vectors, np.full(240, -1), 5, True)
    exact = vectors @ vectors.T
    assert (ids == np.argsort(-exact, axis=1)[:, :5]).all()
    np.testing.assert_allclose(cosines, -np.sort(-exact, axis=1)[:, :5], atol=1e-6)


@pytest.mark.parametrize(
    ("factory", "search", "share"),
    [
        ("Flat", None, 1),
        ("IVF4,Flat", "nprobe=4", 1),
        ("IVF4,Flat", None, 0.4),
        ("IVF4,SQfp16", "nprobe=4", 0.98),
        ("IVF4,SQ8", "nprobe=4", 0.9),
        ("PCA6,IVF4,Flat", "nprobe=4", 0.5),
        ("IVF4,PQ4x4fs", "nprobe=4", 0.2),
        ("HNSW8", "efSearch=64", 0.98),
        ("HNSW8", None, 0.9),
        ("SQ8", None, 0.9),
    ],
)
def test_index_written_and_opened_finds_the_neighbours(
    factory: str, search: str | None, share: float, vectors: np.ndarray, tmp_path: Path
) -> None:
    path = str(tmp_path / "new" / "image.faiss")
    write_index(build(vectors, factory), path)
    assert [item.name for item in (tmp_path / "new").iterdir()] == ["image.faiss"]
    anchors = np.arange(240)
    ids, _ = nearest(open_index(path, search), vectors, anchors, 6, True)
    expected, _ = nearest(flat(vectors), vectors, anchors, 6, True)
    assert (ids[:, 0] == anchors).all()
    assert overlap(ids, expected) >= share


@pytest.mark.parametrize("include_anchor", [False, True])
def test_inverted_index_with_all_lists_probed_equals_flat(include_anchor: bool, vectors: np.ndarray) -> None:
    index = build(vectors, "IVF4,Flat")
    set_search(index, "nprobe=4")
    anchors = np.arange(240)
    ids, cosines = nearest(searchable(index), vectors, anchors, 7, include_anchor)
    expected_ids, expected_cosines = nearest(flat(vectors), vectors, anchors, 7, include_anchor)
    assert (ids == expected_ids).all()
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-6)


def test_search_of_one_list_still_has_the_anchor_and_pads(vectors: np.ndarray) -> None:
    index = build(vectors, "IVF4,Flat")
    set_search(index, "nprobe=1")
    ids, _ = nearest(searchable(index), vectors[:30], np.arange(100, 130), 240, include_anchor=True)  # another's vector
    assert (ids[:, 0] == np.arange(100, 130)).all()
    assert (ids[:, -1] == -1).all()


@pytest.mark.parametrize(
    "factory", ["IVF4,Flat", "IVF4,SQfp16", "IVF4,SQ8", "IVF4,PQ4x4", "PCA6,IVF4,Flat", "IVF4_HNSW8,Flat"]
)
@pytest.mark.parametrize("cuts", [(), (1, 100), (17, 17, 18, 239)])
def test_index_filled_in_parts_is_the_one_that_faiss_fills(
    factory: str, cuts: tuple[int, ...], vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = empty_index(factory, 8)
    train(ours, vectors, factory)
    theirs = faiss.clone_index(ours)
    monkeypatch.setattr("curation.index.build.MERGED_AT_ONCE", 500)
    fill(ours, lambda: [encode(ours, part) for part in np.split(vectors, cuts)])
    theirs.add(vectors)
    assert ours.ntotal == theirs.ntotal == 240
    for number in range(4):
        (codes, ids), (expected_codes, expected_ids) = (
            list_content(faiss.extract_index_ivf(index), number) for index in (ours, theirs)
        )
        assert (ids == expected_ids).all()
        if factory.startswith("PCA"):  # the last bit of a rotated vector depends on the block
            np.testing.assert_allclose(codes.view(np.float32), expected_codes.view(np.float32), atol=1e-6)
        else:
            assert (codes == expected_codes).all()


def test_sample_and_held_out_queries_are_apart_where_there_are_enough_rows() -> None:
    trained, queries = sample_rows(1000, 800, 100)
    assert len(set(trained)) == 800
    assert len(set(queries)) == 100
    assert not set(trained) & set(queries)
    assert (np.diff(trained) > 0).all()
    trained, queries = sample_rows(50, 800, 100)
    assert set(trained) == set(queries) == set(range(50))


def test_rows_are_picked_from_blocks(vectors: np.ndarray) -> None:
    rows = np.array([0, 3, 99, 100, 239])
    for cuts in ((), (1, 100), (100,), (50, 50, 60)):
        assert (pick(np.split(vectors, cuts), rows) == vectors[rows]).all()


@pytest.mark.parametrize("factory", ["Nonsense", "IVF4,Nonsense", "IVF500,Flat", "PQ3", ""])
def test_factory_that_faiss_rejects_is_an_error_of_the_user(factory: str, vectors: np.ndarray) -> None:
    with pytest.raises(CocuError, match=r"^retrieval\.index: ") as caught:
        build(vectors, factory)
    assert "\n" not in str(caught.value)
    assert factory in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "search"),
    [("Flat", "nprobe=4"), ("HNSW8", "nprobe=4"), ("IVF4,Flat", "probes=4"), ("IVF4,Flat", "nprobe=many")],
)
def test_search_parameter_that_does_not_fit_is_an_error_of_the_user(
    factory: str, search: str, vectors: np.ndarray
) -> None:
    with pytest.raises(CocuError, match=r"^retrieval\.search: ") as caught:
        set_search(build(vectors, factory), search)
    assert "\n" not in str(caught.value)
    assert repr(search) in str(caught.value)


def test_search_parameter_is_checked_when_an_index_is_opened(vectors: np.ndarray, tmp_path: Path) -> None:
    path = str(tmp_path / "image.faiss")
    write_index(build(vectors, "Flat"), path)
    with pytest.raises(CocuError, match=r"retrieval\.search"):
        open_index(path, "nprobe=4")


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW8"])
@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.98])
def test_truncated_index_is_an_error_that_names_the_file(
    factory: str, kept: float, vectors: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "image.faiss"
    write_index(build(vectors, factory), str(path))
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CocuError, match="delete it and run again") as caught:
        open_index(str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_index_and_mentions_are_errors_that_name_the_file(tmp_path: Path) -> None:
    for opened in (open_index, open_mentions):
        with pytest.raises(CocuError, match="absent: no such file"):
            opened(str(tmp_path / "absent"))


def test_index_written_again_is_opened_anew(vectors: np.ndarray, tmp_path: Path) -> None:
    path = str(tmp_path / "image.faiss")
    for rows in (20, 30):
        write_index(exact_index(vectors[:rows]), path)
        assert open_index(path).rows == rows


@pytest.mark.parametrize(
    ("probes", "lists", "faster"),
    [(1, 64, False), (1, 512, False), (1, 1024, True), (2, 1024, False), (7, 4096, True), (8, 4096, False)],
)
def test_few_probes_of_many_lists_are_left_to_faiss(probes, lists, faster):
    assert faiss_is_faster(probes, lists) == faster


def test_what_faiss_searches_has_the_same_results(monkeypatch):
    vectors = normalise(np.random.default_rng(2).normal(size=(3000, 16)))
    index = build(vectors, "IVF64,Flat")
    set_search(index, "nprobe=2")
    ours = searchable(index, bf16=False).search(vectors[:100], 5)
    monkeypatch.setattr("curation.index.open.LISTS_A_PROBE", 1)
    theirs = searchable(index, bf16=False)
    monkeypatch.setattr("curation.index.open.search_lists", lambda *_: pytest.fail("not by FAISS"))
    cosines, ids = theirs.search(vectors[:100], 5)
    assert (ids == ours[1]).all()
    np.testing.assert_allclose(cosines, ours[0], atol=1e-6)


@pytest.mark.skipif(not hasattr(faiss, "set_deserialization_vector_byte_limit"), reason="this FAISS has no such limit")
def test_a_large_index_is_read_after_a_small_one(tmp_path):
    """FAISS' limit of what it believes of a file is the process's, and was that of the index read before."""
    small, large = build(UNITS, "Flat"), build(normalise(np.random.default_rng(0).normal(size=(9000, 64))), "Flat")
    for name, index in (("small", small), ("large", large)):
        faiss.write_index(index, str(tmp_path / name))
    open_index(str(tmp_path / "small"))
    with pytest.raises(RuntimeError):
        faiss.read_index(str(tmp_path / "large"))
    assert read_trained(str(tmp_path / "large")).ntotal == 9000
