"""Where the members of an ordinary tar lie, by its headers alone, which is fast; other tars are left to a whole reader."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator

BLOCK = tarfile.BLOCKSIZE
WINDOW = 1 << 12  # bytes that are read at once
MOST = 1 << 20  # members that are listed
MOST_PADDING = 1 << 20  # bytes behind the end
MOST_TIMES = 1 << 10  # bytes of a header of times
FILES, FOLDER, EXTENDED = (b"0", b"\0"), b"5", b"x"
CHECKSUM = slice(148, 156)
TIME = re.compile(rb"(\d+) (?:mtime|atime|ctime)=[\d.]+\n")  # webdataset's writer puts one before every member


def plain_members(file: int) -> list[tuple[str, int, int]] | None:
    """Name, offset and size of every file in an uncompressed tar; None for one that has anything out of the ordinary.

    ``file``: an open descriptor, whose position stays. Ordinary are files and folders with names in one field and sizes
    in digits, right checksums, times of their own, and nothing but zeros behind the end. What is not, another reader has
    to look at, and to say what is wrong with it.
    """
    members = []
    try:
        for member in _walk(file):
            members.append(member)
            if len(members) > MOST:
                return None
    except (_UnusualError, OSError):
        return None
    return members


class _UnusualError(Exception):
    """Something that only a whole reader of tars understands."""


class _Window:
    """Reads a file a few kilobytes at a time: headers of small members lie side by side."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._content, self._offset = b"", 0

    def read(self, size: int, offset: int) -> bytes:
        """``size`` bytes. Raises _UnusualError where the file ends before."""
        start = offset - self._offset
        if not 0 <= start <= len(self._content) - size:
            self._content, self._offset, start = os.pread(self._file, max(WINDOW, size), offset), offset, 0
        content = self._content[start : start + size]
        if len(content) < size:
            raise _UnusualError
        return content


def _walk(file: int) -> Iterator[tuple[str, int, int]]:
    window = _Window(file)
    offset = 0
    while any(header := window.read(BLOCK, offset)):
        size = _number(header[124:136])
        if 256 + sum(header) - sum(header[CHECKSUM]) != _number(header[CHECKSUM]) or header[345:500].strip(b"\0"):
            raise _UnusualError  # damaged, or with more of a name
        kind, content = header[156:157], offset + BLOCK
        name = header[:100].partition(b"\0")[0].decode(tarfile.ENCODING, "surrogateescape")
        if kind == EXTENDED:
            _check_times(window.read(size, content) if size <= MOST_TIMES else b"")
        elif kind in FILES and not name.endswith("/"):
            yield name, content, size
        elif kind != FOLDER or size:
            raise _UnusualError
        offset = content + -(-size // BLOCK) * BLOCK

    rest = os.pread(file, MOST_PADDING + 1, offset)
    if len(rest) > MOST_PADDING or rest.strip(b"\0"):
        raise _UnusualError  # another tar follows, or something else


def _number(field: bytes) -> int:
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise _UnusualError
    return int(digits, 8)


def _check_times(content: bytes) -> None:
    """Raises _UnusualError unless a header says when, and nothing else."""
    lines = content.splitlines(keepends=True)
    matches = [TIME.fullmatch(line) for line in lines]
    if not lines or any(match is None or int(match[1]) != len(match[0]) for match in matches):
        raise _UnusualError
