"""Which index for n vectors in so much memory, as a table, and against real FAISS indexes."""

from __future__ import annotations

import re

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.base.configuration import parse_bytes
from curation.base.errors import CocuError
from curation.index.build import empty_index
from curation.index.choose import WORKING, choose_index, index_bytes

G = 1 << 30


@pytest.mark.parametrize(
    ("rows", "dimension", "memory", "recall", "gpu", "factory"),
    [
        (1, 512, "1G", 0.95, False, "Flat"),
        (100_000, 512, "16G", 0.95, False, "Flat"),
        (200_000, 768, "16G", 0.95, False, "Flat"),
        (200_001, 768, "16G", 0.95, False, "IVF2048,Flat"),
        (1_000_000, 512, "16G", 0.95, False, "IVF4096,Flat"),
        (1_000_000, 512, "2G", 0.95, False, "IVF4096,SQfp16"),
        (1_000_000, 512, "1G", 0.95, False, "IVF4096,SQ8"),
        (1_000_000, 512, "600M", 0.9, False, "IVF4096,SQ4"),
        (1_000_000, 512, "16G", 1, False, "Flat"),
        (1_000_000, 512, "16G", 0.95, True, "Flat"),
        (3_000_000, 512, "16G", 0.95, False, "IVF8192,Flat"),
        (12_000_000, 512, "16G", 0.95, False, "IVF16384,SQfp16"),
        (12_000_000, 512, "32G", 0.95, False, "IVF16384,Flat"),
        (12_000_000, 512, "16G", 0.95, True, "IVF16384,SQfp16"),
        (14_000_000, 768, "16G", 0.95, False, "IVF16384,SQ8"),
        (400_000_000, 512, "256G", 0.95, False, "IVF65536,SQ8"),
        (10_000, 512, "200M", 0.95, False, "Flat"),  # so little data needs little beside it
        (20_000, 512, "200M", 0.95, False, "Flat"),
        (150_000, 512, "256M", 0.9, False, None),  # flat does not fit, nor does anything
        (12_000_000, 512, "4G", 0.95, False, None),
        (400_000_000, 512, "64G", 0.95, False, None),
    ],
)
def test_choice(rows: int, dimension: int, memory: str, recall: float, gpu: bool, factory: str | None) -> None:
    if factory is None:
        with pytest.raises(CocuError, match=r"^retrieval\.memory: [\d,]+ vectors .* need \d+ bytes") as caught:
            choose_index(rows, dimension, parse_bytes(memory, "retrieval.memory"), recall, gpu)
        needed = int(re.search(r"need (\d+) bytes", str(caught.value))[1])
        assert choose_index(rows, dimension, needed, recall, gpu).bytes == needed  # so much is enough
        with pytest.raises(CocuError):
            choose_index(rows, dimension, needed - 1, recall, gpu)
    else:
        choice = choose_index(rows, dimension, parse_bytes(memory, "retrieval.memory"), recall, gpu)
        assert choice.factory == factory
        assert choice.bytes <= parse_bytes(memory, "retrieval.memory")
        assert (choice.search is None) == (factory == "Flat")


@given(
    rows=st.integers(1, 10**9), dimension=st.integers(1, 2048), memory=st.integers(1, 10**13), recall=st.floats(0.01, 1)
)
def test_more_memory_never_gives_a_coarser_index(rows: int, dimension: int, memory: int, recall: float) -> None:
    order = ["Flat", "IVF,Flat", "IVF,SQfp16", "IVF,SQ8", "IVF,SQ4"]

    def fineness(memory: int) -> int:
        try:
            return order.index(re.sub(r"\d+,", ",", choose_index(rows, dimension, memory, recall).factory))
        except CocuError:
            return len(order)

    assert fineness(2 * memory) <= fineness(memory)


@pytest.mark.parametrize(("suffix", "bytes_each"), [("Flat", 4), ("SQfp16", 2), ("SQ8", 1), ("SQ4", 0.5)])
def test_expected_bytes_are_those_of_the_file(suffix: str, bytes_each: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    index = empty_index(f"IVF64,{suffix}", 32)
    index.train(vectors[:3000])
    index.add(vectors)
    assert index_bytes(20_000, 32, 64, bytes_each) == pytest.approx(len(faiss.serialize_index(index)), rel=0.02)
    assert WORKING < G


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16G", 16 * G),
        ("16 GiB", 16 * G),
        ("16gb", 16 * G),
        ("1.5T", 1536 * G),
        ("512M", G // 2),
        ("1000", 1000),
        ("2K", 2048),
    ],
)
def test_sizes_are_read(text: str, expected: int) -> None:
    assert parse_bytes(text, "retrieval.memory") == expected


@pytest.mark.parametrize("text", ["", "G", "0", "0G", "-1G", "16X", "16 16G", "1e9", "sixteen", "9" * 400 + "T"])
def test_what_is_not_a_size_is_an_error(text: str) -> None:
    with pytest.raises(CocuError, match=r"^retrieval\.memory: .* is not a size; write 16G"):
        parse_bytes(text, "retrieval.memory")
