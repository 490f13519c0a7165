"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from curation.base import files
from curation.base.errors import CocuError
from curation.run.run import Run


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
    lock = FileLock(run.path(".lock"))
    try:
        os.makedirs(run.folder, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CocuError(
            f"{run.folder}: {_holder(run)} is curating into it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise CocuError(f"{run.folder}: cannot be written ({error.strerror}); choose another output") from None
    owner = {"data": run.config.name, "host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    files.write_json(run.path(".owner.json"), owner)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on a full or vanished disk the error that matters is another
            if files.exists(run.manifest):  # an unfinished run goes on belonging to its data set
                os.remove(run.path(".owner.json"))
                os.remove(run.path(".lock"))
        lock.release()


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
