"""Tars that were written in another way: unsorted, with dots in names, or with captions in json."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from curation.base.errors import CocuError, one_line
from curation.tools.pack.entry import (
    EXTENSIONS,
    LARGEST,
    CaptionColumns,
    Content,
    Entry,
    Unusable,
    caption_in,
    content_of,
    extension_of,
    read_sidecar,
)

BESIDE = ("txt", "text", "caption", "json")


class _Member(NamedTuple):
    offset: int
    size: int
    problem: str = ""  # why it cannot be used


class Tars:
    """The images of tars; names are read first, so that it does not matter where in the tar a caption lies."""

    def __init__(self, paths: list[Path], caption: str | None, captions: tuple[str, ...] = ()) -> None:
        self.paths = paths
        self._caption = caption
        self._captions = captions

    def entries(self) -> Iterator[Entry]:
        """Every image, tar by tar, sorted by name. Raises CocuError for a tar that cannot be read, or is compressed."""
        for path in self.paths:
            members = _read_members(path)
            names = sorted(name for name in members if extension_of(name) in EXTENSIONS)
            for name in names:
                yield self._entry(path, name, members)

    def _entry(self, path: Path, name: str, members: dict[str, _Member]) -> Entry:
        stem = name[: -len(extension_of(name)) - 1]
        beside = {kind: members[f"{stem}.{kind}"] for kind in BESIDE if f"{stem}.{kind}" in members}
        image = members[name]

        def load() -> Content:
            content = _read(path, image)
            sidecar = read_sidecar(_read(path, beside["json"])) if "json" in beside else {}
            if self._captions:
                kinds = {
                    name: name.lower() for name in self._captions if name.lower() in beside and name.lower() != "json"
                }
                values = {
                    name: _read(path, beside[kinds[name]]) if name in kinds else caption_in(sidecar, (name,))
                    for name in self._captions
                }
                return content_of(content, CaptionColumns(values), sidecar)
            text = next((_read(path, beside[kind]) for kind in BESIDE[:-1] if kind in beside), None)
            if text is None or self._caption:
                text = caption_in(sidecar, (self._caption,)) if self._caption else caption_in(sidecar)
            return content_of(content, text, sidecar)

        return Entry(f"{path.stem}/{name}", f"{image}{beside}", load)


def _read_members(path: Path) -> dict[str, _Member]:
    """Where the content of every file lies, by name."""
    members: dict[str, _Member] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep every header
                name = re.sub(r"^(\./)+", "", member.name)
                if name in members:
                    members[name] = members[name]._replace(problem="its name occurs twice in the tar")
                elif member.isreg() and not member.issparse():
                    members[name] = _Member(member.offset_data, member.size)
                elif not member.isdir():
                    members[name] = _Member(0, 0, "a link" if member.islnk() or member.issym() else "not a plain file")
            _check_end(path, tar.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise CocuError(
            f"{path}: cannot be read as a plain tar ({one_line(error)}); unpack it and pack the folder"
        ) from None
    return members


def _check_end(path: Path, offset: int) -> None:
    """Raises ReadError unless a tar ends with empty blocks: others are cut off, damaged, or followed by another tar."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        last = stream.read(512)
        while not any(last) and (block := stream.read(1 << 20)):
            last = block
    if len(last) == 0 or any(last):
        raise tarfile.ReadError("cut off, damaged, or two tars one behind the other")


def _read(path: Path, member: _Member) -> bytes:
    if member.problem:
        raise Unusable(member.problem)
    if member.size > LARGEST:
        raise Unusable(f"larger than {LARGEST >> 20} MB")
    try:
        with open(path, "rb") as stream:
            stream.seek(member.offset)
            content = stream.read(member.size)
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror})") from None
    if len(content) < member.size:
        raise Unusable("the tar ends before it")
    return content
