"""Several processes of one run in one output folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator

from filelock import FileLock

from curation.base import files
from curation.base.errors import CocuError
from curation.run.owner import check_data, held, holder_of, is_alive, read_owner, remove_owner, write_owner
from curation.run.run import Run

NOTICING, CLEANING = 2, 60  # seconds that the first of many processes may take to say that it shares, and to clean up


@contextlib.contextmanager
def share(run: Run, asked: str, first: Callable[[], None], last: Callable[[], None]) -> Iterator[None]:
    """Share the output folder with the other processes of one run while the block lasts.

    ``asked``: identifies the run, :func:`curation.run.inputs.request`; ``first`` is called before the block when no other
    process is in the folder, ``last`` after it when none is left and the run is finished. A remote folder has no lock for
    many: every process is the first there, and none the last. Raises CocuError as :func:`curation.run.lock.hold` does,
    when a run that does not share works in the folder, and when the others are asked for something else.
    """
    check_data(run)
    if files.is_remote(run.folder):
        if is_alive(read_owner(run)):
            raise held(run)
        first()
        yield
        return
    with _open_shared(run, asked, first) as lock:
        if read_owner(run).get("asked") != asked:
            raise CocuError(
                f"{run.folder}: {holder_of(run)} is curating into it with another configuration or other shards; start all "
                "processes of a run alike, but for --only-shards"
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if files.exists(run.manifest) and _try(lock, fcntl.LOCK_EX):
                    last()
                    remove_owner(run)
                    files.remove(run.path(".once.lock"))
                    files.remove(run.path(".lock"))


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
    path = run.path(".lock")
    try:
        os.makedirs(run.folder, exist_ok=True)
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            is_alone = _try(lock, fcntl.LOCK_EX)
            # Whoever was last may have removed the file that was opened here.
            if (is_alone or _try(lock, fcntl.LOCK_SH)) and _is_at(lock, path):
                break
            os.close(lock)
            waited = time.monotonic() - began
            is_exclusive = waited > NOTICING and not read_owner(run).get("asked")
            if is_exclusive or waited > CLEANING:
                raise held(run)
            time.sleep(0.2)
        if is_alone:
            write_owner(run, asked=asked)
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
