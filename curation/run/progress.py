"""How far the work is: small files beside the run, so that any engine's workers can be watched from outside."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from curation.base import files
from curation.run.run import Run

INTERVAL = 0.5  # seconds between two notes of one worker
WHOLE = "all"  # the part of a stage that runs once


class Progress:
    """Notes how far one stage is with one part of its work: a shard, or all of it. Local output folders only."""

    def __init__(self, run: Run, stage: str, part: str) -> None:
        self._path = None if files.is_remote(run.folder) else run.path(".progress", stage, part + ".json")
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
        if self._path is None:
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        part = os.path.basename(self._path).removesuffix(".json")
        note = {
            "part": part,
            "state": state,
            "samples": self._samples,
            "seconds": self.seconds,
            "at": time.time(),
            "reason": reason,
        }
        with open(f"{self._path}.{os.getpid()}", "w", encoding="utf-8") as stream:
            json.dump(note, stream)
        os.replace(f"{self._path}.{os.getpid()}", self._path)


def stages_begun(run: Run) -> list[str]:
    """The stages that have notes, sorted."""
    folder = run.path(".progress")
    return [] if files.is_remote(folder) or not os.path.isdir(folder) else sorted(os.listdir(folder))


def read_progress(run: Run, stage: str) -> list[dict[str, Any]]:
    """The notes of a stage, one for each part that was begun."""
    folder = run.path(".progress", stage)
    if files.is_remote(folder) or not os.path.isdir(folder):
        return []
    notes = []
    for name in sorted(os.listdir(folder)):
        if name.endswith(".json"):
            with open(os.path.join(folder, name), encoding="utf-8") as stream:
                notes.append(json.load(stream))
    return notes


def clear_progress(run: Run) -> None:
    """Forget the notes of an earlier run."""
    if not files.is_remote(run.folder):
        files.remove(run.path(".progress"))
