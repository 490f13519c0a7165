"""Visualness and calibration of concepts, against slow formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curation.base.embeddings import normalise
from curation.base.ragged import Ragged
from curation.visualness import calibration, effect_sizes, image_text_sums, keep


def make_block(seed, images=40, texts=7, dimensions=5, sampled=15):
    """Random images, texts, CSR concepts and a random sample. No caption mentions the last concept."""
    random = np.random.default_rng(seed)
    mentioned = [random.permutation(texts - 1)[: random.integers(0, texts - 1)] for _ in range(images)]
    offsets = np.concatenate([[0], np.cumsum(list(map(len, mentioned)))]).astype(np.int64)
    concepts = np.concatenate(mentioned).astype(np.int32)
    sample = np.sort(random.choice(images, sampled, replace=False))
    return (
        normalise(random.standard_normal((images, dimensions))),
        normalise(random.standard_normal((texts, dimensions))),
        Ragged(offsets, concepts),
        sample,
    )


def values_of(images, texts, concepts, sample):
    """For each concept: cosines of [images that mention it, sampled images, both], by a loop."""
    chosen = set(sample.tolist())
    cosines = [[[], [], []] for _ in texts]
    for row, image in enumerate(images.astype(np.float64)):
        mentioned = concepts.values[concepts.offsets[row] : concepts.offsets[row + 1]].tolist()
        for concept, text in enumerate(texts.astype(np.float64)):
            cosine = float(image @ text)
            belongs = (concept in mentioned, row in chosen, concept in mentioned and row in chosen)
            for group in np.flatnonzero(belongs):
                cosines[concept][group].append(cosine)
    return cosines


def slow_sums(block):
    return np.array([[[len(v), sum(v), sum(x * x for x in v)] for v in groups] for groups in values_of(*block)])


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_a_slow_loop(seed):
    block = make_block(seed)
    sums = image_text_sums(*block)
    assert sums.shape == (7, 3, 3)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, slow_sums(block), atol=1e-5)


@pytest.mark.parametrize("size", [1, 4, 7, 15, 16])
def test_images_are_compared_with_every_concept_a_block_at_a_time(size, monkeypatch):
    """15 sampled images in blocks, the last of which may be smaller."""
    monkeypatch.setattr("curation.visualness.AT_ONCE", size)
    block = make_block(5)
    np.testing.assert_allclose(image_text_sums(*block), slow_sums(block), atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 17, 40])
def test_sums_of_blocks_add_up(cut):
    images, texts, concepts, sample = make_block(3)
    offsets, at = concepts.offsets, concepts.offsets[cut]
    before = Ragged(offsets[: cut + 1], concepts.values[:at])
    after = Ragged(offsets[cut:] - at, concepts.values[at:])
    first = image_text_sums(images[:cut], texts, before, sample[sample < cut])
    second = image_text_sums(images[cut:], texts, after, sample[sample >= cut] - cut)
    whole = image_text_sums(images, texts, concepts, sample)
    np.testing.assert_allclose(first + second, whole, atol=1e-5)


def cohens_d(mentioned, others):
    if min(len(mentioned), len(others)) < 2:
        return math.nan
    pooled = math.sqrt((np.var(mentioned, ddof=1) + np.var(others, ddof=1)) / 2)
    return (np.mean(mentioned) - np.mean(others)) / pooled


@pytest.mark.parametrize("seed", range(4))
def test_effect_size_is_cohens_d_of_the_raw_values(seed):
    block = make_block(seed, images=60, sampled=30)
    images, texts, concepts, sample = block
    mentions = np.zeros((len(images), len(texts)), bool)
    mentions[np.repeat(np.arange(len(images)), np.diff(concepts.offsets)), concepts.values] = True
    cosines = images.astype(np.float64) @ texts.astype(np.float64).T
    chosen = np.isin(np.arange(len(images)), sample)
    expected = [cohens_d(cosines[mentions[:, c], c], cosines[chosen & ~mentions[:, c], c]) for c in range(len(texts))]
    sizes = effect_sizes(image_text_sums(*block))
    assert sizes.dtype == np.float32
    assert np.isfinite(sizes[:-1]).all()
    np.testing.assert_allclose(sizes, expected, rtol=1e-3, atol=1e-4)


def sums_of(mentioned, sampled, both):
    return np.array([[[len(v), sum(v), sum(x * x for x in v)] for v in (mentioned, sampled, both)]], float)


@pytest.mark.parametrize(
    ("mentioned", "sampled", "both", "measurable"),
    [
        ([], [0.1, 0.2, 0.3], [], False),
        ([0.5], [0.1, 0.2, 0.3], [], False),
        ([0.5, 0.6], [0.1], [], False),
        ([0.5, 0.6], [], [], False),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], False),  # every sampled image mentions it
        ([0.1, 0.2, 0.5], [0.1, 0.2, 0.3], [0.1, 0.2], False),  # one other image
        ([0.5, 0.6], [0.1, 0.2], [], True),
        ([0.1, 0.5], [0.1, 0.2, 0.3], [0.1], True),
    ],
)
def test_effect_size_is_nan_where_a_side_has_fewer_than_two_images(mentioned, sampled, both, measurable):
    (size,) = effect_sizes(sums_of(mentioned, sampled, both))
    assert np.isfinite(size) == measurable
    if measurable:
        assert size == pytest.approx(cohens_d(mentioned, [v for v in sampled if v not in both]), rel=1e-5)


def test_effect_size_without_any_variance_is_finite():
    assert np.isfinite(effect_sizes(sums_of([0.5, 0.5], [0.25, 0.25], []))).all()
    assert effect_sizes(sums_of([0.5, 0.5], [0.5, 0.5], [])) == 0


def test_calibration_is_mean_and_deviation_over_the_sample():
    images, texts, _, sample = block = make_block(5)
    cosines = (images[sample].astype(np.float64) @ texts.astype(np.float64).T).T
    moments = calibration(image_text_sums(*block))
    assert moments.dtype == np.float32
    np.testing.assert_allclose(moments, np.stack([cosines.mean(1), cosines.std(1)], axis=1), rtol=1e-4, atol=1e-6)


def test_calibration_never_divides_by_zero():
    moments = calibration(np.concatenate([sums_of([], [], []), sums_of([], [0.3, 0.3], [])]))
    assert np.isfinite(moments).all()
    assert (moments[:, 1] > 0).all()


def test_keep_needs_the_count_and_the_visualness():
    counts = np.array([10, 9, 10, 10, 10])
    sizes = np.array([0.3, 9, 0.2, np.nan, -1], np.float32)
    assert keep(counts, sizes, 10, 0.25).tolist() == [True, False, False, False, False]
    assert keep(counts, sizes, 10, -2).tolist() == [True, False, True, False, True]
    assert keep(counts, sizes, 10, None).tolist() == [True, False, True, True, True]
    assert keep(counts, sizes, 0, None).dtype == bool
