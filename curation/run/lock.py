"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Iterator

from filelock import FileLock, Timeout

from curation.base import files
from curation.base.errors import CocuError
from curation.run.owner import check_data, held, is_alive, read_owner, remove_owner, write_owner
from curation.run.run import Run

RENEWED = 30.0  # seconds between two signs of life in a remote folder
SETTLED = 1.0  # seconds after which the last of two that began at once is seen by both


@contextlib.contextmanager
def hold(run: Run) -> Iterator[None]:
    """Hold the output folder while the block lasts.

    The operating system frees the lock of a process that died, so that the next run takes it over. In a remote folder the
    holder leaves a note, which it renews; it counts until it is three minutes old, or its process on this machine is gone.
    Raises CocuError naming the holder when another run works in the folder, and when the folder belongs to another data
    set.
    """
    check_data(run)
    if files.is_remote(run.folder):
        with _hold_remote(run):
            yield
        return
    lock = FileLock(run.path(".lock"))
    try:
        os.makedirs(run.folder, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise held(run) from None
    except OSError as error:
        raise CocuError(f"{run.folder}: cannot be written ({error.strerror}); choose another output") from None
    try:
        write_owner(run)
        yield
    finally:
        with contextlib.suppress(OSError):  # on a full or vanished disk the error that matters is another
            remove_owner(run)
            if files.exists(run.manifest):
                files.remove(run.path(".once.lock"))  # of processes that shared the folder, and were killed
                files.remove(run.path(".lock"))
        lock.release()


@contextlib.contextmanager
def _hold_remote(run: Run) -> Iterator[None]:
    if is_alive(read_owner(run)):
        raise held(run)
    since = time.time()
    token = secrets.token_hex(8)
    write_owner(run, since=since, token=token, alive=since)
    time.sleep(SETTLED)
    if read_owner(run).get("token") != token:
        raise held(run)

    over = threading.Event()
    renewing = threading.Thread(target=_keep_renewing, args=(run, since, token, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(CocuError):  # the error that matters is another
            remove_owner(run)


def _keep_renewing(run: Run, since: float, token: str, over: threading.Event) -> None:
    while not over.wait(RENEWED):
        with contextlib.suppress(CocuError):  # the network may be back the next time
            write_owner(run, since=since, token=token, alive=time.time())
