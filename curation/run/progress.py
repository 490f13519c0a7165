"""How far the work is: small files beside the run, so that any engine's workers can be watched from outside."""

from __future__ import annotations

import os
import socket
import time
from typing import NamedTuple

from curation.base import files
from curation.run.run import Run

INTERVAL = 0.5  # seconds between two notes of one worker
WHOLE = "all"  # the part of a stage that runs once


class Note(NamedTuple):
    """How far a stage is with one part of its work."""

    part: str  # a shard's name, or WHOLE
    state: str  # running, computed or kept
    samples: int
    seconds: float
    at: float  # when this was noted, in seconds since 1970
    reason: str  # why it was computed again; empty when it was new
    worker: str = ""  # host and process that worked on it


class Progress:
    """Notes how far one stage is with one part of its work: a shard, or all of it. Local output folders only."""

    def __init__(self, run: Run, stage: str, part: str) -> None:
        self._path = None if files.is_remote(run.folder) else run.path(".progress", stage, part + ".json")
        self._part = part
        self._samples = 0
        self._last = self._start = time.monotonic()
        self._note("running", "")

    def advance(self, samples: int) -> None:
        """``samples`` more are done."""
        self._samples += samples
        if time.monotonic() - self._last >= INTERVAL:
            self._note("running", "")

    def finish(self, state: str, reason: str = "") -> None:
        """The part is done: ``state`` is computed or kept; ``reason``: why it was computed again."""
        self._note(state, reason)

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._start

    def _note(self, state: str, reason: str) -> None:
        self._last = time.monotonic()
        if self._path is not None:
            worker = f"{socket.gethostname()}:{os.getpid()}"
            note = Note(self._part, state, self._samples, self.seconds, time.time(), reason, worker)
            files.write_json(self._path, note._asdict(), durable=False)


def stages_begun(run: Run) -> list[str]:
    """The stages that have notes, sorted."""
    folder = run.path(".progress")
    return [] if files.is_remote(folder) or not os.path.isdir(folder) else sorted(os.listdir(folder))


def read_progress(run: Run, stage: str) -> list[Note]:
    """The notes of a stage, one for each part that was begun."""
    folder = run.path(".progress", stage)
    if files.is_remote(folder) or not os.path.isdir(folder):
        return []
    names = [name for name in sorted(os.listdir(folder)) if name.endswith(".json") and not name.startswith(".")]
    return [Note(**files.read_json(os.path.join(folder, name))) for name in names]


def clear_progress(run: Run) -> None:
    """Forget the notes of an earlier run."""
    if not files.is_remote(run.folder):
        files.remove(run.path(".progress"))
