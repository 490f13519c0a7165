"""Lightning callbacks that end a run at a step, slow it down, or spoil something, for tests."""

from __future__ import annotations

import hashlib
import os
import signal
import time

import torch
from lightning import Callback


class StopAt(Callback):
    """Ends the run after a number of steps as an interruption would: the schedule stays that of the whole run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.should_stop = True
            trainer.fit_loop.epoch_loop.max_steps = self.step


class Slow(Callback):
    """Waits a little after every step."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        time.sleep(0.3)


class Signal(Callback):
    """Sends this process a signal amid a step, or amid the validation that follows it."""

    def __init__(self, step: int, name: str = "SIGINT", validation: bool = False, times: int = 1) -> None:
        self.step = step
        self.name = name
        self.validation = validation
        self.times = times
        self.sent = False

    def _send(self, here: bool) -> None:
        if here and not self.sent:
            self.sent = True
            for _ in range(self.times):
                os.kill(os.getpid(), getattr(signal, self.name))

    def on_before_backward(self, trainer, module, loss):
        self._send(trainer.global_step + 1 == self.step and not self.validation)

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        self._send(trainer.global_step == self.step and self.validation)


class Spoil(Callback):
    """Makes the gradients of some steps, or the weights before one, not a number."""

    def __init__(self, steps: list[int] | None = None, weights: int = -1) -> None:
        self.steps = steps or []
        self.weights = weights

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step in self.steps:
            batch.pixels.fill_(float("nan"))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.weights:
            with torch.no_grad():
                module.model.logit_scale.fill_(float("nan"))


class FullDisk(Callback):
    """From one step on, to another, no file of this process can grow: what a full disk does to writers."""

    def __init__(self, first: int, last: int, size: int = 0) -> None:
        self.first = first
        self.last = last
        self.size = size

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        if trainer.global_step == self.first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))
        if trainer.global_step == self.last:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


class Ranks(Callback):
    """Writes a line for every sample that a rank trains on, and at the end one that tells its weights."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def _write(self, trainer, lines):
        with open(os.path.join(self.folder, f"{trainer.global_rank}.txt"), "a") as stream:
            print(*lines, sep="\n", file=stream)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._write(trainer, (float(pixels.double().sum()) for pixels in batch.pixels))

    def on_train_end(self, trainer, module):
        contents = (value.detach().numpy().tobytes() for value in module.parameters())
        self._write(trainer, [hashlib.sha256(b"".join(contents)).hexdigest()])


class Batches(Callback):
    """Writes the first pixels of every batch that is trained on: which batch it was."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with open(self.path, "a") as stream:
            print(trainer.current_epoch, float(batch.pixels.double().sum()), file=stream)
