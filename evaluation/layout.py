"""The files of a benchmark: which images and masks there are, and reading them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from curation.base.errors import CocuError, listed, one_line, quoted
from curation.base.images import ImageError, decode, decode_stored
from evaluation.benchmark import AbsentError, Benchmark, Layout
from evaluation.labels import ENCODINGS, check_range


class NoMaskError(CocuError):
    """An image without a mask. The message names it, and where the mask was looked for."""


@dataclass(frozen=True)
class BenchmarkImage:
    """An image of a benchmark: its files, and how its mask is encoded."""

    name: str  # the id, with its folders where ids repeat; names the files that are written for it
    image_path: str
    mask_path: str
    encoding: str


# --- which there are ----------------------------------------------------------------------------------------------------


def list_images(benchmark: Benchmark) -> list[BenchmarkImage]:
    """All images of the benchmark with their masks, in the order of the split file, or of their paths.

    Raises AbsentError when the root, the image folder, the split file or all images are absent, CocuError when an image
    that the split names, or the mask of an image, is absent.
    """
    layout = benchmark.layout
    _require_layout(benchmark)
    all_fields = _fields_of_split(layout, layout.split) if layout.split else _fields_of_images(layout)
    if not all_fields:
        raise AbsentError(f"no image {os.path.join(layout.root, layout.images)}")

    ids = [fields["id"] for fields in all_fields]
    unique = len(set(ids)) == len(ids)
    images, unmasked = [], []
    for fields in all_fields:
        try:
            images.append(_locate(benchmark, fields, fields["id"] if unique else _path_name(fields)))
        except NoMaskError as error:
            unmasked.append((fields["id"], error))

    if unmasked:
        (_, first), *others = unmasked
        more = f"; nor have {len(others):,} of the other {len(all_fields) - 1:,} images: " if others else ""
        raise CocuError(f"{first}{more}{listed(name for name, _ in others)}")
    return images


def _require_layout(benchmark: Benchmark) -> None:
    """Raises AbsentError naming the first folder or file of the layout that is not there, and how to get it."""
    layout = benchmark.layout
    remedy = f"; {benchmark.obtain}" if benchmark.obtain else ""
    for folder in (layout.root, _fixed_part(layout, layout.images)):
        if not os.path.isdir(folder):
            raise AbsentError(f"no folder {folder}{remedy}")
    if layout.split and not os.path.isfile(path := os.path.join(layout.root, layout.split)):
        raise AbsentError(f"no file {path}{remedy}")


def _fixed_part(layout: Layout, pattern: str) -> str:
    """The folder in front of the first field of a pattern."""
    return os.path.join(layout.root, os.path.dirname(pattern.partition("{")[0]))


def _path_name(fields: dict[str, str]) -> str:
    """A name from all fields of an image, the id last: for images whose ids repeat."""
    folders = [fields[key] for key in sorted(fields) if key != "id"]
    return "/".join([*folders, fields["id"]])


def _fields_of_split(layout: Layout, split: str) -> list[dict[str, str]]:
    """The ids of the split file, as fields of the patterns."""
    path = os.path.join(layout.root, split)
    try:
        with open(path, encoding="utf-8-sig") as stream:  # a byte order mark is no part of an id
            ids = [line.strip() for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        raise CocuError(f"{path}: cannot be read ({one_line(error)})") from None
    outside = [name for name in ids if os.path.isabs(name) or ".." in name.split("/")]
    if outside:  # predictions are written to paths made of ids
        raise CocuError(f"{path}: {quoted(outside[0])} leads out of the folder of images; write ids below it")
    return [{"id": name} for name in dict.fromkeys(ids) if name]


def _fields_of_images(layout: Layout) -> list[dict[str, str]]:
    """The fields of every file that the image pattern matches, sorted by path; masks beside the images are left out."""
    image_pattern = pattern_regex(layout.images)
    mask_patterns = [pattern_regex(pattern) for pattern in (layout.masks, layout.raw_masks) if pattern]
    fields = {}
    for relative in _files_below(layout, layout.images):
        match = image_pattern.fullmatch(relative)
        if match and not any(pattern.fullmatch(relative) for pattern in mask_patterns):
            fields[relative] = match.groupdict()
    return [fields[relative] for relative in sorted(fields)]


def _files_below(layout: Layout, pattern: str) -> Iterator[str]:
    """The files below the folder in front of a pattern's first field, relative to the root."""
    for folder, _, names in os.walk(_fixed_part(layout, pattern), followlinks=True):
        for name in names:
            yield os.path.relpath(os.path.join(folder, name), layout.root).replace(os.sep, "/")


def masks_without_image(benchmark: Benchmark, images: Sequence[BenchmarkImage]) -> list[str]:
    """The masks that no image goes with, relative to the root, sorted: images of another suffix, or none at all.

    None are listed where a split file says which images there are.
    """
    layout = benchmark.layout
    if layout.split:
        return []
    pattern = pattern_regex(layout.masks)
    paths = (path for image in images for path in (image.image_path, image.mask_path))
    used = {os.path.relpath(path, layout.root).replace(os.sep, "/") for path in paths}
    return sorted(name for name in _files_below(layout, layout.masks) if pattern.fullmatch(name) and name not in used)


def pattern_regex(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression: a field is any text without a slash, the same text wherever it is repeated.

    >>> pattern_regex("{city}/{id}_{city}.png").fullmatch("bonn/1_bonn.png").groupdict()
    {'city': 'bonn', 'id': '1'}
    """
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+)"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(pattern)))


def _locate(benchmark: Benchmark, fields: dict[str, str], name: str) -> BenchmarkImage:
    """The files of one image.

    Raises CocuError for a field of the masks' pattern that the image lacks, and for an image that is not there, NoMaskError
    for one without a mask.
    """
    layout = benchmark.layout

    def path(pattern: str) -> str:
        try:
            return os.path.join(layout.root, pattern.format_map(fields))
        except KeyError as error:
            raise CocuError(f"layout: {pattern} has a field {error} that {layout.images} lacks") from None

    image = path(layout.images)
    if layout.split and not os.path.isfile(image):
        raise CocuError(f"{image}: no such image, though {layout.split} names it")

    masks = [(path(layout.masks), benchmark.encoding)]
    if layout.raw_masks and benchmark.raw_encoding:
        masks.append((path(layout.raw_masks), benchmark.raw_encoding))
    for mask, encoding in masks:
        if os.path.isfile(mask):
            return BenchmarkImage(name, image, mask, encoding)
    raise NoMaskError(f"{image}: has no mask; looked for {' and '.join(mask for mask, _ in masks)}")


# --- reading ------------------------------------------------------------------------------------------------------------


def read_labelled(files: BenchmarkImage, benchmark: Benchmark) -> tuple[Image.Image, np.ndarray]:
    """Image (RGB) and labels (H, W), int32. Raises CocuError, also when their sizes differ.

    The image is upright: masks are drawn on what a viewer shows. If the mask fits only the image as the camera stored it,
    it was drawn on that. Where the benchmark shrinks large images, the mask may have another size of the same shape.
    """
    labels = read_labels(files, benchmark)
    height, width = labels.shape
    upright = read_image(files.image_path)
    if upright.size == (width, height):
        return upright, labels

    stored = read_image(files.image_path, upright=False)
    if stored.size == (width, height):
        return stored, labels

    for image in (upright, stored):
        proportional = abs(image.width / image.height - width / height) < 0.01 * width / height
        if benchmark.shrink_above and proportional:
            return image, labels
    sizes = f"{width} x {height} pixels, but the image {upright.width} x {upright.height}"
    raise CocuError(f"{files.mask_path}: the mask has {sizes}: not the mask of {files.image_path}")


def read_image(path: str, upright: bool = True) -> Image.Image:
    """The image in RGB, upright or as it is stored. Raises CocuError when it cannot be decoded."""
    try:
        return decode(path, upright=upright)
    except ImageError as error:
        raise CocuError(f"{path}: image cannot be decoded ({error})") from None


def read_labels(files: BenchmarkImage, benchmark: Benchmark) -> np.ndarray:
    """Class indices (H, W), int32, of the mask of an image. Raises CocuError naming the file."""
    try:
        # A palette's indices are the labels; its colours are only for show.
        pixels = np.array(decode_stored(files.mask_path))
    except ImageError as error:
        raise CocuError(f"{files.mask_path}: mask cannot be decoded ({error})") from None

    try:
        labels = ENCODINGS[files.encoding](pixels, benchmark.ignore_index)
        check_range(labels, len(benchmark.classes), benchmark.ignore_index)
    except CocuError as error:
        hint = f" (labels: {benchmark.labels})" if benchmark.labels else ""
        raise CocuError(f"{files.mask_path}: {error}{hint}") from None
    return labels
