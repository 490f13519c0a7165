"""Keys that several shards have, against a plain count."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from curation.archive.keys import Footer, repeated_keys


@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5), max_size=5),
    st.integers(1, 7),
    st.data(),
)
def test_repeated_keys_are_those_of_a_plain_count(shards, at_once, draw):
    footers = [
        Footer(len(keys), min(keys), max(keys)) if keys and draw.draw(st.booleans()) else Footer(len(keys), None, None)
        for keys in shards
    ]
    count, examples = repeated_keys(footers, lambda shard: pa.array(shards[shard], pa.string()), at_once=at_once)
    holders = {key: [n for n, keys in enumerate(shards) if key in keys] for keys in shards for key in keys}
    several = {key: tuple(numbers[:2]) for key, numbers in holders.items() if len(numbers) > 1}
    assert count == len(several)
    assert len(examples) == min(count, 2)
    assert all(several[example.key] == example.shards for example in examples)


def test_shards_that_cannot_overlap_are_not_read():
    footers = [Footer(2, "a", "b"), Footer(0, None, None), Footer(2, "x", "z"), Footer(2, "c", "d")]

    def column(shard):
        raise AssertionError(shard)

    assert repeated_keys(footers, column) == (0, [])
