"""Lightning callbacks that end a run at a step or slow it down, for tests."""

from __future__ import annotations

import time

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
