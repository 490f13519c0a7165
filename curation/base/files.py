"""Paths, local or remote: expanding shard patterns, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import fsspec
from braceexpand import braceexpand
from fsspec.core import url_to_fs

from curation.base.errors import CocuError, InputError, OutputError

TEMPORARY = ".partial-"
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR}


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL (``s3://...``, ``https://...``, ``memory://...``) rather than a local path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", path) is not None and not path.startswith("file://")


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


def expand(pattern: str) -> list[str]:
    """The files that a shard pattern names: webdataset braces first, then globs; the order of the braces is kept."""
    paths: list[str] = []
    for braced in braceexpand(pattern):
        if any(character in braced for character in "*?["):
            filesystem, inner = url_to_fs(braced)
            matches = sorted(filesystem.glob(inner))
            paths += [filesystem.unstrip_protocol(path) if is_remote(braced) else path for path in matches]
        else:
            paths.append(braced)
    return paths


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, inner = url_to_fs(path)
    return bool(filesystem.exists(inner))


def is_same(one: str, other: str) -> bool:
    """Whether two paths name one file, by whatever links."""
    if is_remote(one) or is_remote(other):
        return one == other
    return os.path.realpath(one) == os.path.realpath(other)


def open_file(path: str) -> IO[bytes]:
    """Open a file for reading, as a seekable binary stream. Raises InputError when it is missing or not to be read."""
    try:
        stream: IO[bytes] = fsspec.open(path, "rb").open()
        return stream
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


@contextlib.contextmanager
def atomic_write(path: str, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary stream whose content appears at ``path`` when the block ends without an exception, or not at all.

    ``durable``: wait until the disk has it, so that it survives a loss of power.
    """
    filesystem, inner = url_to_fs(path)
    folder, name = os.path.split(inner)
    temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(4) + "-" + name)
    with _writing(path, lambda: filesystem.rm(temporary)):
        filesystem.makedirs(folder, exist_ok=True)
        with filesystem.open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            if durable and not is_remote(path):
                os.fsync(stream.fileno())
        if is_remote(path):
            filesystem.mv(temporary, inner)
        else:
            os.replace(temporary, inner)


@contextlib.contextmanager
def _writing(path: str, undo: Callable[[], object]) -> Iterator[None]:
    """Undo what was begun when the block raises; a full or read-only disk becomes an OutputError."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            undo()
        if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
            reason = os.strerror(error.errno)
            raise OutputError(
                f"{path}: cannot be written ({reason}); make room there, or choose another output"
            ) from error
        raise


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A temporary local path for libraries that write by name; its file appears at ``path`` when the block ends."""
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            local = os.path.join(folder, os.path.basename(path))
            yield local
            with open(local, "rb") as source, atomic_write(path) as target:
                while chunk := source.read(1 << 24):
                    target.write(chunk)
        return
    folder, name = os.path.split(url_to_fs(path)[1])
    temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(4) + "-" + name)
    with _writing(path, lambda: os.remove(temporary)):
        os.makedirs(folder, exist_ok=True)
        yield temporary
        os.replace(temporary, os.path.join(folder, name))


def local_path(path: str) -> str:
    """A local path with the content of ``path``.

    A remote file is copied into this user's part of the temporary folder, once for all processes of the machine, and again
    when it has changed there; copies of what it was before are removed.
    """
    filesystem, inner = url_to_fs(path)
    if not is_remote(path):
        return str(inner)
    folder = os.path.join(tempfile.gettempdir(), f"cocu-{os.getuid()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    status = os.stat(folder)
    if status.st_uid != os.getuid() or status.st_mode & 0o022:  # anyone may make a folder of that name there
        raise OutputError(f"{folder}: not owned by this user alone; remove it, or set TMPDIR")
    prefix = digest(path) + "-"
    copy = os.path.join(folder, prefix + digest(version(path)) + "-" + os.path.basename(inner))
    if not os.path.exists(copy):
        temporary = os.path.join(folder, TEMPORARY + secrets.token_hex(4))
        with _writing(copy, lambda: os.remove(temporary)):
            filesystem.get_file(inner, temporary)
            os.replace(temporary, copy)
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
    filesystem, inner = url_to_fs(folder)
    if not filesystem.exists(inner):
        return []
    return sorted(
        os.path.basename(item["name"]) for item in filesystem.ls(inner, detail=True) if item["type"] == "file"
    )


def remove(path: str) -> None:
    """Remove a file or a folder with all that is in it; nothing happens when it is missing."""
    filesystem, inner = url_to_fs(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm(inner, recursive=True)


def version(path: str) -> dict[str, Any]:
    """What tells cheaply that a file is unchanged: its size, and its modification time or ETag.

    Raises InputError when the file is missing.
    """
    filesystem, inner = url_to_fs(path)
    try:
        info = filesystem.info(inner)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    mark = next((info[key] for key in ("ETag", "etag", "mtime", "LastModified", "created") if info.get(key)), None)
    return {"size": info["size"], "mark": str(mark)}


def digest(*values: Any) -> str:
    """A short content hash of JSON-able values: equal for equal values, whatever the order of mapping keys."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class HashingReader:
    """A read-only stream that hashes what passes through it, so that one pass over a file gives its content hash."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.blake2b(digest_size=16)

    def read(self, size: int = -1) -> bytes:
        """Read and hash up to ``size`` bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
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
