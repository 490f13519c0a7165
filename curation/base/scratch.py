"""Temporary files: folders in TMPDIR, which is left clean whatever ends a run.

A folder belongs to the process that holds its lock. The system frees the lock of a process that died, so that the next
run knows what was left behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator

from filelock import FileLock, Timeout

from curation.base.errors import OutputError

TEMPORARY = ".partial-"  # how the name of everything that is half written begins, beside what it will be
LOCK = ".lock"

_open: list[str] = []  # the folders of scratch that this process has


def _ours() -> str:
    return os.path.join(tempfile.gettempdir(), f"cocu-{os.getuid()}")


def user_folder() -> str:
    """``$TMPDIR/cocu-<user id>``, for what is kept between runs; made where it is missing.

    Raises OutputError when others may write into it, and when the disk is full.
    """
    folder = _ours()
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        status = os.stat(folder)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror}); make room there, or set TMPDIR") from None
    if status.st_uid != os.getuid() or status.st_mode & 0o022:  # anyone may make a folder of that name there
        raise OutputError(f"{folder}: not owned by this user alone; remove it, or set TMPDIR")
    return folder


@contextlib.contextmanager
def scratch() -> Iterator[str]:
    """A folder for temporary files while the block lasts: ``$TMPDIR/cocu-<user id>-<random>``.

    Raises OutputError when it cannot be made, because the disk is full for instance.
    """
    try:
        lock = _lock_new()
        path = lock.lock_file.removesuffix(LOCK)
        os.mkdir(path, 0o700)
    except OSError as error:
        where = tempfile.gettempdir()
        raise OutputError(f"{where}: cannot be written ({error.strerror}); make room there, or set TMPDIR") from None
    _open.append(path)
    try:
        yield path
    finally:
        _open.remove(path)
        _discard(path)
        lock.release()


def discard_scratch() -> None:
    """Remove all folders of :func:`scratch`, of a process that is about to end without coming to the end of its blocks."""
    for path in _open:
        _discard(path)


def _lock_new() -> FileLock:
    while True:
        lock = FileLock(f"{_ours()}-{secrets.token_hex(8)}{LOCK}")
        with contextlib.suppress(Timeout):  # another process took the new file for an abandoned one
            lock.acquire(timeout=0)
            return lock


def _discard(path: str) -> None:
    """Remove a folder of :func:`scratch` and its lock."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.remove(path + LOCK)


def remove_abandoned() -> None:
    """Remove the folders of :func:`scratch` that processes of this user have left when they were killed."""
    names = [name for name in os.listdir(tempfile.gettempdir()) if name.startswith(os.path.basename(_ours()) + "-")]
    for path in {os.path.join(tempfile.gettempdir(), name.removesuffix(LOCK)) for name in names}:
        with contextlib.suppress(OSError, Timeout):  # not ours, or its owner lives
            if any(os.lstat(item).st_uid != os.getuid() for item in (path, path + LOCK) if os.path.lexists(item)):
                continue
            lock = FileLock(path + LOCK)
            lock.acquire(timeout=0)
            _discard(path)
            lock.release()
