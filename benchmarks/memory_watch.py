"""How much memory a process and all its children take while they run, and in which stage of curation it is most."""

from __future__ import annotations

import os
import threading
from pathlib import Path

POLL = 0.5  # seconds between two looks


class MemoryWatch:
    """The largest memory of a process and its children while the block lasts, and the stage in which each was largest.

    PSS, the sum over processes of private pages and of their share of common ones, mapped files included (/proc, Linux).
    """

    def __init__(self, process: int, progress: Path) -> None:
        self.peak = self.private = 0  # bytes
        self.of_stage: dict[str, int] = {}
        self._process, self._progress, self._over = process, progress, threading.Event()
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
            held, private = tree_memory(self._process)
            self.peak, self.private = max(self.peak, held), max(self.private, private)
            stage = latest(self._progress)
            self.of_stage[stage] = max(self.of_stage.get(stage, 0), held)


def tree_memory(process: int) -> tuple[int, int]:
    """PSS of a process and all its descendants, and the part of it that belongs to no file, in bytes."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(name)] = int(fields[1])
    total = private = 0
    for name in parents:
        ancestor = name
        while ancestor not in (process, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor != process:
            continue
        try:
            lines = Path("/proc", str(name), "smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, private = total + sizes["Pss"], private + sizes["Pss_Anon"]
    return total, private


def latest(progress: Path) -> str:
    """The stage that was the last to note anything."""
    try:
        with os.scandir(progress) as found:
            return max(((entry.stat().st_mtime, entry.name) for entry in found), default=(0.0, "start"))[1]
    except OSError:
        return "start or end"
