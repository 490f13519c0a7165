"""What the captions of indexed images mention, on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base.errors import CocuError
from curation.base.ragged import Ragged
from curation.mentions import Mentions, open_mentions, write_mentions


@settings(max_examples=40, deadline=None)
@given(captions=st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=3), max_size=5), data=st.data())
def test_mentions_come_back_as_they_were_written(
    captions: list[list[int]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    size = sum(map(len, captions))
    values = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=size, max_size=size))
    written = Mentions(
        Ragged(np.cumsum([0, *map(len, captions)]), np.array([c for caption in captions for c in caption], np.int32)),
        np.array(values, np.float32),
    )
    path = str(tmp_path_factory.mktemp("mentions") / "mentions.arrow")
    write_mentions(written, path)
    read = open_mentions(path)
    assert len(read) == len(captions)
    for ours, theirs, kind in (
        (read.concepts.offsets, written.concepts.offsets, np.int64),
        (read.concepts.values, written.concepts.values, np.int32),
        (read.similarities, written.similarities, np.float32),
    ):
        assert ours.dtype == kind
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
def test_truncated_mentions_are_an_error_that_names_the_file(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "mentions.arrow"
    write_mentions(
        Mentions(Ragged(np.arange(101), np.arange(100, dtype=np.int32)), np.ones(100, np.float32)), str(path)
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(CocuError, match="delete it and run again") as caught:
        open_mentions(str(path))
    assert str(caught.value).startswith(str(path))
