"""Groups of near-identical images, and the pictures they are told by, against plain formulas."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from curation.base.errors import CocuError
from curation.index.build import exact_index
from curation.index.duplicates import COLUMNS, collapse, open_duplicates, representatives, write_duplicates
from curation.index.open import searchable
from curation.thumbnails import (
    CELLS,
    SAME,
    SIDE,
    profiles,
    similarity,
    similarity_of_rows,
    structural_similarity,
    thumbnail,
)
from experiments import duplicates as planted_copies

# --- groups -----------------------------------------------------------------------------------------------------------


def plain_groups(rows: int, pairs: set[tuple[int, int]], alike: set[tuple[int, int]]) -> list[int]:
    """The same one row at a time: the first of what is connected takes those that are like itself, and again the rest."""
    chosen = list(range(rows))
    left = set(range(rows))
    while left:
        first = min(left)
        reached, todo = {first}, [first]
        while todo:
            row = todo.pop()
            near = {b if a == row else a for a, b in pairs if row in (a, b)} & left - reached
            reached |= near
            todo += near
        members = {row for row in reached if row == first or {(first, row)} & (pairs | alike)}
        for row in members:
            chosen[row] = first
        left -= members
    return chosen


@given(data=st.data())
def test_groups_are_those_of_the_plain_formula(data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 9))
    every = [(a, b) for a in range(rows) for b in range(a + 1, rows)]
    pairs = data.draw(st.lists(st.sampled_from(every), max_size=12)) if every else []
    alike = set(data.draw(st.lists(st.sampled_from(every), max_size=12))) if every else set()
    ends = np.array(pairs, np.int64).reshape(-1, 2)[:, :: data.draw(st.sampled_from([1, -1]))]

    def are_same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.array([pair in alike for pair in zip(one.tolist(), other.tolist(), strict=True)], bool)

    chosen = representatives(rows, ends[:, 0], ends[:, 1], are_same).tolist()
    assert chosen == plain_groups(rows, set(pairs), alike)


@given(data=st.data())
def test_results_with_each_group_once(data: st.DataObject) -> None:
    rows, size = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    random = np.random.default_rng(data.draw(st.integers(0, 999)))
    chosen = np.arange(rows)
    for row in range(1, rows):
        other = random.integers(0, row + 1)
        chosen[row] = chosen[other]
    chosen = np.array([np.flatnonzero(chosen == group)[0] for group in chosen])
    ids = np.array([np.append(random.permutation(rows), [-1] * size)[:size] for _ in range(3)])
    anchors = random.integers(-1, rows, 3)
    result = collapse(ids, np.zeros(ids.shape), anchors, chosen)
    for row, anchor, collapsed in zip(ids.tolist(), anchors.tolist(), result.tolist(), strict=True):
        seen: set[int] = set()
        for number, kept in zip(row, collapsed, strict=True):
            group = int(chosen[number]) if number >= 0 else -1
            if number >= 0 and number == anchor:
                assert kept == anchor
            elif number < 0 or group in seen or (anchor >= 0 and group == chosen[anchor]):
                assert kept == -1
            else:
                assert kept == group
            seen.add(group)


def test_a_search_among_some_rows_is_that_of_an_index_of_these(vectors) -> None:
    kept = np.random.default_rng(1).random(len(vectors)) < 0.4
    rows = np.flatnonzero(kept)
    expected = searchable(exact_index(vectors[rows]), bf16=False).search(vectors[:50], 6)
    for bf16 in (False, True):
        cosines, ids = searchable(exact_index(vectors), bf16=bf16).among(kept).search(vectors[:50], 6)
        assert (ids == rows[expected[1]]).all()
        np.testing.assert_allclose(cosines, expected[0], atol=1e-6)


def test_duplicates_are_read_as_written_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "duplicates.arrow"

    def write(rows: list[int], first: list[int]) -> int:
        shards = pa.array(["a"] * len(rows)).dictionary_encode().cast(COLUMNS.field("shard").type)
        columns = [pa.array(rows, pa.int64()), pa.array(first, pa.int64()), shards, pa.array(["k"] * len(rows))]
        write_duplicates(pa.Table.from_arrays(columns, schema=COLUMNS), str(path))
        return path.stat().st_size

    size = write([1, 4], [0, 2])
    assert open_duplicates(str(path), size, 5)["representative"].to_pylist() == [0, 2]
    with pytest.raises(CocuError, match="bytes"):
        open_duplicates(str(path), size + 1, 5)
    for rows, first in (([1, 5], [0, 2]), ([4, 1], [0, 0]), ([1, 2], [0, 1]), ([1], [3]), ([1], [-1])):
        size = write(rows, first)
        with pytest.raises(CocuError, match="delete it and run again"):
            open_duplicates(str(path), size, 5)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_structural_similarity_of_numbers_worked_out_by_hand() -> None:
    one, other = np.array([[0.0, 100.0]]), np.array([[20.0, 80.0]])  # means 50, deviations 50 and 30, covariance 1500
    contrast = (2 * 1500 + 7.65**2) / (2500 + 900 + 7.65**2)
    assert structural_similarity(one, other)[0] == pytest.approx(contrast)
    flat = np.full((1, 4), 10.0)
    assert structural_similarity(flat, flat)[0] == 1
    assert structural_similarity(flat, flat + 200)[0] < 0.2


def smooth_picture(seed: int, size: tuple[int, int] = (240, 160)) -> Image.Image:
    """Random patches of colour with soft edges."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def pixels_of(picture: Image.Image) -> np.ndarray:
    return np.frombuffer(thumbnail(picture), np.uint8).reshape(1, SIDE, SIDE)


@pytest.mark.parametrize("kind", planted_copies.KINDS)
def test_copies_are_alike_and_others_are_not(kind: str) -> None:
    for seed in range(8):
        picture = smooth_picture(seed)
        content = planted_copies.copy_of(picture, kind, np.random.default_rng(seed))
        copy, other = pixels_of(Image.open(io.BytesIO(content))), pixels_of(smooth_picture(seed + 100))
        original = pixels_of(picture)
        assert similarity(original, copy)[0] >= SAME
        assert similarity(original, copy)[0] == similarity(copy, original)[0]
        assert similarity(original, other)[0] < SAME - 0.1


def averages(line: np.ndarray, first: float, last: float) -> np.ndarray:
    """Means of CELLS equal parts of a line less two margins, from its integral."""
    edges = np.linspace(first * SIDE, (1 - last) * SIDE, CELLS + 1)
    integral = np.interp(edges, np.arange(SIDE + 1), np.concatenate([[0], np.cumsum(line)]))
    return np.diff(integral) / np.diff(edges)


def slow_similarity(picture: np.ndarray, crop: np.ndarray) -> float:
    """One margin after another: of the means of columns, of those of rows, then of all cells."""
    middle = slice(SIDE // 6, SIDE - SIDE // 6)
    steps = (0, 0.02, 0.04, 0.06, 0.08, 0.1)
    tried = [(first, last) for first in steps for last in steps if first + last < 0.17]
    margins = []
    for axis in (0, 1):
        lines = [pixels.swapaxes(0, axis)[middle].mean(axis=0) for pixels in (picture, crop)]
        whole = averages(lines[1], 0, 0)
        alike = [float(structural_similarity(averages(lines[0], *pair), whole)) for pair in tried]
        margins.append(tried[int(np.argmax(alike))])

    cells = []
    for pixels, (across, down) in ((picture, margins), (crop, [(0, 0), (0, 0)])):
        columns = np.apply_along_axis(averages, 1, pixels, *across)
        cells.append(np.apply_along_axis(averages, 0, columns, *down).ravel())
    return float(structural_similarity(*cells))


def test_similarity_is_what_a_plain_formula_makes_of_it() -> None:
    pictures = [smooth_picture(seed) for seed in range(4)]
    kinds = planted_copies.KINDS
    for seed, kind in enumerate(kinds):
        content = planted_copies.copy_of(pictures[seed], kind, np.random.default_rng(seed))
        pictures.append(Image.open(io.BytesIO(content)))
    pixels = np.concatenate([pixels_of(picture) for picture in pictures])

    one, other = np.arange(4), np.arange(4, 8)
    alike = similarity_of_rows(pixels, profiles(pixels), one, other)
    exact = pixels.astype(float)
    for row in range(4):
        either = slow_similarity(exact[row], exact[row + 4]), slow_similarity(exact[row + 4], exact[row])
        assert alike[row] == pytest.approx(max(either), abs=1e-3)
    assert (similarity(pixels[other], pixels[one]) == alike).all()
