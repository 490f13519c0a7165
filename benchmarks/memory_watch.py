"""How much memory a process and all its children take while they run, and in which stage of curation it is most."""

from __future__ import annotations

import os
import threading
from pathlib import Path

POLL = 0.5  # seconds between two measurements


class MemoryWatch:
    """The largest memory of a process and its children while the block lasts, and the stage in which each was largest.

    PSS, the sum over processes of private pages and of their share of common ones, mapped files included (/proc, Linux).
    """

    def __init__(self, process: int, progress: Path) -> None:
        self.peak = 0  # bytes
        self.private = 0  # bytes that belong to no file
        self.of_stage: dict[str, int] = {}
        self._process = process
        self._progress = progress
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            total, private = tree_memory(self._process)
            self.peak = max(self.peak, total)
            self.private = max(self.private, private)
            stage = latest(self._progress)
            self.of_stage[stage] = max(self.of_stage.get(stage, 0), total)


def tree_memory(process: int) -> tuple[int, int]:
    """PSS of a process and all its descendants, and the part of it that belongs to no file, in bytes."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(name)] = int(fields[1])

    total = private = 0
    for number in parents:
        ancestor = number
        while ancestor not in (process, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor != process:
            continue
        try:
            lines = Path("/proc", str(number), "smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total += sizes["Pss"]
        private += sizes["Pss_Anon"]
    return total, private


def latest(progress: Path) -> str:
    """The stage that was the last to note anything."""
    try:
        with os.scandir(progress) as entries:
            return max(((entry.stat().st_mtime, entry.name) for entry in entries), default=(0.0, "start"))[1]
    except OSError:
        return "start or end"
