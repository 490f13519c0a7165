"""A stream that is read forwards, compressed or not, without ever holding more of it than was asked for."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
from typing import Any, Protocol, cast

SKIPPED_AT_ONCE = 1 << 20  # bytes
XZ_MEMORY = 128 << 20  # bytes: xz -9 needs 65 MiB to decompress, a crafted file asks for 4 GiB


class Readable(Protocol):
    """What can be read forwards."""

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes; none at the end."""


class Forward:
    """A readable stream with the position that tarfile asks for; it is decompressed (gzip, bzip2, xz) as its start says.

    ``budget``: bytes that may be read, not counting those that are passed over, until it is set again; None for any number.
    """

    def __init__(self, stream: Readable) -> None:
        self.budget: int | None = None
        self._ahead = b""  # read already, and given back
        self._position = 0
        self._source = stream
        self._stream = _decompressed(stream)
        self._can_seek = self._stream is stream and bool(getattr(stream, "seekable", bool)())
        if self._can_seek:
            self._position = cast("Any", stream).tell()

    @property
    def is_compressed(self) -> bool:
        """Whether positions are those of what has been decompressed, not of the stream."""
        return not isinstance(self._stream, _Begun) and self._stream is not self._source

    def tell(self) -> int:
        """The position in what has been decompressed."""
        return self._position

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end. Raises tarfile.ReadError where the budget does not allow them."""
        if self.budget is not None:
            self.budget -= size
            if self.budget < 0:
                raise tarfile.ReadError("a header is too long")

        parts = [self._ahead[:size]] if self._ahead else []
        self._ahead = self._ahead[size:]
        missing = size - sum(map(len, parts))
        while missing > 0 and (part := self._stream.read(missing)):
            parts.append(part)
            missing -= len(part)
        self._position += size - missing
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def give_back(self, content: bytes) -> None:
        """What was read last is read again."""
        self._ahead = content + self._ahead
        self._position -= len(content)

    def seek(self, position: int) -> None:
        """Pass over what lies before ``position``. Raises tarfile.ReadError for one that lies behind."""
        missing = position - self._position
        if missing < 0:
            raise tarfile.ReadError("its parts overlap")
        if self._can_seek and not self._ahead and missing > SKIPPED_AT_ONCE:
            cast("Any", self._stream).seek(missing, io.SEEK_CUR)
            self._position = position
            return

        budget = self.budget
        self.budget = None
        while missing > 0 and (part := self.read(min(missing, SKIPPED_AT_ONCE))):
            missing -= len(part)
        self.budget = budget


def _decompressed(stream: Readable) -> Readable:
    """The stream itself, or what it holds where it begins as a gzip, bzip2 or xz file does."""
    start = stream.read(6)
    if start[:2] not in (b"\x1f\x8b", b"BZ", b"\xfd7", b"]\0"):
        return _Begun(start, stream) if not _rewound(stream, start) else stream
    begun = _Begun(start, stream)
    if start.startswith(b"\x1f\x8b\x08"):
        return gzip.GzipFile(fileobj=cast("Any", begun), mode="rb")
    if start.startswith(b"BZh"):
        return bz2.BZ2File(cast("Any", begun))
    if start.startswith((b"\xfd7zXZ", b"]\0\0\x80")):
        return io.BufferedReader(_Xz(begun))
    return begun


def _rewound(stream: Readable, start: bytes) -> bool:
    """Go back to before ``start``, if the stream can."""
    if not getattr(stream, "seekable", bool)():
        return False
    cast("Any", stream).seek(-len(start), io.SEEK_CUR)
    return True


class _Begun:
    """A stream of which the start has been read already."""

    def __init__(self, start: bytes, stream: Readable) -> None:
        self._start, self._stream = start, stream

    def read(self, size: int = -1, /) -> bytes:
        start = self._start if size < 0 else self._start[:size]
        self._start = self._start[len(start) :]
        return start or self._stream.read(size)


class _Xz(io.RawIOBase):
    """An xz file; Python's own reader sets no limit to the memory that its header may ask for."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor.eof:  # another file may follow, or zeros
                self._waiting = (self._decompressor.unused_data or self._stream.read(io.DEFAULT_BUFFER_SIZE)).lstrip(
                    b"\0"
                )
                if not self._waiting:
                    return 0
                self._decompressor = lzma.LZMADecompressor(memlimit=XZ_MEMORY)
            compressed = self._waiting
            self._waiting = b""
            if not compressed and self._decompressor.needs_input:
                compressed = self._stream.read(io.DEFAULT_BUFFER_SIZE)
                if not compressed:
                    raise EOFError("compressed file ends before its end-of-stream marker")
            content = self._decompressor.decompress(compressed, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
