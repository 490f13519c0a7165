"""One run at a time in an output folder, or the processes of one run that share it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from filelock import FileLock, Timeout

from curation.base import files
from curation.base.errors import CocuError
from curation.run.run import Run

OURS = (".owner.json", ".once.lock", ".lock")
NOTICING, CLEANING = 2, 60  # seconds that the first of many processes may take to say that it shares, and to clean up


@contextlib.contextmanager
def hold(run: Run) -> Iterator[None]:
    """Hold the output folder while the block lasts.

    The operating system frees the lock of a process that died, so that the next run takes it over. Raises CocuError
    naming the holder when another run works in the folder, and when the folder belongs to another data set. A remote
    folder has no lock.
    """
    check_data(run)
    if files.is_remote(run.folder):
        yield
        return
    lock = FileLock(_lock(run))
    try:
        os.makedirs(run.folder, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CocuError(
            f"{run.folder}: {_holder(run)} is curating into it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise CocuError(f"{run.folder}: cannot be written ({error.strerror}); choose another output") from None
    _write_owner(run)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on a full or vanished disk the error that matters is another
            if files.exists(run.manifest):  # an unfinished run goes on belonging to its data set
                for name in OURS:
                    files.remove(run.path(name))
        lock.release()


@contextlib.contextmanager
def share(run: Run, asked: str, first: Callable[[], None], last: Callable[[], None]) -> Iterator[None]:
    """Share the output folder with the other processes of one run while the block lasts.

    ``asked``: identifies the run, :func:`curation.run.inputs.request`; ``first`` is called before the block when no other
    process is in the folder, ``last`` after it when none is left and the run is finished. A remote folder has no lock:
    every process is the first there, and none the last. Raises CocuError as :func:`hold` does, when a run that does not
    share works in the folder, and when the others are asked for something else.
    """
    check_data(run)
    if files.is_remote(run.folder):
        first()
        yield
        return
    with _open_shared(run, asked, first) as lock:
        if _owner(run).get("asked") != asked:
            raise CocuError(
                f"{run.folder}: {_holder(run)} is curating into it with another configuration or other shards; start all "
                "processes of a run alike, but for --only-shards"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if files.exists(run.manifest) and _try(lock, fcntl.LOCK_EX):
                    last()
                    for name in OURS:
                        files.remove(run.path(name))


@contextlib.contextmanager
def one_at_a_time(run: Run) -> Iterator[None]:
    """One of the processes that share an output folder at a time; the others wait. A remote folder has no lock."""
    if files.is_remote(run.folder):
        yield
        return
    with FileLock(run.path(".once.lock"), poll_interval=0.5):
        yield


@contextlib.contextmanager
def _open_shared(run: Run, asked: str, first: Callable[[], None]) -> Iterator[int]:
    """The lock file, open and locked for sharing, after ``first`` where no other process had it.

    Raises CocuError when a run holds it for itself.
    """
    began = time.monotonic()
    try:
        os.makedirs(run.folder, exist_ok=True)
        while True:
            lock = os.open(_lock(run), os.O_RDWR | os.O_CREAT, 0o644)
            is_alone = _try(lock, fcntl.LOCK_EX)
            # Whoever was last may have removed the file that was opened here.
            if (is_alone or _try(lock, fcntl.LOCK_SH)) and _is_at(lock, _lock(run)):
                break
            os.close(lock)
            waited = time.monotonic() - began
            is_exclusive = waited > NOTICING and not _owner(run).get("asked")
            if is_exclusive or waited > CLEANING:
                raise CocuError(
                    f"{run.folder}: {_holder(run)} is curating into it; wait for it, or choose another output"
                )
            time.sleep(0.2)
        if is_alone:
            _write_owner(run, asked)
    except OSError as error:
        raise CocuError(f"{run.folder}: cannot be written ({error.strerror}); choose another output") from None
    try:
        if is_alone:
            first()
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield lock
    finally:
        os.close(lock)


def _try(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(lock: int, path: str) -> bool:
    return os.path.exists(path) and os.path.samestat(os.fstat(lock), os.stat(path))


def _lock(run: Run) -> str:
    return run.path(".lock")


def _write_owner(run: Run, asked: str = "") -> None:
    owner = {"data": run.config.name, "host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    files.write_json(run.path(".owner.json"), owner | {"asked": asked})


def _owner(run: Run) -> dict[str, Any]:
    return files.read_note(run.path(".owner.json"))


def _holder(run: Run) -> str:
    owner = _owner(run)
    if not owner:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("since", 0)))
    return f"process {owner.get('process')} on {owner.get('host')} (since {since})"


def read_name(manifest: str) -> str | None:
    """The data set of a manifest; None when the manifest is damaged, so that the run is made again."""
    try:
        return files.read_json(manifest)["config"]["name"]
    except (CocuError, KeyError, TypeError):
        return None


def check_data(run: Run) -> None:
    """Raises CocuError when the folder holds, or began to hold, another data set."""
    name = _owner(run).get("data")
    if files.exists(run.manifest):
        name = read_name(run.manifest)
    if name is not None and name != run.config.name:
        raise CocuError(f"{run.folder}: holds the archives of {name}, not {run.config.name}; choose another output")
