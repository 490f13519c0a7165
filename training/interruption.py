"""Ending a run between two steps when a person (Ctrl-C) or a scheduler (SIGTERM) asks for it, with last.ckpt written."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType
from lightning_utilities.core.rank_zero import rank_zero_only

from curation.base.terminal import print_error
from training.checkpoints import LastCheckpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The run was asked to end.

    Attributes:
        signal: what asked.
        step: that a checkpoint was written for; None where there is none.
    """

    def __init__(self, number: int, step: int | None = None) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.signal = number
        self.step = step


class Interruption(Callback):
    """Notes the first signal, lets the step end, writes last.ckpt and ends the run; a second signal ends it at once."""

    def __init__(self) -> None:
        self._noted: int | None = None
        self._step = 0  # before the batch
        self._handlers: dict[int, Any] = {}  # that were there before
        self._trainer: Trainer | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, in place of Lightning, which ends in the middle of a step and writes nothing."""
        self._trainer = trainer
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._noted is not None:
            self._restore()
            raise KeyboardInterrupt
        self._noted = number
        os.write(2, b"\nending after this step; once more to end at once\n")  # a signal may come amid another print
        if self._trainer is not None and self._trainer.world_size == 1 and between_steps(self._trainer):
            raise Interrupted(number)  # amid a validation, or waiting for data: both may take long

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the step."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Raises Interrupted after the step, on all ranks after the same one; amid accumulated batches it waits."""
        asked = self._noted is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and trainer.global_step > self._step:
            step = write_last(trainer)
            trainer._logger_connector.update_train_step_metrics()  # which Lightning would do after this hook
            raise Interrupted(self._noted or signal.SIGTERM, step)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write last.ckpt where a signal broke off the wait for data or a validation: no step is half done."""
        self._restore()
        if isinstance(exception, Interrupted) and exception.step is None and between_steps(trainer):
            exception.step = write_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def between_steps(trainer: Trainer) -> bool:
    """Whether every batch that was begun is done with."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    return bool(batches.ready == batches.completed)


def write_last(trainer: Trainer) -> int | None:
    """Have last.ckpt written; returns its step, or None where there is no file of it."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint):
            callback.save(trainer)
            return callback.saved_step if callback.saved_step == trainer.global_step else None
    return None


@rank_zero_only
def say_how_to_go_on(step: int | None, prog: str, arguments: ArgsType) -> None:
    """Print the command that goes on with a run that was ended."""
    state = "ended" if step is None else f"ended, with the state of step {step:,} in last.ckpt"
    if isinstance(arguments, Mapping):  # from Python, which has no command line
        print_error(state, "interrupted", "bold yellow")
        return
    words = list(sys.argv[1:] if arguments is None else arguments)
    last = [] if step is None else ["--ckpt_path", "last"]
    print_error(f"{state}; to go on: {command(prog, words, last)}", "interrupted", "bold yellow")


def command(prog: str, words: list[str], last: list[str]) -> str:
    """The command that goes on: the same, by the Python that runs this, without what says where to begin.

    >>> words = ["fit", "--resume", "no", "--output", "my run"]
    >>> command("python -m training", words, ["--ckpt_path", "last"]).partition(" ")[2]
    "-m training fit --output 'my run' --ckpt_path last"
    """
    kept: list[str] = []
    skip = False
    for word in words:
        option, _, value = word.partition("=")
        if not skip and option not in ("--resume", "--ckpt_path"):
            kept.append(word)
        skip = not skip and option in ("--resume", "--ckpt_path") and not value
    python = os.path.relpath(sys.executable)
    python = sys.executable if python.startswith(os.pardir) else python
    program, _, rest = prog.partition(" ")
    if program == "cocu" and shutil.which("cocu"):
        return f"{prog} {shlex.join([*kept, *last])}"
    rest = f"-m {prog}" if program == "cocu" else rest
    return f"{shlex.quote(python)} {rest} {shlex.join([*kept, *last])}"
