"""The note ``.owner.json`` in an output folder: which data set it belongs to, and which process works in it."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from curation.base import files
from curation.base.errors import CocuError
from curation.run.run import Run

GONE = 180.0  # seconds without a sign of life, after which the holder of a remote folder is taken for dead


def read_owner(run: Run) -> dict[str, Any]:
    """The note; empty where there is none."""
    return files.read_note(run.path(".owner.json"))


def write_owner(run: Run, **more: Any) -> None:
    """Note that this process works in the folder."""
    owner = {"data": run.config.name, "host": socket.gethostname(), "process": os.getpid(), "since": time.time()} | more
    if files.is_remote(run.folder):
        files.put(run.path(".owner.json"), json.dumps(owner).encode())
    else:
        files.write_json(run.path(".owner.json"), owner)


def remove_owner(run: Run) -> None:
    """Nobody works in the folder any more; an unfinished run goes on belonging to its data set."""
    if files.exists(run.manifest):
        files.remove(run.path(".owner.json"))
    elif files.is_remote(run.folder):
        files.put(run.path(".owner.json"), json.dumps({"data": run.config.name}).encode())


def is_alive(owner: dict[str, Any]) -> bool:
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


def holder_of(run: Run) -> str:
    """The process that works in the folder, for a message."""
    owner = read_owner(run)
    if "process" not in owner:
        return "another process"
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(owner.get("since", 0)))
    return f"process {owner['process']} on {owner.get('host')} (since {since})"


def held(run: Run) -> CocuError:
    """The error of a run that finds another one in its output folder."""
    wait = "wait for it"
    if files.is_remote(run.folder):
        wait += f" (or, if it was killed, for {GONE / 60:.0f} minutes)"
    return CocuError(f"{run.folder}: {holder_of(run)} is curating into it; {wait}, or choose another output")


def read_name(manifest: str) -> str | None:
    """The data set of a manifest; None when the manifest is damaged, so that the run is made again."""
    try:
        return files.read_json(manifest)["config"]["name"]
    except (CocuError, KeyError, TypeError):
        return None


def check_data(run: Run) -> None:
    """Raises CocuError when the folder holds, or began to hold, another data set."""
    name = read_owner(run).get("data")
    if files.exists(run.manifest):
        name = read_name(run.manifest)
    if name is not None and name != run.config.name:
        raise CocuError(f"{run.folder}: holds the archives of {name}, not {run.config.name}; choose another output")
