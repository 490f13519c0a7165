"""The tars that archives were made from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from curation.archive.members import MAX_MEMBER
from curation.base import files
from curation.base.errors import CocuError


class Source(NamedTuple):
    """A tar, and the fields of its samples."""

    name: str  # the file's stem
    path: str
    image: str  # webdataset fields, separated by semicolons; the first that is present wins
    caption: str
    max_member: int = MAX_MEMBER  # bytes of a member that is held


def list_sources(patterns: Iterable[str], image: str, caption: str) -> list[Source]:
    """The tars that patterns name, in order. Raises CocuError when a pattern matches nothing."""
    return [Source(shard_name(path), path, image, caption) for path in matching(patterns)]


def matching(patterns: Iterable[str]) -> list[str]:
    """The files that shard patterns (braces, globs) name, in order. Raises CocuError when one matches nothing."""
    paths: list[str] = []
    for pattern in patterns:
        matches = files.expand(pattern)
        if not matches:
            raise CocuError(f"shards: {pattern} matches no file")
        paths += matches
    return paths


def shard_name(path: str) -> str:
    """The name of a shard, from the path or URL of its tar (also of webdataset's kind ``pipe:curl -s .../00000.tar``).

    >>> shard_name("s3://bucket/cc12m/00012.tar?versionId=3")
    '00012'
    """
    return re.sub(r"\.tar(\.\w+)?$", "", path.split("?")[0].strip().rstrip("/").rsplit("/", 1)[-1])
