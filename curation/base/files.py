"""Files, local or remote: where they lie, what tells that one is unchanged, and how one appears whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any

from fsspec import AbstractFileSystem

from curation.base import remote, scratch
from curation.base.addresses import redacted
from curation.base.errors import CocuError, OutputError
from curation.base.failures import explain
from curation.base.remote import attempt, open_filesystem

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

TEMPORARY = scratch.TEMPORARY
CANNOT_WRITE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR),
}
EMPTYING = 5.0  # seconds that other processes may go on writing into a folder that is removed


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL (``s3://...``, ``https://...``, ``memory://...``) rather than a local path."""
    return remote.is_remote(path)


def base(folder: str) -> str:
    """What paths in the files of a folder are relative to: its real path, by whatever link it was named; a URL stays."""
    return folder if is_remote(folder) else os.path.realpath(folder)


def resolve(path: str, folder: str) -> str:
    """``path`` with ${ENV} and ~ expanded, relative paths taken from ``folder``; URLs stay, file:// ones become paths.

    ``package:NAME/PATH`` is a file of an installed Python package. Raises CocuError for an environment variable that
    is not set, and for a package that is not installed.
    """
    if path.startswith("package:"):
        return _in_package(*path.removeprefix("package:").split("/", 1))
    expanded = os.path.expanduser(os.path.expandvars(path))
    missing = re.search(r"\$\{(\w+)\}|\$([A-Za-z_]\w*)", expanded)
    if missing:
        raise CocuError(f"{path}: the environment variable {missing[1] or missing[2]} is not set")
    expanded = expanded.removeprefix("file://")
    return expanded if is_remote(expanded) else os.path.normpath(os.path.join(folder, expanded))


def _in_package(name: str, inner: str = "") -> str:
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # finds a package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise CocuError(f"package:{name}/{inner}: no Python package {name} is installed")
    return os.path.normpath(os.path.join(next(iter(spec.submodule_search_locations)), inner))


def join(folder: str, *parts: str) -> str:
    """``folder/part/...``, for local paths and URLs alike."""
    return "/".join([folder.rstrip("/"), *parts]) if is_remote(folder) else os.path.join(folder, *parts)


def exists(path: str) -> bool:
    """Whether a file or folder is there. Raises InputError when a remote storage does not say."""
    filesystem, inner = open_filesystem(path)
    if not is_remote(path):
        return os.path.exists(inner)

    def look() -> bool:
        try:
            filesystem.info(inner)
        except Exception as error:
            if remote.is_missing(error):
                return False
            raise
        return True

    return attempt(path, look)


def is_file(path: str) -> bool:
    """Whether a path is a file rather than a folder. Raises InputError when it is missing or cannot be asked."""
    filesystem, inner = open_filesystem(path)
    return bool(attempt(path, lambda: filesystem.info(inner))["type"] == "file")


def is_same(one: str, other: str) -> bool:
    """Whether two paths name one file, by whatever links."""
    if is_remote(one) or is_remote(other):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading, as a seekable binary stream.

    Raises InputError when it is missing or not to be read; for a remote file also later, when it cannot be read on.
    """
    if is_remote(path):
        return remote.open_remote(path)
    filesystem, inner = open_filesystem(path)
    stream: IO[bytes] = attempt(path, lambda: filesystem.open(inner, "rb"))
    return stream


@contextlib.contextmanager
def atomic_write(path: str, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears at ``path`` when the block ends without an exception, or not at all.

    ``durable``: wait until the disk has it, so that it survives a loss of power.
    """
    filesystem, inner = open_filesystem(path)
    if remote.scheme(path) in remote.WEB:
        raise OutputError(f"{redacted(path)}: cannot be written to; choose a folder, or a bucket (s3://, gs://)")
    folder, name = os.path.split(inner)
    temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(4) + "-" + name)
    with _writing(path, lambda: filesystem.rm_file(temporary)):
        if remote.scheme(path) not in remote.BUCKETS:
            filesystem.makedirs(folder, exist_ok=True)
        with filesystem.open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if durable and not is_remote(path):
                os.fsync(stream.fileno())
        if is_remote(path):
            _move(filesystem, temporary, inner)
        else:
            os.replace(temporary, inner)


def _move(filesystem: AbstractFileSystem, source: str, target: str) -> None:
    """Move a file of a remote storage. fsspec's own way of moving takes brackets in a path for a glob."""
    if type(filesystem).mv is not AbstractFileSystem.mv:
        filesystem.mv(source, target)
    else:
        filesystem.cp_file(source, target)
        filesystem.rm_file(source)


@contextlib.contextmanager
def _writing(path: str, undo: Callable[[], object]) -> Iterator[None]:
    """Undo what was begun when the block raises; a full or read-only disk or storage becomes an OutputError."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(Exception):  # the error that matters is the first
            undo()
        reason = None if is_remote(path) else _reason(error)
        if reason:
            raise OutputError(
                f"{path}: cannot be written ({reason}); make room there, or choose another output"
            ) from error
        if is_remote(path) and isinstance(error, Exception) and not isinstance(error, CocuError):
            raise_unwritable(path, error)
        raise


def _reason(error: BaseException) -> str | None:
    """Why the disk cannot be written to, where that is what went wrong; libraries in C++ say so in their messages."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno) if error.errno in CANNOT_WRITE else None
    reasons = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)]
    return next((reason for reason in reasons if isinstance(error, RuntimeError) and reason in str(error)), None)


def raise_unwritable(path: str, error: Exception) -> None:
    """Raises OutputError for what a remote storage reports when ``path`` is written; nothing for any other error."""
    failure = explain(error)
    if failure is None:
        return
    reason = "no such bucket; create it, or correct the address" if failure.is_missing else failure.reason
    raise OutputError(f"{redacted(path)}: cannot be written: {reason}") from error


def put(path: str, content: bytes) -> None:
    """Write a small file of a remote folder at once, as buckets do it: whole, in one request.

    Raises OutputError when the storage does not take it.
    """
    filesystem, inner = open_filesystem(path)
    try:
        filesystem.pipe_file(inner, content)
    except Exception as error:
        raise_unwritable(path, error)
        raise


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A temporary local path for libraries that write by name; its file appears at ``path`` when the block ends."""
    if is_remote(path):
        with scratch.scratch() as folder, _writing(folder, lambda: None):
            local = os.path.join(folder, os.path.basename(path))
            yield local
            with open(local, "rb") as source, atomic_write(path) as target:
                while chunk := source.read(1 << 24):
                    target.write(chunk)
        return
    folder, name = os.path.split(open_filesystem(path)[1])
    temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(4) + "-" + name)
    with _writing(path, lambda: os.remove(temporary)):
        os.makedirs(folder, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, os.path.join(folder, name))


def mapped_array(path: str, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """A new ``.npy`` file, mapped into memory for writing; its space is taken at once.

    Raises OutputError where there is none: a write to a mapped file on a full disk would end the process.
    """
    from numpy.lib.format import open_memmap

    with _writing(path, lambda: os.remove(path)):
        array = open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, os.path.getsize(path))
        return array


def local_path(path: str) -> str:
    """A local path with the content of ``path``.

    A remote file is copied into this user's part of the temporary folder, once for all processes of the machine, and again
    when it has changed there; copies of what it was before are removed.
    """
    filesystem, inner = open_filesystem(path)
    if not is_remote(path):
        return str(inner)
    folder = scratch.user_folder()
    prefix = digest(path) + "-"
    copy = os.path.join(folder, prefix + digest(version(path)) + "-" + os.path.basename(inner))
    if not os.path.exists(copy):
        with scratch.scratch() as temporary, _writing(copy, lambda: None):
            whole = os.path.join(temporary, "whole")
            attempt(path, lambda: filesystem.get_file(inner, whole))
            os.replace(whole, copy)
        for name in os.listdir(folder):
            if name.startswith(prefix) and name != os.path.basename(copy):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    os.remove(os.path.join(folder, name))
    return copy


def write_json(path: str, value: Any, durable: bool = True) -> None:
    """Write ``value`` as indented JSON, as :func:`atomic_write` does. Raises ValueError for NaN and infinity."""
    with atomic_write(path, durable) as stream:
        stream.write(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def read_json(path: str, remedy: str = "delete it and it will be written again") -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises CocuError when it is missing, and, with ``remedy``, for any other."""
    with open_file(path) as stream:
        try:
            content = json.loads(stream.read().decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise CocuError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise CocuError(f"{path}: not a JSON object; {remedy}")
    return content


def read_note(path: str) -> dict[str, Any]:
    """A JSON file on which no result depends, or that can be written again; empty when it is missing or damaged."""
    try:
        return read_json(path)
    except CocuError:
        return {}


def files_in(folder: str) -> list[str]:
    """Names of the files in ``folder``, sorted; none when the folder is missing."""
    return sorted(name for name, info in _entries(folder).items() if info["type"] == "file")


def folders_in(folder: str) -> list[str]:
    """Names of the folders in ``folder``, sorted; none when the folder is missing."""
    return sorted(name for name, info in _entries(folder).items() if info["type"] == "directory")


def marks_in(folder: str) -> dict[str, str]:
    """Names of the files in ``folder``, and what tells that each is unchanged; in one request."""
    entries = _entries(folder)
    return {name: f"{info['size']} {remote.mark(info)}" for name, info in entries.items() if info["type"] == "file"}


def _entries(folder: str) -> dict[str, dict[str, Any]]:
    filesystem, inner = open_filesystem(folder)

    def look() -> list[dict[str, Any]]:
        try:
            return list(filesystem.ls(inner, detail=True))
        except Exception as error:
            is_local = not is_remote(folder)  # where the exception itself says it, whatever is being handled around it
            if (is_local and isinstance(error, FileNotFoundError | NotADirectoryError)) or remote.is_missing(error):
                return []
            raise

    items = attempt(folder, look)
    return {os.path.basename(item["name"].rstrip("/")): item for item in items}


def remove(path: str) -> None:
    """Remove a file or a folder with all that is in it; nothing happens when it is missing.

    Raises OutputError for a local folder that does not become empty, because another process goes on writing into it.
    """
    filesystem, inner = open_filesystem(path)

    def take_away() -> None:
        try:
            filesystem.rm(glob.escape(inner) if is_remote(path) else inner, recursive=True)
        except Exception as error:
            if not remote.is_missing(error):
                raise

    limit = time.monotonic() + EMPTYING
    while True:
        try:
            attempt(path, take_away)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if is_remote(path) or not os.path.lexists(inner):
            return
        if time.monotonic() > limit:
            raise OutputError(f"{path}: cannot be removed, for a process writes into it; end that one and try again")
        time.sleep(0.05)  # files that come or go meanwhile have stopped it half way


def version(path: str) -> dict[str, Any]:
    """What tells that a file is unchanged: its size, and its modification time, its ETag or what else a server gives.

    A server that gives nothing has the file read, and its content hashed. Raises InputError when the file is missing.
    """
    filesystem, inner = open_filesystem(path)
    info = attempt(path, lambda: filesystem.info(inner))
    mark, size = remote.mark(info), info["size"]
    if mark is None and info["type"] == "file":
        with open_file(path) as stream:
            reader = HashingReader(stream)
            mark = "content " + reader.finish()
            size = reader.size
    return {"size": size or 0, "mark": str(mark)}


def digest(*values: Any) -> str:
    """A short content hash of JSON-able values: equal for equal values, whatever the order of mapping keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class HashingReader:
    """A read-only stream that hashes what passes through it, so that one pass over a file gives its content hash."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.blake2b(digest_size=16)
        self.size = 0  # bytes so far

    def read(self, size: int = -1) -> bytes:
        """Read and hash up to ``size`` bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        self.size += len(data)
        return data

    def finish(self) -> str:
        """Read what is left and return the hash of the whole file."""
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


def file_digest(path: str) -> str:
    """The content hash of a whole file."""
    with open_file(path) as stream:
        return HashingReader(stream).finish()
