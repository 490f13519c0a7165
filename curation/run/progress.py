"""How far the work is: small files beside the run, so that any engine's workers can be watched from outside."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from curation.base import files
from curation.base.errors import CocuError, OutputError
from curation.run.run import Run

INTERVAL = 0.5  # seconds between two notes of one worker
REMOTE_INTERVAL = 10.0  # the same, where each note is a request
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
    """Notes how far one stage is with one part of its work: a shard, or all of it.

    No result depends on the notes: where a remote storage does not take one, or they are just being cleared, the work goes
    on without it.
    """

    def __init__(self, run: Run, stage: str, part: str) -> None:
        self._path = run.path(".progress", stage, part + ".json")
        self._interval = REMOTE_INTERVAL if files.is_remote(run.folder) else INTERVAL
        self._part = part
        self._samples = 0
        self._last = self._start = time.monotonic()
        self._note("running", "")

    def advance(self, samples: int) -> None:
        """``samples`` more are done."""
        self._samples += samples
        if time.monotonic() - self._last >= self._interval:
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
        worker = f"{socket.gethostname()}:{os.getpid()}"
        note = Note(self._part, state, self._samples, self.seconds, time.time(), reason, worker)
        if files.is_remote(self._path):
            with contextlib.suppress(CocuError):
                files.put(self._path, json.dumps(note._asdict()).encode())
        else:
            with contextlib.suppress(FileNotFoundError):  # a run that came after this worker's has cleared them
                files.write_json(self._path, note._asdict(), durable=False)


def stages_begun(run: Run) -> list[str]:
    """The stages that have notes, sorted."""
    return files.folders_in(run.path(".progress"))


def read_progress(run: Run, stage: str) -> list[Note]:
    """The notes of a stage, one for each part that was begun; as far as they can be read, where they are remote."""
    folder = run.path(".progress", stage)
    if not files.is_remote(folder):
        names = [name for name in files.files_in(folder) if name.endswith(".json") and not name.startswith(".")]
        return [Note(**files.read_json(files.join(folder, name))) for name in names]
    try:
        marks = sorted(files.marks_in(folder).items())
    except CocuError:
        return []
    paths = [(files.join(folder, name), mark) for name, mark in marks if name.endswith(".json")]
    with ThreadPoolExecutor(16) as pool:
        notes = pool.map(lambda item: _note_or_none(*item), paths)
        return [note for note in notes if note is not None]


def _note_or_none(path: str, mark: str) -> Note | None:
    try:
        return _read_remote(path, mark)
    except (CocuError, TypeError):
        return None


@functools.lru_cache(maxsize=1 << 17)
def _read_remote(path: str, mark: str) -> Note:
    """A note; read again only when ``mark`` tells that it has changed."""
    return Note(**files.read_json(path))


def clear_progress(run: Run) -> None:
    """Forget the notes of an earlier run, but for what a worker that outlives it may still write."""
    with contextlib.suppress(OutputError):
        files.remove(run.path(".progress"))
