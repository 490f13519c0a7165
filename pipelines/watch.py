"""Watching worker processes: a dead one ends the run, and what went wrong becomes one line."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading

from curation.base.errors import CocuError
from curation.base.scratch import discard_scratch
from curation.base.terminal import FAILED, INTERRUPTED, RESUMABLE, is_interrupted, print_error
from curation.run.progress import read_progress
from curation.run.run import Run
from curation.run.stages import plan

GRACE = 3  # seconds
JAVA = re.compile(r"\b(?:java|org|scala)\.[\w.$]+(?:Exception|Error)\b")
KINDS = "|".join(["CocuError", "InputError", "OutputError", "UnknownKey"])  # of errors that a stage raises


class WorkerWatch:
    """Ends the run when a worker process dies: Beam itself may wait for its answer for ever.

    Beam's threads that mind the workers raise when a process ends. While the pipeline runs, that ends the other workers,
    by taking away the file ``alive`` that they look for, and then this process. With ``only_log`` the engine minds its
    workers by itself: one that ends is its affair, and may be no failure. With ``is_here`` an interruption ends the run in
    the same way: Beam would let workers finish what they are at, which may take an hour.
    """

    def __init__(self, run: Run, folder: str, only_log: bool = False, is_here: bool = False) -> None:
        self._run, self.folder, self._only_log, self._is_here = run, folder, only_log, is_here
        self.log, self.alive = os.path.join(folder, "workers.log"), os.path.join(folder, "alive")
        self._over = threading.Event()

    def __enter__(self) -> WorkerWatch:
        """Watch from now on."""
        for path in (self.log, self.alive):
            open(path, "w").close()
        threading.excepthook = self._on_exception
        if self._is_here:
            threading.Thread(target=self._end_if_interrupted, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        """The pipeline has ended: what dies now is no concern, and nobody hears of it."""
        self._over.set()

    def _on_exception(self, hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread else ""
        if name.startswith("run_worker"):
            # Between two stages Flink ends its workers and starts others, threads of this process with LOOPBACK.
            if not self._only_log and not self._over.wait(GRACE):  # the pipeline may be about to say why by itself
                self._end()
        elif not name.startswith(("beam_control_read", "read_grpc_client_inputs")):
            threading.__excepthook__(hook)

    def _end_if_interrupted(self) -> None:
        while not self._over.wait(0.1):
            if is_interrupted():
                self._end()
                return

    def _end(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.alive)
        if self._over.wait(GRACE):  # without workers Beam may come to an end of its own
            return
        if is_interrupted():  # the workers have ended, and Beam is slow to end itself
            discard_scratch()
            print(RESUMABLE, file=sys.stderr, flush=True)
            os._exit(INTERRUPTED)
        message = one_line_of(RuntimeError("a worker died"), self._run, self.log)
        discard_scratch()
        print_error(message)
        sys.stderr.flush()
        os._exit(FAILED)


def one_line_of(error: Exception, run: Run, log: str) -> str:
    """The message of the CocuError that a worker raised, dug out of Beam's report of it; or what else is known."""
    text = f"CocuError: {error}" if isinstance(error, CocuError) else str(error)
    messages = re.findall(rf"(?:{KINDS}): (.*)", text)
    if messages:
        return re.sub(r" \[while running .*", "", messages[-1].split("\\n")[0]).strip()
    begun = [
        f"{note.part} ({stage.name})"
        for stage in plan(run)
        for note in read_progress(run, stage.name)
        if note.state == "running"
    ]
    if begun:
        last = _last_line(log)
        return f"a worker died at {', '.join(begun)}{last and f' ({last})'}; run the same command again to resume"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and JAVA.search(lines[0]):  # Java's first line is the message, and its stack follows
        return lines[0]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _last_line(path: str) -> str:
    with open(path, errors="replace") as stream:
        lines = [line.strip() for line in stream if line.strip() and "terminate called" not in line]
    return lines[-1] if lines else ""
