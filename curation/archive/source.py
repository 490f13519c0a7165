"""The tars that archives were made from."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from curation.archive.captions import CaptionField, Unusable, names_in, parse_field, read_captions
from curation.archive.members import MAX_MEMBER
from curation.base import files
from curation.base.addresses import redacted
from curation.base.errors import CocuError
from curation.base.patterns import expand
from curation.base.remote import is_remote


class Source(NamedTuple):
    """A tar, and the fields of its samples."""

    name: str  # the file's stem
    path: str
    image: str  # webdataset fields, separated by semicolons; the first that is present wins
    caption: str
    max_member: int = MAX_MEMBER  # bytes of a member that is held
    captions: tuple[str, ...] = ()  # fields of captions that all count, in place of ``caption``

    @property
    def caption_fields(self) -> tuple[CaptionField, ...]:
        """Where captions are. Raises CocuError for a name that is no field."""
        return tuple(map(parse_field, self.captions or names_in(self.caption)))

    @property
    def caption_members(self) -> list[str]:
        """The members of a sample that captions are in."""
        return list(dict.fromkeys(field.member for field in self.caption_fields))

    def read_captions(self, sample: Mapping[str, Any]) -> list[str]:
        """The captions that a sample may be seen with, as curation reads them; none where it has none that can be used."""
        captions = read_captions(sample, self.caption_fields, bool(self.captions))
        return [] if captions is None or isinstance(captions, Unusable) else [caption.text for caption in captions]


def list_sources(patterns: Iterable[str], image: str, caption: str, captions: Sequence[str] = ()) -> list[Source]:
    """The tars that patterns name, in order. Raises CocuError when a pattern matches nothing."""
    return [Source(shard_name(path), path, image, caption, captions=tuple(captions)) for path in matching(patterns)]


def matching(patterns: Iterable[str]) -> list[str]:
    """The files that shard patterns name, in order; :func:`curation.base.patterns.expand` says what they may be.

    Raises CocuError when one matches nothing, and for a folder, with what to do about it.
    """
    paths: list[str] = []
    for pattern in patterns:
        matches = expand(pattern)
        if not matches:
            raise CocuError(f"shards: {redacted(pattern)} matches no file; correct the pattern, or put the tars there")
        for path in matches:
            _refuse_folder(path)
        paths += matches
    return paths


def _refuse_folder(path: str) -> None:
    """Raises CocuError for a folder. Remote names that end like a file are believed: each look would be a request."""
    if is_remote(path):
        if not path.endswith("/") and re.search(r"\.\w+$", path.split("?")[0].rpartition("/")[2]):
            return
        tars = redacted(path).rstrip("/") + "/*.tar"
        if path.endswith("/") or not files.is_file(path):
            raise CocuError(f"shards: {redacted(path)} is a folder; for the tars in it write {tars}")
    elif os.path.isdir(path):
        raise CocuError(
            f"shards: {path} is a folder; for the tars in it write {os.path.join(path, '*.tar')}, and if it holds images, "
            f"pack them into tars first: cocu pack {shlex.quote(path)} -o packed/{{}}.tar"
        )


def shard_name(path: str) -> str:
    """The name of a shard, from the path or URL of its tar (also of webdataset's kind ``pipe:curl -s .../00000.tar``).

    >>> shard_name("s3://bucket/cc12m/00012.tar?versionId=3")
    '00012'
    """
    address = path.split("?")[0] if is_remote(path) or path.startswith("pipe:") else path
    return re.sub(r"\.tar(\.\w+)?$", "", address.strip().rstrip("/").rsplit("/", 1)[-1])
