"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from curation.base import files
from curation.base.errors import CocuError
from curation.run.run import Run

RENEWED = 30.0  # seconds between two signs of life in a remote folder
SETTLED = 1.0  # seconds after which the last of two that began at once is seen by both
GONE = 180.0  # seconds without a sign of life, after which a remote holder is taken for dead


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
        raise _held(run) from None
    except OSError as error:
        raise CocuError(f"{run.folder}: cannot be written ({error.strerror}); choose another output") from None
    try:
        files.write_json(run.path(".owner.json"), _sign_of_life(run, time.time()))
        yield
    finally:
        with contextlib.suppress(OSError):  # on a full or vanished disk the error that matters is another
            if files.exists(run.manifest):  # an unfinished run goes on belonging to its data set
                os.remove(run.path(".owner.json"))
                os.remove(run.path(".lock"))
        lock.release()


# --- a remote folder ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _hold_remote(run: Run) -> Iterator[None]:
    if _is_alive(_owner(run)):
        raise _held(run)
    since, token = time.time(), secrets.token_hex(8)
    _renew(run, since, token)
    time.sleep(SETTLED)
    if _owner(run).get("token") != token:
        raise _held(run)

    over = threading.Event()
    renewing = threading.Thread(target=_keep_renewing, args=(run, since, token, over), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        with contextlib.suppress(CocuError):  # the error that matters is another
            if files.exists(run.manifest):
                files.remove(run.path(".owner.json"))
            else:  # an unfinished run goes on belonging to its data set
                _write_owner(run, {"data": run.config.name})


def _keep_renewing(run: Run, since: float, token: str, over: threading.Event) -> None:
    while not over.wait(RENEWED):
        with contextlib.suppress(CocuError):  # the network may be back the next time
            _renew(run, since, token)


def _renew(run: Run, since: float, token: str) -> None:
    _write_owner(run, _sign_of_life(run, since) | {"token": token, "alive": time.time()})


def _write_owner(run: Run, owner: dict[str, Any]) -> None:
    files.put(run.path(".owner.json"), json.dumps(owner).encode())


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the holder that a remote folder names may still be at work."""
    if time.time() - owner.get("alive", 0) > GONE:
        return False
    if owner.get("host") != socket.gethostname():
        return True
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


# --- who holds it ---------------------------------------------------------------------------------------------------------


def _sign_of_life(run: Run, since: float) -> dict[str, Any]:
    return {"data": run.config.name, "host": socket.gethostname(), "process": os.getpid(), "since": since}


def _owner(run: Run) -> dict[str, Any]:
    return files.read_note(run.path(".owner.json"))


def _held(run: Run) -> CocuError:
    owner = _owner(run)
    holder = "another process"
    if "process" in owner:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("since", 0)))
        holder = f"process {owner['process']} on {owner.get('host')} (since {since})"
    wait = "wait for it"
    if files.is_remote(run.folder):
        wait += f" (or, if it was killed, for {GONE / 60:.0f} minutes)"
    return CocuError(f"{run.folder}: {holder} is curating into it; {wait}, or choose another output")


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
