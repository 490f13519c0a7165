"""From the pixel values of a mask file to class indices: one pure function for each encoding that the benchmarks use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from curation.base.errors import CocuError

# COCO's stuffthingmaps: value = category id - 1. Eleven category ids below 91 were never used.
COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
COCO_THINGS = tuple(value for value in range(91) if value not in COCO_GAPS)  # 80
COCO_STUFF = tuple(range(91, 182))  # 91

# Cityscapes: label id to train id, as published with the data set; every other id is ignored.
CITYSCAPES = dict(zip((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33), range(19), strict=True))


def from_indices(pixels: np.ndarray, ignore: int | None) -> np.ndarray:
    """(H, W) int32: the values are class indices, as in a palette PNG."""
    return one_channel(pixels).astype(np.int32)


def from_zero_ignored(pixels: np.ndarray, ignore: int | None) -> np.ndarray:
    """(H, W) int32: 0 is ignored, 1.. become 0..; the ignore value stays (ADE20K).

    >>> from_zero_ignored(np.array([[0, 1, 150]]), 255).tolist()
    [[255, 0, 149]]
    """
    labels = one_channel(pixels).astype(np.int32)
    if ignore is None:
        raise CocuError("encoding: zero_ignored needs an ignore_index")
    return np.where((labels == 0) | (labels == ignore), ignore, labels - 1).astype(np.int32)


def from_rgb(pixels: np.ndarray, ignore: int | None) -> np.ndarray:
    """(H, W) int32 from (H, W, 3): R + 256 G (ImageNet-S, whose ids exceed 255)."""
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise CocuError("expected an RGB mask (label = R + 256 G), found one channel")
    wide = pixels.astype(np.int32)  # before multiplying: 256 does not fit into a byte
    return wide[..., 0] + 256 * wide[..., 1]


def from_coco_things(pixels: np.ndarray, ignore: int | None) -> np.ndarray:
    """(H, W) int32 from COCO's stuffthingmaps: the 80 thing ids become 1..80 in order, all else 0."""
    classes = {value: index for index, value in enumerate(COCO_THINGS, 1)}
    return lookup_table(classes, 0)[byte_values(pixels)]


def from_coco_stuff(pixels: np.ndarray, ignore: int | None) -> np.ndarray:
    """(H, W) int32 from COCO's stuffthingmaps: things become 0..79, stuff 80..170, all else is ignored."""
    classes = {value: index for index, value in enumerate(COCO_THINGS + COCO_STUFF)}
    return lookup_table(classes, 255 if ignore is None else ignore)[byte_values(pixels)]


def from_cityscapes_ids(pixels: np.ndarray, ignore: int | None) -> np.ndarray:
    """(H, W) int32 from Cityscapes' labelIds: the 19 classes that are evaluated, all else is ignored."""
    return lookup_table(CITYSCAPES, 255 if ignore is None else ignore)[byte_values(pixels)]


ENCODINGS: dict[str, Callable[[np.ndarray, int | None], np.ndarray]] = {
    "indices": from_indices,
    "zero_ignored": from_zero_ignored,
    "rgb": from_rgb,
    "coco_things": from_coco_things,
    "coco_stuff": from_coco_stuff,
    "cityscapes_ids": from_cityscapes_ids,
}


def lookup_table(classes: Mapping[int, int], other: int) -> np.ndarray:
    """The class of each 8-bit value, (256,) int32; ``other`` for values that ``classes`` does not name."""
    table = np.full(256, other, np.int32)
    table[list(classes)] = list(classes.values())
    return table


def one_channel(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` (H, W). Raises CocuError for a mask with colour channels."""
    if pixels.ndim != 2:
        raise CocuError(
            f"expected one channel, found {pixels.shape[2]}: save a palette or grey PNG, or use encoding: rgb"
        )
    return pixels


def byte_values(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` (H, W) as int64 indices into a table of 256. Raises CocuError for larger or negative values."""
    values = one_channel(pixels).astype(np.int64)
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        raise CocuError(f"expected values of 0 to 255, found {values.min()} to {values.max()}")
    return values


def check_range(labels: np.ndarray, classes: int, ignore: int | None) -> None:
    """Raises CocuError when ``labels`` (H, W) hold anything but 0..classes-1 and ``ignore``."""
    outside = (labels < 0) | (labels >= classes)
    if ignore is not None:
        outside &= labels != ignore

    if outside.any():
        values = np.unique(labels[outside])
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise CocuError(
            f"label {shown} is outside 0..{classes - 1} and is not ignore_index {ignore}; compare classes and encoding"
        )
