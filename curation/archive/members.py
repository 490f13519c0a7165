"""The members of a tar, by key: one reader for curation, training, export and reports, so that all see the same samples.

Tars may be hostile: no member, name or header makes it hold more than its limits, whatever the compressed file unpacks to.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple, Self, TypeVar

from curation.archive.forward import Forward, Readable
from curation.archive.plain_tars import plain_members
from curation.base.errors import CocuError, InputError, one_line

MAX_MEMBER = 256 << 20  # bytes of a member that is held, unless the configuration says otherwise
MAX_HEADER = 16 << 10  # bytes of a name, or of other headers, in front of a member
MAX_PADDING = 64 << 20  # zeros behind the end of a tar
MAX_KEY = 1000  # bytes
MAX_FIELDS = 1000  # of a sample; more are photos whose names share all before the first dot, and memory is bounded
MAX_NAME = 255  # bytes of a part of a key: those that the name of a file may have
MEMBER = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # key and extension, as webdataset splits a name
META_FILE = re.compile(r"__[^/]*__($|/)")


M = TypeVar("M")
T = TypeVar("T")


class Unread(NamedTuple):
    """The content of a member that is not held, and why; no reason where it was not asked for."""

    reason: str = ""


Fields = dict[str, bytes | Unread]  # by extension


class _Header(tarfile.TarInfo):
    """Remembers why reading stopped: Python's tarfile takes any damaged header but the first for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.stopped_by = error  # type: ignore[attr-defined]
            raise


class Place(NamedTuple):
    """Where the content of a member lies in a tar that is not compressed."""

    offset: int
    size: int


def read_members(
    stream: Readable, wanted: Callable[[str, str], bool] = lambda key, extension: True, max_member: int = MAX_MEMBER
) -> Iterator[tuple[str, Fields]]:
    """Yield (key, {extension: content}) for runs of tar members with one key, as webdataset defines keys.

    A key ends at the first dot of the file name; extensions are lower-cased; folders, symbolic links and ``__meta__`` files
    are skipped. A repeated extension begins a new sample with the same key, and so does one after MAX_FIELDS. Of two tars
    one behind the other both are read.

    ``wanted(key, extension)``: whether to read a member; others are passed over. Members of more than ``max_member`` bytes
    and hard links are Unread, with the reason. Raises tarfile.ReadError, or what a decompressor raises, for a tar that is
    damaged, does not come to its proper end, or has a header of more than MAX_HEADER bytes.
    """
    forward = Forward(stream)

    def content(member: _Member, key: str, extension: str) -> bytes | Unread:
        return _read(forward, *member, max_member) if wanted(key, extension) else Unread()

    yield from _samples(_files(forward), content)


def locate_members(stream: Readable, max_member: int = MAX_MEMBER) -> Iterator[tuple[str, dict[str, Place]]]:
    """As :func:`read_members`, but where each member lies; none of those that it would not read, nor of sparse files.

    A compressed tar has no such places, and yields nothing. Of a local file, whose position stays at its start, often only
    headers are read (:mod:`curation.archive.plain_tars`).
    """
    places = _plain_places(stream)
    if places is None:
        forward = Forward(stream)
        if forward.is_compressed:
            return
        places = ((name, _place(member)) for name, (_, member) in _files(forward))

    def content(place: Place | None, key: str, extension: str) -> Place | None:
        return place if place is not None and 0 <= place.size <= max_member else None

    for key, fields in _samples(places, content):
        yield key, {extension: place for extension, place in fields.items() if place is not None}


def _plain_places(stream: Readable) -> Iterable[tuple[str, Place | None]] | None:
    """Names and places of the members of a file that is an ordinary tar; None for anything else."""
    try:
        members = plain_members(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError):  # no file of this machine
        return None
    return None if members is None else ((name, Place(offset, size)) for name, offset, size in members)


def _place(member: tarfile.TarInfo) -> Place | None:
    """Where the content of a member lies, which stands there as it is."""
    return Place(member.offset_data, member.size) if member.isreg() and not member.issparse() else None


_Member = tuple[tarfile.TarFile, tarfile.TarInfo]


def _files(forward: Forward) -> Iterator[tuple[str, _Member]]:
    """Name and member of every file and hard link of a tar."""
    for tar, member in _all_members(forward):
        if member.isreg() or member.islnk():
            yield member.name, (tar, member)


def _samples(
    members: Iterable[tuple[str, M]], content: Callable[[M, str, str], T]
) -> Iterator[tuple[str, dict[str, T]]]:
    """Runs of members with one key; a member of a key and an extension is what ``content(member, key, extension)`` makes
    of it."""
    key: str | None = None
    fields: dict[str, T] = {}
    for name, member in members:
        parts = MEMBER.match(name)
        if META_FILE.match(name) or parts is None:
            continue
        prefix, extension = parts[1], parts[2].lower()
        if key is not None and (prefix != key or extension in fields or len(fields) == MAX_FIELDS):
            yield key, fields
            fields = {}
        key = prefix
        fields[extension] = content(member, prefix, extension)
    if key is not None:
        yield key, fields


def _all_members(forward: Forward) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The members of a tar, and of those that follow it, each with its tar."""
    another = True
    while another:
        forward.budget = MAX_HEADER
        tar = tarfile.TarFile(fileobj=forward, tarinfo=_Header)  # type: ignore[arg-type]  # reads its first header
        while member := tar.next():
            forward.budget = None
            if sum(map(len, chain(*tar.pax_headers.items()))) > MAX_HEADER:  # of all members: they add up
                raise tarfile.ReadError("its headers for all members are too long")
            yield tar, member
            tar.members = []  # type: ignore[attr-defined]  # every header would be kept otherwise
            forward.budget = MAX_HEADER
        if not isinstance(tar.stopped_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"no end-of-archive marker: {tar.stopped_by}")  # type: ignore[attr-defined]
        forward.budget = None
        another = _another_follows(forward)


def _another_follows(forward: Forward) -> bool:
    """Whether another tar begins behind the end of one, after zeros; what is no tar is ignored, as everywhere."""
    passed = 0
    while len(block := forward.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE:
        if block.count(0) < len(block):
            try:
                _Header.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.HeaderError as error:
                if block[257:262] == b"ustar":
                    raise tarfile.ReadError(f"another tar follows its end, whose header is damaged: {error}") from None
                return False
            forward.give_back(block)
            return True
        passed += len(block)
        if passed > MAX_PADDING:
            raise tarfile.ReadError(f"more than {MAX_PADDING >> 20} MiB of zeros follow its end")
    return False


def _read(forward: Forward, tar: tarfile.TarFile, member: tarfile.TarInfo, max_member: int) -> bytes | Unread:
    """The content of a member, where it may be held."""
    if member.islnk():
        return Unread(f"is a hard link to {member.linkname[:100]}: write the tar with --hard-dereference")
    if not 0 <= member.size <= max_member:
        return Unread(f"has {member.size:,} bytes, max_member is {max_member:,}")
    if member.issparse():
        content = tar.extractfile(member)
        assert content is not None  # it is a regular file
        return content.read()

    forward.seek(member.offset_data)
    data = forward.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    return data


def key_problem(key: str) -> str | None:
    """Why a key cannot be used, because it is no text, or would leave a folder that files are named after it in.

    >>> key_problem("folder/000001") is None, key_problem("../000001")
    (True, 'key leaves its folder')
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        return "key is not UTF-8"
    parts = key.split("/")
    if key.startswith("/") or ".." in parts:
        return "key leaves its folder"
    if "\0" in key:
        return "key has a NUL character"
    if size > MAX_KEY or max(len(part.encode()) for part in parts) > MAX_NAME:
        return f"key is longer than {MAX_KEY} bytes, or a name in it than {MAX_NAME}"
    return None


@contextmanager
def tar_errors(
    path: str, hint: str = "the tar is cut off or damaged: repair it, or take it out of shards"
) -> Iterator[None]:
    """Whatever reading a tar raises in the block becomes an InputError naming ``path``."""
    try:
        yield
    except CocuError:
        raise
    except Exception as error:  # a damaged header or compressed stream makes tarfile raise nearly anything
        raise InputError(
            f"{path}: cannot be read as a tar ({one_line(error) or type(error).__name__}); {hint}"
        ) from None
