"""The confusion matrix against scikit-learn's, and its sum over processes."""

from __future__ import annotations

import json
import math
import sys

import benchmark_worlds as worlds
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from evaluation_ranks import evaluate_share
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import confusion_matrix, jaccard_score

from evaluation.benchmark import read_benchmark
from evaluation.evaluate import evaluate
from evaluation.metric import confusion, scores, sum_over_ranks
from segmenters.checkpoint import load

pixels = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.int32, shape, elements=st.sampled_from([0, 1, 2, 4, 255])),
        arrays.arrays(np.int64, shape, elements=st.integers(0, 5)),
    )
)


@settings(max_examples=60, deadline=None)
@given(st.lists(pixels, min_size=1, max_size=4))
def test_the_sum_over_images_is_scikit_learns_matrix(images):
    matrix = sum(confusion(torch.tensor(labels), torch.tensor(predicted), 7, 255) for labels, predicted in images)
    labels = np.concatenate([labels.ravel() for labels, _ in images])
    predicted = np.concatenate([predicted.ravel() for _, predicted in images])
    kept = labels != 255
    expected = confusion_matrix(labels[kept], predicted[kept], labels=range(7)) if kept.any() else np.zeros((7, 7))
    np.testing.assert_array_equal(matrix.numpy(), expected)
    if kept.any():
        result = scores(matrix)
        assert result.pixel_accuracy == pytest.approx(100 * (labels[kept] == predicted[kept]).mean())
        # scikit-learn's macro average is over the classes in labels or predictions: class 6 and others never occur.
        assert result.miou == pytest.approx(100 * jaccard_score(labels[kept], predicted[kept], average="macro"))
        occurring = {*labels[kept].tolist(), *predicted[kept].tolist()}
        assert [not math.isnan(iou) for iou in result.iou] == [index in occurring for index in range(7)]


def test_miou_is_not_a_mean_over_images():
    images = [([0, 0, 0, 1], [0, 0, 0, 0]), ([1, 1], [1, 1])]
    result = scores(
        sum(confusion(torch.tensor(labels), torch.tensor(predicted), 2, None) for labels, predicted in images)
    )
    assert result.iou == pytest.approx([75.0, 100 * 2 / 3])
    assert result.miou == pytest.approx((75 + 200 / 3) / 2)


def test_ignored_labels_may_lie_above_or_below_the_classes():
    for ignore in (255, 1000, -1):
        assert confusion(torch.tensor([0, ignore, 1]), torch.tensor([0, 0, 0]), 2, ignore).tolist() == [[1, 0], [1, 0]]


def test_nothing_counted_is_nan():
    result = scores(torch.zeros(3, 3, dtype=torch.int64))
    assert math.isnan(result.miou)


def test_without_a_process_group_the_sum_is_the_matrix():
    matrix = torch.eye(2, dtype=torch.int64)
    assert sum_over_ranks(matrix, None) is matrix


@pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file")
def test_two_processes_count_exactly_what_one_counts(huggingface, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = worlds.own(tmp_path / "world", 5)  # an odd number: the shares differ
    alone = evaluate(load(huggingface[1]).model, read_benchmark(str(path), ""), batch_size=16)
    mp.spawn(evaluate_share, (2, str(tmp_path), str(huggingface[1]), str(path)), nprocs=2)
    for number in range(2):
        share = json.loads((tmp_path / f"{number}.json").read_text())
        assert share["confusion"] == alone.confusion.tolist()
        assert share["miou"] == alone.scores.miou
        assert share["evaluated"] == 5
    assert len(set(map(tuple, alone.confusion.tolist()))) > 1
