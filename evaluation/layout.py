"""The files of a benchmark: which images and masks there are, and reading them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from curation.base.errors import CocuError
from evaluation.benchmark import AbsentError, Benchmark, Layout
from evaluation.labels import ENCODINGS, check_range

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Sample:
    """An image, its mask, and how the mask is encoded."""

    name: str  # the id; with its folders where ids repeat. Names the files that are written for it
    image: str
    mask: str
    encoding: str


def list_samples(benchmark: Benchmark) -> list[Sample]:
    """All images of the benchmark with their masks, in the order of the split file, or of their paths.

    Raises AbsentError when root, image folder, split file or all images are absent, CocuError when an image that
    the split names, or the mask of an image, is not there.
    """
    layout = benchmark.layout
    places = [(layout.root, os.path.isdir)]
    places.append((fixed_part(layout, layout.images), os.path.isdir))
    if layout.split:
        places.append((os.path.join(layout.root, layout.split), os.path.isfile))
    for path, exists in places:
        if not exists(path):
            remedy = f"; {benchmark.obtain}" if benchmark.obtain else ""
            raise AbsentError(f"no {'folder' if exists is os.path.isdir else 'file'} {path}{remedy}")
    found = from_split(layout) if layout.split else from_images(layout)
    if not found:
        raise AbsentError(f"no image {os.path.join(layout.root, layout.images)}")
    ids = [fields["id"] for fields in found]
    unique = len(set(ids)) == len(ids)
    samples = []
    for fields in found:
        name = fields["id"] if unique else "/".join(fields[key] for key in sorted(fields, key=lambda key: key == "id"))
        samples.append(locate(benchmark, fields, name))
    return samples


def fixed_part(layout: Layout, pattern: str) -> str:
    """The folder in front of the first field of a pattern."""
    return os.path.join(layout.root, os.path.dirname(pattern.partition("{")[0]))


def from_split(layout: Layout) -> list[dict[str, str]]:
    """The ids of the split file, as fields of the patterns."""
    path = os.path.join(layout.root, layout.split)
    try:
        with open(path, encoding="utf-8") as stream:
            ids = [line.strip() for line in stream]
    except (OSError, UnicodeDecodeError) as error:
        raise CocuError(f"{path}: cannot be read ({error})") from None
    return [{"id": name} for name in dict.fromkeys(ids) if name]


def from_images(layout: Layout) -> list[dict[str, str]]:
    """The fields of every file that the image pattern matches, sorted by path; masks beside the images are left out."""
    wanted = expression(layout.images)
    others = [expression(pattern) for pattern in (layout.masks, layout.raw_masks) if pattern]
    found = {}
    for folder, folders, files in os.walk(fixed_part(layout, layout.images), followlinks=True):
        folders.sort()
        for file in files:
            relative = os.path.relpath(os.path.join(folder, file), layout.root).replace(os.sep, "/")
            match = wanted.fullmatch(relative)
            if match and not any(other.fullmatch(relative) for other in others):
                found[relative] = match.groupdict()
    return [found[relative] for relative in sorted(found)]


def expression(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression: a field is any text without a slash, the same text wherever it is repeated."""
    seen: set[str] = set()

    def field(match: re.Match[str]) -> str:
        name = match[1]
        if name in seen:
            return f"(?P={name})"
        seen.add(name)
        return f"(?P<{name}>[^/]+)"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", field, re.escape(pattern)))


def locate(benchmark: Benchmark, fields: dict[str, str], name: str) -> Sample:
    """The files of one image. Raises CocuError for a field of the masks' pattern that the image lacks, and for files
    that are not there."""
    layout = benchmark.layout

    def path(pattern: str) -> str:
        try:
            return os.path.join(layout.root, pattern.format_map(fields))
        except KeyError as error:
            raise CocuError(f"layout: {pattern} has a field {error} that {layout.images} lacks") from None

    image, mask = path(layout.images), path(layout.masks)
    if layout.split and not os.path.isfile(image):
        raise CocuError(f"{image}: no such image, though {layout.split} names it")
    if os.path.isfile(mask):
        return Sample(name, image, mask, benchmark.encoding)
    raw = path(layout.raw_masks) if layout.raw_masks else None
    if raw and os.path.isfile(raw):
        return Sample(name, image, raw, benchmark.raw_encoding)
    raise CocuError(f"{image}: has no mask; looked for {mask}{f' and {raw}' if raw else ''}")


def read_image(path: str) -> Image.Image:
    """The image in RGB, as it is stored. Raises CocuError when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise CocuError(f"{path}: image cannot be decoded ({' '.join(str(error).split())[:200]})") from None


def read_labels(sample: Sample, benchmark: Benchmark) -> np.ndarray:
    """Class indices (H, W), int32, of a sample's mask. Raises CocuError naming the file."""
    try:
        with Image.open(sample.mask) as mask:
            # A palette's indices are the labels; its colours are only for show.
            pixels = np.array(mask)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        raise CocuError(f"{sample.mask}: mask cannot be decoded ({reason})") from None
    try:
        labels = ENCODINGS[sample.encoding](pixels, benchmark.ignore_index)
        check_range(labels, len(benchmark.classes), benchmark.ignore_index)
    except CocuError as error:
        told = f" (labels: {benchmark.labels})" if benchmark.labels else ""
        raise CocuError(f"{sample.mask}: {error}{told}") from None
    return labels


def read_sample(sample: Sample, benchmark: Benchmark) -> tuple[Image.Image, np.ndarray]:
    """Image (RGB) and labels (H, W). Raises CocuError, also when their sizes differ.

    Where the benchmark shrinks large images, the mask may have another size of the same shape.
    """
    labels, image = read_labels(sample, benchmark), read_image(sample.image)
    size = labels.shape[::-1]
    if image.size != size:
        # Masks were drawn on what a viewer shows: turned, where the camera was.
        image = ImageOps.exif_transpose(image)
    proportional = abs(image.width / image.height - size[0] / size[1]) < 0.01 * size[0] / size[1]
    if image.size != size and not (benchmark.shrink_above and proportional):
        sizes = f"{size[0]} x {size[1]} pixels, but the image {image.width} x {image.height}"
        raise CocuError(f"{sample.mask}: the mask has {sizes}: not the mask of {sample.image}")
    return image, labels
