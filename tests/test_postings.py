"""The arrays of an inverted index, beside plain loops."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pytest

from curation.base.ragged import Ragged
from curation.tools.browse.catalogue import Postings
from curation.tools.browse.gallery import groups, ordered
from curation.tools.browse.postings import companions, in_all, slots, starts_of, words_of


@pytest.mark.parametrize("seed", range(5))
def test_parts_that_are_put_into_slots_are_a_stable_sort(seed):
    rng = np.random.default_rng(seed)
    parts = [rng.integers(0, 7, size) for size in (0, 13, 1, 40)]
    every = np.concatenate(parts)
    cursors = starts_of(np.bincount(every, minlength=7))[:-1].copy()
    placed = np.full(len(every), -1)
    start = 0
    for part in parts:
        placed[slots(part, cursors)] = start + np.arange(len(part))
        start += len(part)
    assert placed.tolist() == sorted(range(len(every)), key=lambda number: every[number])


@pytest.mark.parametrize("seed", range(5))
def test_companions_are_the_best_others_of_a_cluster(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, 30)
    archives = Ragged.from_lengths(lengths, np.concatenate([rng.permutation(50)[:size] for size in lengths]))
    cluster = rng.integers(0, 3, len(archives.values))
    expected = []
    for row in range(len(archives)):
        inside = range(archives.offsets[row], archives.offsets[row + 1])
        for entry in inside:
            others = [other for other in inside if other != entry and cluster[other] == cluster[entry]]
            expected.append(archives.values[others[0]] if others else -1)
    assert companions(archives, cluster).tolist() == expected


def test_words_are_what_stands_between_signs():
    texts = ["A red-fox, running!", "", "  ", "ÉTÉ à l'été", "x2 2x", "한국 사진"]
    words, rows = words_of(pa.array(texts))
    expected = [(word, row) for row, text in enumerate(texts) for word in re.findall(r"[^\W_]+", text.lower())]
    assert list(zip(words.to_pylist(), rows.tolist(), strict=True)) == expected


def test_rows_in_all_lists():
    rng = np.random.default_rng(0)
    for size in (1, 2, 4):
        lists = [np.unique(rng.integers(0, 60, 50)) for _ in range(size)]
        assert in_all(lists).tolist() == sorted(set.intersection(*(set(rows.tolist()) for rows in lists)))
    assert in_all([]).tolist() == in_all([np.arange(3), np.arange(0)]).tolist() == []


def test_views_of_a_concept():
    postings = Postings(
        row=np.array([7, 3, 9, 1, 4]),
        score=np.array([5, 4, 3, 2, 1]),
        support=np.ones(5, np.int16),
        companion=np.array([2, -1, 2, 5, -1]),
        said=np.array([True, False, False, True, False]),
    )
    rows = {view: postings.row[ordered(postings, view)].tolist() for view in ("surest", "doubtful", "omitted", "named")}
    assert rows == {
        "surest": [7, 3, 9, 1, 4],
        "doubtful": [4, 1, 9, 3, 7],
        "omitted": [3, 9, 4],
        "named": [7, 1],
    }
    assert postings.row[ordered(postings, "omitted", companion=2)].tolist() == [9]
    assert [(group.companion, group.size, group.entries.tolist()) for group in groups(postings, most=2, each=1)] == [
        (-1, 2, [1]),
        (2, 2, [0]),
    ]
