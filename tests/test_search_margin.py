"""The margin of the search against products that are rounded as a GPU may round them, all simulated."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pretended_gpu import pretended_gpu

from curation.index import search
from curation.index.lists import Lists
from curation.index.search import search_lists

DIMENSION, SIZE = 256, 5
STEP = 16  # dimensions that a tensor core adds up at once
SPLITS = 4  # parts of a sum that are computed apart (split-k)


def truncated(values):
    """float64 to float32 towards zero, as tensor cores cut sums off."""
    nearest = values.float()
    beyond = nearest.double().abs() > values.abs()
    return torch.where(beyond, torch.nextafter(nearest, torch.zeros_like(nearest)), nearest)


def cut_to_tf32(values):
    """float32 without the last 13 bits."""
    return (values.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def summed(left, right):
    """Products (R, n) in fp32, STEP dimensions at a time, every sum cut off."""
    total = torch.zeros(left.shape[0], right.shape[1])
    for start in range(0, left.shape[1], STEP):
        part = left[:, start : start + STEP].double() @ right[start : start + STEP].double()
        total = truncated(total.double() + part)
    return total


def mm_of_a_gpu(left, right, *, out):
    """torch.mm as a GPU may compute it, with what the program allows it to do."""
    settings = torch.backends.cuda.matmul
    left, right = left.held, right.held
    if left.dtype == torch.float32 and settings.allow_tf32:
        left, right = cut_to_tf32(left), cut_to_tf32(right)
    if left.dtype == torch.bfloat16 and settings.allow_bf16_reduced_precision_reduction:
        parts = [summed(*pair).bfloat16() for pair in zip(left.chunk(SPLITS, 1), right.chunk(SPLITS, 0), strict=True)]
        out.held.copy_(sum(parts[1:], parts[0]))
    else:
        out.held.copy_(summed(left, right))  # to the nearest bf16, where ``out`` is
    return out


def world():
    """Queries and vectors whose cosines are so close that bf16 alone would not tell them apart."""
    random = np.random.default_rng(1)
    centres = random.normal(size=(8, DIMENSION))
    vectors = centres[np.arange(800) % 8] + 0.5 * random.normal(size=(800, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[::5].astype(np.float32), vectors.astype(np.float32)


def find(device, bf16):
    queries, vectors = world()
    lists = Lists(2, lambda number: (torch.from_numpy(vectors[400 * number :][:400]), np.arange(400) + 400 * number))
    return search_lists(queries, np.broadcast_to(np.arange(2), (len(queries), 2)), lists, SIZE, bf16, device)


@pytest.fixture
def everything_allowed(monkeypatch):
    """A program that lets cuBLAS round as it likes."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction
    settings.allow_tf32 = settings.allow_bf16_reduced_precision_reduction = True
    monkeypatch.setattr(torch, "mm", mm_of_a_gpu)
    yield settings
    settings.allow_tf32, settings.allow_bf16_reduced_precision_reduction = before


@pytest.mark.parametrize("bf16", [False, True])
def test_neighbours_are_exact_however_a_gpu_rounds(everything_allowed, bf16):
    cosines, ids = find("cpu", False)
    with pretended_gpu():
        found_cosines, found = find("cuda:0", bf16)
    np.testing.assert_array_equal(found, ids)
    np.testing.assert_allclose(found_cosines, cosines, atol=1e-6)
    assert everything_allowed.allow_tf32  # as the program had it
    assert everything_allowed.allow_bf16_reduced_precision_reduction


def test_sums_that_are_rounded_to_bf16_are_beyond_what_the_margin_has_for_sums():
    queries, vectors = (torch.from_numpy(part).bfloat16() for part in world())
    exact = queries.double() @ vectors.double().T
    parts = [summed(a, b.T).bfloat16() for a, b in zip(queries.chunk(SPLITS, 1), vectors.chunk(SPLITS, 1), strict=True)]
    split = sum(parts[1:], parts[0]).double()
    last_rounding = search.BF16_ERROR * exact.abs()
    bound = search.GPU_SUM_ERROR * DIMENSION
    assert ((split - exact).abs() - last_rounding).max() > bound
    assert ((summed(queries, vectors.T).bfloat16().double() - exact).abs() - last_rounding).max() < bound


def test_a_sum_in_any_order_stays_within_its_bound():
    queries, vectors = (torch.from_numpy(part[:80]) for part in world())
    exact = queries.double() @ vectors.double().T
    bound = search.GPU_SUM_ERROR * DIMENSION
    for order in (torch.arange(DIMENSION), torch.randperm(DIMENSION), (queries[0] * vectors[0]).argsort()):
        total = torch.zeros(exact.shape)
        for column in order.tolist():  # one after the other, the worst that there is
            total = truncated(total.double() + queries[:, column, None].double() * vectors[:, column].double())
        assert (total - exact).abs().max() < bound / 2  # of two sums each may go wrong: the product, and the cosine
    tf32 = summed(cut_to_tf32(queries), cut_to_tf32(vectors).T)
    assert (tf32 - exact).abs().max() > bound
