"""Expansion and ranking against the slow formula, and what has to hold of every archive."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_formula import Entry, listed_archive, neighbours, retrieved_archive

from curation.base.embeddings import normalise
from curation.base.ragged import Ragged
from curation.expansion import Anchors, Expansion, expand_retrieved, listed, nearest_concepts
from curation.index.build import exact_index
from curation.index.neighbours import nearest
from curation.index.open import searchable
from curation.mentions import Mentions
from curation.ranking import anchor_similarities, descending, rank
from curation.similarity import pair_similarities

RANKINGS = ["cocu", "similarity", "support", "calibrated", "supported", "none"]
EXACT = ["similarity", "support", "none"]  # no rounding: the order is the oracle's to the letter


@dataclass
class Case:
    """An index, a vocabulary and a block of anchors with their retrieved rows."""

    vectors: np.ndarray  # (N, D) images of the index
    captions: list[set[int]]  # what each of them mentions
    texts: np.ndarray  # (V, D)
    images: np.ndarray  # (B, D) anchors
    anchors: np.ndarray  # (B,)
    retrieved: np.ndarray  # (B, L)
    calibration: np.ndarray  # (V, 2)

    @property
    def mentions(self) -> Mentions:
        concepts = Ragged.from_lists([sorted(caption) for caption in self.captions], np.int32)
        return Mentions(concepts, pair_similarities(self.vectors, self.texts, concepts))

    @property
    def expansion(self) -> Expansion:
        anchors = Anchors(self.images, self.anchors, Ragged.from_lists([[]] * len(self.images)), self.retrieved)
        return expand_retrieved(anchors, self.mentions, self.texts, self.retrieved.shape[1])

    def slow(self, ranking: str, anchor_twice: bool = False) -> list[list[Entry]]:
        return [
            retrieved_archive(
                image, anchor, row, self.vectors, self.captions, self.texts, ranking, anchor_twice, self.calibration
            )
            for image, anchor, row in zip(self.images, self.anchors.tolist(), self.retrieved.tolist(), strict=True)
        ]

    def fast(self, ranking: str, anchor_twice: bool = False) -> list[list[Entry]]:
        return archives(self.expansion, self.images, self.texts, ranking, anchor_twice, self.calibration)


def archives(
    expansion: Expansion,
    images: np.ndarray,
    texts: np.ndarray,
    ranking: str = "cocu",
    anchor_twice: bool = False,
    calibration: np.ndarray | None = None,
) -> list[list[Entry]]:
    """The sorted archives of a block, by the code under test."""
    concepts = expansion.concepts
    scores = rank(expansion, anchor_similarities(images, texts, concepts), ranking, anchor_twice, calibration)
    order = descending(concepts, scores.score)
    columns = (concepts.values, scores.score, scores.global_, scores.local, expansion.support)
    rows = list(zip(*(column[order].tolist() for column in columns), strict=True))
    bounds = concepts.offsets.tolist()
    assert len(bounds) == len(images) + 1
    return [[Entry(*row) for row in rows[a:b]] for a, b in pairwise(bounds)]


def assert_same(fast: list[list[Entry]], slow: list[list[Entry]], ranking: str) -> None:
    """Same concepts, values up to rounding, and the order of the slow scores (near-ties may swap where they round)."""
    assert len(fast) == len(slow)
    for ours, theirs in zip(fast, slow, strict=True):
        assert [e.concept for e in sorted(ours)] == [e.concept for e in sorted(theirs)]
        np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=1e-5, atol=1e-5)
        if ranking in EXACT:
            assert [e.concept for e in ours] == [e.concept for e in theirs]
        slow_score = {e.concept: e.score for e in theirs}
        in_our_order = np.array([slow_score[e.concept] for e in ours])
        assert (np.diff(in_our_order) <= 1e-5).all()


def grid(*shape: int) -> st.SearchStrategy[np.ndarray]:
    """Vectors of quarters, so that every product is exact and ties and negative cosines are frequent."""
    size = int(np.prod(shape))
    quarters = st.lists(st.integers(-4, 4), min_size=size, max_size=size)
    return quarters.map(lambda values: (np.array(values, np.float32) / 4).reshape(shape))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    words, rows, size = draw(st.integers(1, 6)), draw(st.integers(1, 7)), draw(st.integers(1, 5))
    pool = draw(grid(draw(st.integers(1, rows)), 3))
    vectors = pool[draw(st.lists(st.integers(0, len(pool) - 1), min_size=rows, max_size=rows))]  # duplicates of images
    caption = st.sets(st.integers(0, words - 1), max_size=3)
    captions = draw(st.lists(caption, min_size=rows, max_size=rows))
    images, anchors, retrieved = [], [], []
    for _ in range(draw(st.integers(1, 4))):
        anchor = draw(st.integers(-1, rows - 1))
        found = draw(st.lists(st.integers(0, rows - 1), max_size=size, unique=True))
        images.append(vectors[anchor] if anchor >= 0 else draw(grid(3)))
        anchors.append(anchor)
        retrieved.append(found + [-1] * (size - len(found)))
    calibration = draw(grid(words, 2))
    calibration[:, 1] = np.abs(calibration[:, 1]) + 0.25
    texts = draw(grid(words, 3))
    return Case(vectors, captions, texts, np.array(images), np.array(anchors), np.array(retrieved), calibration)


@pytest.mark.parametrize("anchor_twice", [False, True])
@pytest.mark.parametrize("ranking", RANKINGS)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_archives_equal_the_slow_formula(ranking: str, anchor_twice: bool, case: Case) -> None:
    assert_same(case.fast(ranking, anchor_twice), case.slow(ranking, anchor_twice), ranking)


@pytest.mark.parametrize("include_anchor", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_archives_of_a_searched_index_equal_the_slow_formula(held: bool, include_anchor: bool) -> None:
    random = np.random.default_rng(3)
    rows, words, block, size = 80, 40, 12, 8

    def units(count: int) -> np.ndarray:  # in steps of 1/256, for exact products
        values = random.normal(size=(count, 16))
        return np.round(values / np.linalg.norm(values, axis=1, keepdims=True) * 256).astype(np.float32) / 256

    vectors, texts = units(rows), units(words)
    captions = [set(random.choice(words, random.integers(0, 6), replace=False).tolist()) for _ in range(rows)]
    anchors = random.choice(rows, block, replace=False) if held else np.full(block, -1)
    images = vectors[anchors] if held else units(block)
    index = searchable(exact_index(vectors))
    found = nearest(index, images, anchors, size, include_anchor)[0]
    expected = [
        [row for row, _ in neighbours(vectors, image, anchor, size, include_anchor)]
        for image, anchor in zip(images, anchors.tolist(), strict=True)
    ]
    assert found.tolist() == expected
    case = Case(vectors, captions, texts, images, anchors, found, np.ones((words, 2), np.float32))
    for ranking in RANKINGS:
        assert_same(case.fast(ranking), case.slow(ranking), ranking)


@settings(max_examples=80, deadline=None)
@given(case=cases(), data=st.data())
def test_order_of_neighbours_does_not_matter(case: Case, data: st.DataObject) -> None:
    before = case.fast("cocu")
    columns = data.draw(st.permutations(range(case.retrieved.shape[1])))
    case.retrieved = case.retrieved[:, columns]
    assert case.fast("cocu") == before


@settings(max_examples=80, deadline=None)
@given(case=cases(), data=st.data(), ranking=st.sampled_from(RANKINGS))
def test_permuting_the_anchors_permutes_the_archives(case: Case, data: st.DataObject, ranking: str) -> None:
    before = case.fast(ranking)
    order = data.draw(st.permutations(range(len(case.anchors))))
    case.images, case.anchors, case.retrieved = (
        values[order] for values in (case.images, case.anchors, case.retrieved)
    )
    assert case.fast(ranking) == [before[number] for number in order]


@settings(max_examples=80, deadline=None)
@given(case=cases(), anchor_twice=st.booleans(), ranking=st.sampled_from(RANKINGS))
def test_archives_are_finite_positive_and_sorted(case: Case, anchor_twice: bool, ranking: str) -> None:
    for archive in case.fast(ranking, anchor_twice):
        assert np.isfinite([entry[1:] for entry in archive]).all()
        assert all(0 < entry.global_ <= 1 and entry.local > 0 for entry in archive)
        assert archive == sorted(archive, key=lambda entry: (-entry.score, entry.concept))
        assert len({entry.concept for entry in archive}) == len(archive)


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_support_counts_captions_and_entries_ascend_before_ranking(case: Case) -> None:
    expansion = case.expansion
    for number, (row, anchor) in enumerate(zip(case.retrieved.tolist(), case.anchors.tolist(), strict=True)):
        part = slice(*expansion.concepts.offsets[number : number + 2])
        captions = [case.captions[j] for j in row if j >= 0]
        others = [case.captions[j] for j in row if j >= 0 and j != anchor]
        found = expansion.concepts.values[part].tolist()
        assert found == sorted(set().union(*captions))
        assert expansion.support[part].tolist() == [sum(c in caption for caption in captions) for c in found]
        assert expansion.reference_count[part].tolist() == [sum(c in caption for caption in others) for c in found]
        own = case.captions[anchor] if anchor in row and anchor >= 0 else set()
        assert expansion.anchor_mentions[part].tolist() == [c in own for c in found]


# --- by hand -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def example() -> Case:
    # s of concepts 0, 1, 2:  image 0: .8 .6 .96   image 1: 1 0 .6   image 2: .28 .96 .936   image 3: -1 0 -.6
    return Case(
        vectors=np.array([[0.8, 0.6], [1, 0], [0.28, 0.96], [-1, 0]], np.float32),
        captions=[{0}, {0, 2}, {1}, {0}],
        texts=np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32),
        images=np.array([[0.8, 0.6]], np.float32),
        anchors=np.array([0]),
        retrieved=np.array([[0, 1, 2]]),
        calibration=np.array([[0.3, 0.1], [0.5, 0.5], [0.9, 0.02]], np.float32),
    )


def check(archive: list[Entry], *expected: tuple[int, float, float, float, int]) -> None:
    assert [entry.concept for entry in archive] == [row[0] for row in expected]
    np.testing.assert_allclose(archive, expected, rtol=2e-6)


def test_scores_by_hand(example: Case) -> None:
    (archive,) = example.fast("cocu")
    # The largest s of the archive is concept 0 at image 1: 1.
    check(
        archive,
        (2, 0.96 + 0.96 / 0.78, 0.96, 0.96 / 0.78, 1),  # mean of .6 and the anchor's .96
        (0, 0.80 + 0.80 / 0.90, 0.80, 0.80 / 0.90, 2),  # mean of the anchor's .8, once, and 1
        (1, 0.60 + 0.60 / 0.78, 0.60, 0.60 / 0.78, 1),  # mean of .96 and the anchor's .6
    )


def test_anchor_twice_changes_only_what_its_own_caption_mentions(example: Case) -> None:
    once, twice = (example.fast("cocu", anchor_twice)[0] for anchor_twice in (False, True))
    assert [e.concept for e in twice] == [2, 0, 1]
    assert (twice[0], twice[2]) == (once[0], once[2])
    mean = (0.8 + 0.8 + 1) / 3
    check(twice[1:2], (0, 0.8 + 0.8 / mean, 0.8, 0.8 / mean, 2))


def test_anchor_that_the_index_does_not_hold_counts_beside_its_copy(example: Case) -> None:
    example.anchors = np.array([-1])  # image 0 is another image now, that happens to look the same
    (archive,) = example.fast("cocu")
    mean = (0.8 + 0.8 + 1) / 3
    check(archive[1:2], (0, 0.8 + 0.8 / mean, 0.8, 0.8 / mean, 2))
    assert example.fast("cocu", anchor_twice=True) == [archive]  # there is nothing to count twice


def test_anchor_held_but_not_retrieved_is_a_reference_without_support(example: Case) -> None:
    example.retrieved = np.array([[1, 2, -1]])
    (archive,) = example.fast("cocu", anchor_twice=True)
    check(archive[1:2], (0, 0.8 + 0.8 / 0.9, 0.8, 0.8 / 0.9, 1))


def test_negative_cosine_of_a_reference_counts_as_the_floor(example: Case) -> None:
    example.retrieved = np.array([[0, 1, 3]])
    (archive,) = example.fast("cocu")
    mean = (0.8 + 1 + 1e-4) / 3
    assert [e.concept for e in archive] == [2, 0]
    check(archive[1:], (0, 0.8 + 0.8 / mean, 0.8, 0.8 / mean, 3))


def test_negative_cosine_of_the_anchor_counts_as_the_floor(example: Case) -> None:
    example.images, example.anchors, example.retrieved = example.vectors[3:], np.array([3]), np.array([[3, 1]])
    (archive,) = example.fast("cocu")
    check(
        archive,
        (2, 1e-4 + 1e-4 / 0.30005, 1e-4, 1e-4 / 0.30005, 1),
        (0, 1e-4 + 1e-4 / 0.50005, 1e-4, 1e-4 / 0.50005, 2),
    )


def test_other_rankings_by_hand(example: Case) -> None:
    def ranked(ranking: str) -> list[tuple[int, float]]:
        return [(e.concept, pytest.approx(e.score, rel=1e-5)) for e in example.fast(ranking)[0]]

    assert ranked("similarity") == [(2, 0.96), (0, 0.8), (1, 0.6)]
    assert ranked("support") == [(0, 2), (1, 1), (2, 1)]
    assert ranked("calibrated") == [(0, 5), (2, 3), (1, 0.2)]
    assert ranked("none") == [(0, 1), (1, 1), (2, 1)]
    paper = dict(ranked("cocu"))
    assert dict(ranked("supported"))[0].expected == pytest.approx(paper[0].expected + 0.03 * np.log(2))
    assert dict(ranked("supported"))[1].expected == pytest.approx(paper[1].expected)  # one caption adds nothing
    assert {e.global_ for e in example.fast("support")[0]} == {e.global_ for e in example.fast("cocu")[0]}


def test_unknown_ranking_is_refused(example: Case) -> None:
    with pytest.raises(ValueError, match="best"):
        example.fast("best")


def test_one_neighbour_that_is_the_anchor_gives_local_one(example: Case) -> None:
    example.retrieved = np.array([[0]])
    check(example.fast("cocu")[0], (0, 2, 1, 1, 1))


def test_concepts_with_equal_embeddings_and_references_stay_in_order_of_id() -> None:
    vectors = np.array([[0.6, 0.8], [0.8, 0.6]], np.float32)
    texts = np.repeat(np.array([[0.28, 0.96]], np.float32), 5, axis=0)
    case = Case(vectors, [{4, 1, 3}, {3, 1, 4, 0, 2}], texts, vectors[:1], np.array([0]), np.array([[1, 0]]), texts)
    (archive,) = case.fast("cocu")
    # The anchor belongs to refs(c) whether its caption mentions c or not, so that all five have the same references.
    assert [e.concept for e in archive] == [0, 1, 2, 3, 4]
    assert len({e.score for e in archive}) == 1


@pytest.mark.parametrize("ranking", RANKINGS)
@pytest.mark.parametrize("retrieved", [[[0, 1], [1, 0], [1, -1]], [[-1, -1], [-1, -1], [-1, -1]]])
def test_block_without_any_concept_gives_empty_archives(ranking: str, retrieved: list[list[int]]) -> None:
    vectors = np.eye(2, dtype=np.float32)
    anchors, images = np.array([0, 1, -1]), vectors[[0, 1, 1]]
    case = Case(vectors, [set(), set()], vectors, images, anchors, np.array(retrieved), vectors)
    assert case.fast(ranking) == [[], [], []]


def test_empty_archives_between_others_keep_their_place(example: Case) -> None:
    example.images = example.images.repeat(4, axis=0)
    example.anchors = np.array([0, 0, 0, 0])
    example.retrieved = np.array([[-1, -1, -1], [0, 1, 2], [-1, -1, -1], [1, -1, -1]])
    empty, full, also_empty, short = example.fast("cocu")
    assert (empty, also_empty, len(full)) == ([], [], 3)
    assert [e.concept for e in short] == [2, 0]


# --- listed concepts and tagging -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", [0, 1])
@pytest.mark.parametrize("ranking", RANKINGS)
@settings(max_examples=40, deadline=None)
@given(case=cases(), data=st.data())
def test_listed_concepts_equal_the_slow_formula(ranking: str, support: int, case: Case, data: st.DataObject) -> None:
    captions = data.draw(
        st.lists(
            st.lists(st.integers(0, len(case.texts) - 1), unique=True),
            min_size=len(case.images),
            max_size=len(case.images),
        )
    )
    expansion = listed(Ragged.from_lists(captions, np.int32), support)
    ascending = [expansion.concepts.values[a:b].tolist() for a, b in pairwise(expansion.concepts.offsets)]
    assert ascending == [sorted(caption) for caption in captions]
    slow = [
        listed_archive(image, caption, case.texts, support, ranking, case.calibration)
        for image, caption in zip(case.images, captions, strict=True)
    ]
    for anchor_twice in (False, True):  # the only reference is the anchor: once or twice is the same mean
        fast = archives(expansion, case.images, case.texts, ranking, anchor_twice, case.calibration)
        assert_same(fast, slow, ranking)


@settings(max_examples=80, deadline=None)
@given(case=cases(), size=st.integers(1, 9))
def test_nearest_concepts_are_the_most_similar_with_ties_by_id(case: Case, size: int) -> None:
    nearest = nearest_concepts(case.images, case.texts, size)
    tagged = [nearest.values[a:b].tolist() for a, b in pairwise(nearest.offsets)]
    expected = [[row for row, _ in neighbours(case.texts, image, -1, size, False) if row >= 0] for image in case.images]
    assert tagged == expected


# --- arithmetic ----------------------------------------------------------------------------------------------------------


def test_similarity_of_a_pair_is_the_same_in_every_block() -> None:
    random = np.random.default_rng(0)
    images, texts = (normalise(random.normal(size=(30, 100))) for _ in range(2))
    lengths = random.integers(0, 30, 30)
    lists = Ragged.from_lengths(lengths, random.integers(0, 30, lengths.sum()))
    offsets, concepts = lists.offsets, lists.values
    whole = pair_similarities(images, texts, lists)
    rows = np.array([row for row, length in enumerate(lengths) for _ in range(length)])
    np.testing.assert_allclose(whole, (images @ texts.T)[rows, concepts], atol=1e-6)
    one = np.array([0, 1])
    single = Ragged(one, one[:1])
    alone = [pair_similarities(images[[i]], texts[[c]], single)[0] for i, c in zip(rows, concepts, strict=True)]
    assert (whole == alone).all()
    for first, last in ((3, 4), (0, 17), (11, 30)):  # other blocks, and other orders within a row
        part = slice(offsets[first], offsets[last])
        block = Ragged(offsets[first : last + 1] - offsets[first], concepts[part])
        found = pair_similarities(images[first:last], texts, block)
        assert (found == whole[part]).all()
    turned = np.concatenate([concepts[a:b][::-1] for a, b in pairwise(offsets)])
    found = pair_similarities(images, texts, Ragged(offsets, turned))
    assert (np.concatenate([found[a:b][::-1] for a, b in pairwise(offsets)]) == whole).all()


@given(lengths=st.lists(st.integers(0, 3), max_size=4))
def test_no_pair_is_no_similarity(lengths: list[int]) -> None:
    offsets = np.cumsum([0, *lengths])
    images, texts = np.ones((len(lengths), 4), np.float32), np.ones((3, 4), np.float32)
    concepts = np.concatenate([np.zeros(0, np.int32), *(np.arange(length, dtype=np.int32) for length in lengths)])
    found = pair_similarities(images, texts, Ragged(offsets, concepts))
    assert found.tolist() == [4.0] * offsets[-1]
