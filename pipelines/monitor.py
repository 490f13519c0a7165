"""Progress on the terminal: one line for each stage, with rate and time left, read from what the workers note."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from curation.base import files
from curation.base.logs import DETAIL
from curation.base.terminal import printable
from curation.run.progress import Note, read_progress
from curation.run.run import Run
from curation.run.stages import Stage, plan
from curation.samples import Shard

POLL = 0.5  # seconds
REMOTE_POLL = 5.0  # the same, where each look is a request
LOG_EVERY = 30  # seconds between two lines where there is no terminal


class Monitor(AbstractContextManager["Monitor"]):
    """Shows the progress of a run while its block lasts.

    ``own``: the shards of this process, where other processes have the rest: it may have to wait for them.
    """

    def __init__(self, run: Run, console: Console, own: Iterable[Shard] = ()) -> None:
        self._run, self._console = run, console
        self._own = {shard.name for shard in own}
        self._stop = threading.Event()
        self._stages = plan(run)
        self._poll = REMOTE_POLL if files.is_remote(run.folder) else POLL
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
        self._tasks: dict[str, TaskID] = {}
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
        while not self._stop.wait(self._poll):
            self._update()

    def _update(self) -> None:
        for stage in self._stages:
            notes = read_progress(self._run, stage.name)
            if notes:
                state = summarise(stage, notes, len(self._run.shards), self._own)
                if self._console.is_terminal:
                    self._show(stage.name, state)
                self._log(stage.name, state)

    def _show(self, name: str, state: StageProgress) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=state.parts, parts="", rate="", note="")
        self._bars.update(
            self._tasks[name],
            completed=state.progress,
            parts=f"{state.done}/{state.parts}",
            rate=f"{state.rate:,.0f} samples/s" if state.rate else "",
            note=describe(state),
        )
        self._bars.refresh()

    def _log(self, name: str, state: StageProgress) -> None:
        last, was_complete = self._logged.get(name, (time.monotonic(), False))
        self._logged.setdefault(name, (last, False))
        if was_complete or not (state.is_complete or time.monotonic() - last >= LOG_EVERY):
            return
        self._logged[name] = (time.monotonic(), state.is_complete)
        rate = f", {state.rate:,.0f} samples/s" if state.rate else ""
        left = "" if state.is_complete or not state.left else f", {state.left:,.0f} s left"
        line = f"{name:<11} {state.done}/{state.parts}{rate}{left}  {describe(state)}"
        if self._console.is_terminal:  # where a bar says so
            DETAIL.info(line)
        else:
            self._console.print(line, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class StageProgress:
    """What the notes of one stage say together."""

    parts: int  # in all
    done: int
    progress: float  # parts that are done, with shares of those that are running
    computed: int
    kept: int
    reasons: list[str]  # why parts were computed again
    samples: int
    seconds: float
    rate: float  # samples per second; 0 where nothing is known
    left: float  # seconds; 0 where nothing is known
    workers: str  # how many computed, and how many parts each: "2 × 4", or "4 × 1-3" where they differ
    waits: bool  # whether this process has done its shards, and others have not

    @property
    def is_complete(self) -> bool:
        """Whether every part is done."""
        return self.done == self.parts


def summarise(stage: Stage, notes: list[Note], shards: int, own: set[str] | None = None) -> StageProgress:
    """Parts done, samples per second and seconds left of one stage, by its notes.

    ``own``: names of the shards of this process, where others have the rest.
    """
    parts = shards if stage.per_shard else 1
    ended = [note for note in notes if note.state != "running"]
    computed = [note for note in notes if note.state != "kept"]
    samples = sum(note.samples for note in computed)
    begun = min((note.at - note.seconds for note in computed), default=0.0)
    seconds = max((note.at for note in computed), default=0.0) - begun

    # Running shards count by their samples against the mean of those that ended.
    sizes = [note.samples for note in computed if note.state == "computed" and note.samples]
    size = sum(sizes) / len(sizes) if sizes else 0
    running = sum(min(note.samples / size, 0.99) for note in notes if note.state == "running") if size else 0
    progress = len(ended) + running
    done_now = progress - (len(notes) - len(computed))
    return StageProgress(
        parts=parts,
        done=len(ended),
        progress=progress,
        computed=sum(note.state == "computed" for note in notes),
        kept=sum(note.state == "kept" for note in notes),
        reasons=sorted({note.reason for note in notes if note.reason}),
        samples=samples,
        seconds=seconds,
        rate=samples / seconds if samples and seconds > 0 else 0.0,
        left=seconds / done_now * (parts - progress) if done_now > 0 else 0.0,
        workers=_workers(computed),
        waits=bool(own)
        and stage.per_shard
        and len(ended) < parts
        and not (own or set()) - {note.part for note in ended},
    )


def _workers(computed: list[Note]) -> str:
    counts = Counter(note.worker for note in computed).values()
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    return f"{len(counts)} × {least}" + (f"-{most}" if most > least else "")


def describe(state: StageProgress) -> str:
    """What was kept, what is waited for, and why the rest was computed again."""
    kept = f"{state.kept} kept" if state.kept else ""
    waits = f"waiting for {state.parts - state.done} of other processes" if state.waits else ""
    return "; ".join(
        item for item in (kept, waits, *(f"again: {printable(reason)}" for reason in state.reasons)) if item
    )
