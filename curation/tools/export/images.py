"""Images out of their tars, byte by byte: nothing is decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import fsspec
from fsspec.core import url_to_fs

from curation.archive import ConceptArchive, read_tar
from curation.base import files
from curation.base.errors import CocuError


class Image(NamedTuple):
    """The image of an archive."""

    row: int
    field: str  # of the tar, such as jpg
    content: bytes


def read_images(archive: ConceptArchive, name: str, keys: Sequence[str]) -> Iterator[Image]:
    """The image of each key (N,) of a shard, in the order of the tar. Raises CocuError where one is missing at the end."""
    source = next(source for source in archive.sources if source.name == name)
    if not files.is_remote(source.path) and not os.path.exists(source.path):
        raise CocuError(
            f"{source.path}: no such file; put the tars that were curated there again: a run knows them by where they lie "
            "from its own folder"
        )
    fields = source.image.lower().split(";")
    waiting = {key: number for number, key in enumerate(keys)}
    for sample in read_tar(source.path, fields, source.max_member):
        number = waiting.get(sample["__key__"])
        field = next((field for field in fields if field in sample), None)
        if number is None or field is None:
            continue  # rejected by curation, or left out
        del waiting[sample["__key__"]]
        yield Image(number, field, sample[field])
    if waiting:
        missing = next(iter(waiting))
        raise CocuError(f"{source.path}: {missing} is missing: the tar is not the one that was curated")


def copy_images(archive: ConceptArchive, name: str, keys: Sequence[str], folder: str) -> Iterator[tuple[int, str, str]]:
    """Copy them into a folder, each named after its row: a key never becomes a path. Yields row, path and field."""
    filesystem, inner = url_to_fs(folder)
    filesystem.makedirs(inner, exist_ok=True)
    for image in read_images(archive, name, keys):
        path = files.join(folder, f"{image.row:08d}.{image.field}")
        with fsspec.open(path, "wb") as stream:  # what names the images comes last: none counts before
            stream.write(image.content)
        yield image.row, path, image.field
