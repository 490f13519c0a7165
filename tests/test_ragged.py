"""Lists of unequal lengths as two arrays, against Python's lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from curation.base.ragged import Ragged, is_in

LISTS = st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=5)


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [ragged.values[a:b].tolist() for a, b in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)]


@given(LISTS)
def test_lists_come_back(lists):
    ragged = Ragged.from_lists(lists)
    assert as_lists(ragged) == lists
    assert len(ragged) == len(lists)
    assert ragged.lengths.tolist() == [len(items) for items in lists]
    assert ragged.owners.tolist() == [number for number, items in enumerate(lists) for _ in items]
    assert ragged.positions.tolist() == [position for items in lists for position in range(len(items))]


@given(LISTS, st.data())
def test_lists_are_taken_cut_and_joined(lists, data):
    ragged = Ragged.from_lists(lists)
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=6)) if lists else []
    assert as_lists(ragged.take(np.array(rows, np.int64))) == [lists[row] for row in rows]
    start = data.draw(st.integers(0, len(lists)))
    stop = data.draw(st.integers(start, len(lists)))
    assert as_lists(ragged.slice(start, stop)) == lists[start:stop]
    parts = [ragged.slice(0, start), ragged.slice(start, len(lists))]
    assert as_lists(Ragged.concatenate(parts)) == lists


@given(LISTS, st.data())
def test_values_are_left_out_by_a_mask(lists, data):
    mask = [data.draw(st.booleans()) for items in lists for _ in items]
    kept = iter(mask)
    expected = [[item for item in items if next(kept)] for items in lists]
    assert as_lists(Ragged.from_lists(lists).where(np.array(mask, bool))) == expected


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 6), max_size=4), st.lists(st.integers(0, 6), max_size=4)), max_size=5)
)
def test_membership_is_by_row(pairs):
    lists, others = ([pair[side] for pair in pairs] for side in (0, 1))
    expected = [item in other for items, other in pairs for item in items]
    assert is_in(Ragged.from_lists(lists), Ragged.from_lists(others)).tolist() == expected


@given(LISTS, st.integers(0, 5))
def test_slices_of_arrow_lists_begin_at_0(lists, start):
    column = pa.array(lists, pa.list_(pa.int64())).slice(start)
    ragged = Ragged.from_arrow(column)
    assert as_lists(ragged) == lists[start:]
    assert ragged.offsets[0] == 0
