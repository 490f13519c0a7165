"""Progress on the terminal: one line a stage, with rate and time left, read from what the workers note."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from curation.run.progress import read_progress
from curation.run.run import Run
from curation.run.stages import Stage, plan

POLL = 0.5  # seconds
LOG_EVERY = 30  # seconds between two lines where there is no terminal


class Monitor(AbstractContextManager):
    """Shows the progress of a run while its block lasts."""

    def __init__(self, run: Run, console: Console) -> None:
        self._outputs, self._console = run, console
        self._stop = threading.Event()
        self._stages = plan(run)
        self._bars = Progress(
            TextColumn("{task.description:<11}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[parts]:>9}"),
            TextColumn("{task.fields[rate]:>16}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[note]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, int] = {}
        self._logged: dict[str, tuple[float, bool]] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Monitor:
        """Start to watch."""
        self._bars.start()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Show the last state and stop."""
        self._stop.set()
        self._thread.join()
        self._update()
        self._bars.stop()

    def _watch(self) -> None:
        while not self._stop.wait(POLL):
            self._update()

    def _update(self) -> None:
        for stage in self._stages:
            notes = read_progress(self._outputs, stage.name)
            if notes:
                state = summarise(stage, notes, len(self._outputs.shards))
                self._show(stage.name, state) if self._console.is_terminal else self._log(stage.name, state)

    def _show(self, name: str, state: dict[str, Any]) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=state["parts"], parts="", rate="", note="")
        self._bars.update(
            self._tasks[name],
            completed=state["progress"],
            parts=f"{state['done']}/{state['parts']}",
            rate=f"{state['rate']:,.0f} samples/s" if state["rate"] else "",
            note=describe(state),
        )
        self._bars.refresh()

    def _log(self, name: str, state: dict[str, Any]) -> None:
        complete = state["done"] == state["parts"]
        last, was_complete = self._logged.get(name, (time.monotonic(), False))
        self._logged.setdefault(name, (last, False))
        if was_complete or not (complete or time.monotonic() - last >= LOG_EVERY):
            return
        self._logged[name] = (time.monotonic(), complete)
        rate = f", {state['rate']:,.0f} samples/s" if state["rate"] else ""
        left = "" if complete or not state["left"] else f", {state['left']:,.0f} s left"
        self._console.print(
            f"{name:<11} {state['done']}/{state['parts']}{rate}{left}  {describe(state)}",
            highlight=False,
            soft_wrap=True,
        )


def summarise(stage: Stage, notes: list[dict[str, Any]], shards: int) -> dict[str, Any]:
    """What the notes of one stage say together: parts done, samples per second, seconds left."""
    parts = shards if stage.per_shard else 1
    ended = [note for note in notes if note["state"] != "running"]
    computed = [note for note in notes if note["state"] != "kept"]
    samples = sum(note["samples"] for note in computed)
    begun = min((note["at"] - note["seconds"] for note in computed), default=0.0)
    seconds = max((note["at"] for note in computed), default=0.0) - begun
    # Running shards count by their samples against the mean of those that ended.
    sizes = [note["samples"] for note in computed if note["state"] == "computed" and note["samples"]]
    size = sum(sizes) / len(sizes) if sizes else 0
    running = sum(min(note["samples"] / size, 0.99) for note in notes if note["state"] == "running") if size else 0
    progress = len(ended) + running
    done_now = progress - (len(notes) - len(computed))
    return {
        "parts": parts,
        "done": len(ended),
        "progress": progress,
        "computed": sum(note["state"] == "computed" for note in notes),
        "kept": sum(note["state"] == "kept" for note in notes),
        "reasons": sorted({note["reason"] for note in notes if note["reason"]}),
        "samples": samples,
        "seconds": seconds,
        "rate": samples / seconds if samples and seconds > 0 else 0.0,
        "left": seconds / done_now * (parts - progress) if done_now > 0 else 0.0,
    }


def describe(state: dict[str, Any]) -> str:
    """What was kept and why the rest was computed again."""
    kept = f"{state['kept']} kept" if state["kept"] else ""
    return "; ".join(item for item in (kept, *(f"again: {reason}" for reason in state["reasons"])) if item)
