"""Thumbnails that tell copies of a picture from other pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from curation.thumbnails import SAME, SIDE, similarity, structural_similarity, thumbnail
from experiments import duplicates as planted_copies


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
