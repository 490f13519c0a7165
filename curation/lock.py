"""One run at a time in an output folder."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from filelock import FileLock, Timeout

from curation import storage
from curation.errors import CurationError
from curation.outputs import Outputs


@contextlib.contextmanager
def hold(outputs: Outputs) -> Iterator[None]:
    """Hold the output folder while the block lasts.

    The operating system frees the lock of a process that died, so that the next run takes it over. Raises CurationError
    naming the holder when another run works in the folder, and when the folder belongs to another data set. A remote
    folder has no lock.
    """
    _check_data(outputs)
    if storage.is_remote(outputs.folder):
        yield
        return
    lock = FileLock(outputs.path(".lock"))
    try:
        os.makedirs(outputs.folder, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise CurationError(
            f"{outputs.folder}: {_holder(outputs)} is curating into it; wait for it, or choose another output"
        ) from None
    except OSError as error:
        raise CurationError(f"{outputs.folder}: cannot be written ({error.strerror}); choose another output") from None
    owner = {"data": outputs.config.name, "host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    storage.write_json(outputs.path(".owner.json"), owner)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on a full or vanished disk the error that matters is another
            if storage.exists(outputs.manifest):  # an unfinished run goes on belonging to its data set
                os.remove(outputs.path(".owner.json"))
                os.remove(outputs.path(".lock"))
        lock.release()


def _owner(outputs: Outputs) -> dict[str, Any]:
    return storage.read_note(outputs.path(".owner.json"))


def _holder(outputs: Outputs) -> str:
    owner = _owner(outputs)
    if not owner:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("since", 0)))
    return f"process {owner.get('process')} on {owner.get('host')} (since {since})"


def read_name(manifest: str) -> str | None:
    """The data set of a manifest; None when the manifest is damaged, so that the run is made again."""
    try:
        name: str = storage.read_json(manifest)["config"]["name"]
        return name
    except (CurationError, KeyError, TypeError):
        return None


def _check_data(outputs: Outputs) -> None:
    """Raises CurationError when the folder holds, or began to hold, another data set."""
    name = _owner(outputs).get("data")
    if storage.exists(outputs.manifest):
        name = read_name(outputs.manifest)
    if name is not None and name != outputs.config.name:
        raise CurationError(
            f"{outputs.folder}: holds the archives of {name}, not {outputs.config.name}; choose another output"
        )
