"""Numbered tars of samples, with the members that webdataset's ShardWriter writes, but without importing torch."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

OWNER = "bigdata"  # webdataset's
MODE = 0o444


class ShardWriter:
    """Writes samples into ``folder/00000.tar`` and on, and begins another tar where one is full.

    ``finished(path)`` is called for every tar that is whole. ``first``: the number of the first one; ``count``, ``size``:
    samples and bytes of contents after which a tar is full.
    """

    def __init__(self, folder: Path, first: int, count: int, size: int, finished: Callable[[Path], None]) -> None:
        self._folder, self._number = folder, first
        self._count, self._size = count, size
        self._finished = finished
        self._tar: tarfile.TarFile | None = None
        self._samples = self._bytes = 0  # in the tar that is being written

    def write(self, key: str, fields: Mapping[str, Any]) -> None:
        """Write a sample: bytes as they are, text as UTF-8, and anything else as JSON."""
        if self._tar is not None and (self._samples >= self._count or self._bytes >= self._size):
            self.close()
        if self._tar is None:
            self._tar = tarfile.open(self._path, "w|", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - open for long
            self._samples = self._bytes = 0

        for name, value in sorted(fields.items()):
            content = encoded(value)
            member = tarfile.TarInfo(f"{key}.{name}")
            member.size, member.mode, member.mtime = len(content), MODE, 0
            member.uname = member.gname = OWNER
            self._tar.addfile(member, io.BytesIO(content))
            self._bytes += len(content)
        self._samples += 1

    def close(self) -> None:
        """Finish the tar that is being written."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None
            path = self._path
            self._number += 1
            self._finished(path)

    def abandon(self) -> None:
        """Leave the tar that is being written as it is: it is not whole."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._number:05d}.tar"


def encoded(value: Any) -> bytes:
    """The content of a field.

    >>> encoded(b"x"), encoded("é"), encoded({"b": 1})
    (b'x', b'\\xc3\\xa9', b'{"b": 1}')
    """
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()
