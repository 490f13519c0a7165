"""The tars that archives were made from."""

from __future__ import annotations

import re
from typing import NamedTuple

from curation.base import files
from curation.base.errors import CocuError


class Source(NamedTuple):
    """A tar, and where to find what belongs to it."""

    name: str  # the file's stem
    path: str
    image: str  # webdataset fields, separated by semicolons; the first that is present wins
    caption: str


def list_sources(patterns: list[str], image: str, caption: str) -> list[Source]:
    """The tars that patterns name, in order. Raises CocuError when a pattern matches nothing."""
    found: list[Source] = []
    for pattern in patterns:
        paths = files.expand(pattern)
        if not paths:
            raise CocuError(f"shards: {pattern} matches no file")
        found += [Source(shard_name(path), path, image, caption) for path in paths]
    return found


def shard_name(path: str) -> str:
    """The name of a shard, from the path or URL of its tar (also of webdataset's kind ``pipe:curl -s .../00000.tar``)."""
    return re.sub(r"\.tar(\.\w+)?$", "", path.split("?")[0].strip().rstrip("/").rsplit("/", 1)[-1])
