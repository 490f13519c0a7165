"""What a person sees while a model trains: what it is made of, how fast it goes, how long it still takes, and a summary."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from curation.base.logs import DETAIL
from training.batches import COUNTED, Batch
from training.checkpoints import LastCheckpoint
from training.datamodule import ArchiveDataModule
from training.finite import FiniteSteps

LOG_EVERY = 30  # seconds between two lines where there is no terminal
SMOOTHING = 0.98  # weight of the past in the mean time of a step


class TrainingProgress(Callback):
    """Shows steps, samples per second, time left and the share of time that was spent waiting for data."""

    def __init__(self, data: ArchiveDataModule, console: Console | None = None) -> None:
        self._data = data
        self._console = console or Console()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            auto_refresh=False,
        )
        self._task = TaskID(0)
        self._counts: Counter[str] = Counter()  # of samples, by what happened to them
        self._seen = 0  # samples
        self._first = 0  # step with which the run began or was resumed
        self._waited = 0.0  # seconds, for data
        self._worked = 0.0  # seconds
        self._step = 0.0  # mean seconds of a step
        self._began = 0.0  # when the step began,
        self._last = 0.0  # when the one before ended,
        self._logged = 0.0  # and when the last line was shown

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Say what is about to be trained."""
        data = self._data
        size = sum(value.numel() for value in module.parameters()) / 1e6
        samples = sum(data.plan.rows)
        accumulated = trainer.accumulate_grad_batches
        batch = f"{data.batch_size} x {trainer.world_size} devices" + (f" x {accumulated}" if accumulated > 1 else "")
        name = type(module.model).__name__
        sampler = data.sampler.kind
        if data.sampler_epochs is not None and not data.sampler.method.of_caption:
            epochs = "epoch" if data.sampler_epochs == 1 else f"{data.sampler_epochs} epochs"
            sampler += f" in the first {epochs}, then caption"
        self._print(
            trainer,
            f"Training {name} ({size:.1f} M parameters) on {module.device.type}, {trainer.precision}, sampler "
            f"{sampler}\n{samples:,} samples in {len(data.shards):,} shards; batch {batch}; "
            f"{data.steps:,} steps an epoch; {data.workers} workers a device -> {trainer.default_root_dir}",
        )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Start the clock."""
        if trainer.is_global_zero and self._console.is_terminal:
            self._bar.start()
        self._first = trainer.global_step
        self._task = self._bar.add_task("", total=self._total(trainer), epoch="", note="")
        self._last = time.monotonic()
        self._logged = self._last

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """The batch is there."""
        self._began = time.monotonic()
        self._waited += self._began - self._last

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count and show."""
        now = time.monotonic()
        step = now - self._last
        self._step = SMOOTHING * self._step + (1 - SMOOTHING) * step if self._step else step
        self._worked += now - self._began
        self._last = now
        self._seen += len(batch.pixels) * trainer.world_size
        self._counts.update(batch.counts)

        is_due = now - self._logged >= LOG_EVERY
        if trainer.is_global_zero and (self._console.is_terminal or is_due):
            self._show(trainer, float(outputs["loss"]), is_due)
            self._logged = now if is_due else self._logged

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Show the scores; the time was not spent on data."""
        self._last = time.monotonic()
        if not trainer.sanity_checking:
            scores = {
                name.removeprefix("val/"): float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/") and name != "val/score"
            }
            shown = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in scores.items())
            if shown:  # a CLIP's places have no score without a benchmark
                self._print(trainer, f"step {trainer.global_step:,}: {shown}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """The table at the end."""
        self._bar.stop()
        counted = torch.tensor([self._counts[name] for name in COUNTED], device=module.device)
        counts = trainer.strategy.reduce(counted, reduce_op="sum")
        if not trainer.is_global_zero:
            return

        steps = trainer.global_step - self._first
        seconds = max(self._worked + self._waited, 1e-9)
        table = Table(title="Training", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_row("steps", f"{trainer.global_step:,}" + (f" ({steps:,} of them now)" if self._first else ""))
        table.add_row("samples seen", f"{self._seen:,}")
        table.add_row("samples/s", f"{self._seen / seconds:,.1f}")
        table.add_row("waited for data", f"{self._waited / seconds:.1%}")
        for name, count in zip(COUNTED, counts.tolist(), strict=True):
            if count:
                table.add_row(f"samples {name}", f"{count:,}")
        for name, value in trainer.callback_metrics.items():
            if name in ("train/loss", "val/miou", "val/pixel_accuracy", "val/retrieval_accuracy"):
                table.add_row(f"last {name}", f"{float(value):.4f}")
        finite = getattr(module, "finite", None)
        if isinstance(finite, FiniteSteps) and finite.skipped:
            table.add_row("steps skipped, not finite", f"{finite.skipped:,}")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_score is not None:
                table.add_row(f"best {callback.monitor}", f"{float(callback.best_model_score):.2f}")
                table.add_row("best checkpoint", callback.best_model_path)
            elif isinstance(callback, LastCheckpoint) and callback.saved_step:
                table.add_row("last checkpoint", callback.path)
        self._print(trainer, table)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back."""
        self._bar.stop()

    def _show(self, trainer: Trainer, loss: float, is_due: bool) -> None:
        total = self._total(trainer)
        spent = self._worked + self._waited
        left = (total - trainer.global_step) * self._step * trainer.accumulate_grad_batches if total else None
        rate = self._seen / spent
        note = f"loss {loss:.3f}, {rate:,.0f} samples/s, waited for data {self._waited / spent:.0%}"
        note += f", left {clock(left)}" if left is not None else ""

        if self._console.is_terminal:
            self._bar.update(self._task, completed=trainer.global_step, epoch=trainer.current_epoch, note=note)
            self._bar.refresh()
        line = f"epoch {trainer.current_epoch}, step {trainer.global_step:,}/{total or '?'}: {note}"
        if not self._console.is_terminal:
            self._print(trainer, line)
        elif is_due:
            DETAIL.info(line)

    def _total(self, trainer: Trainer) -> int | None:
        steps = trainer.estimated_stepping_batches
        return int(steps) if steps not in (-1, float("inf")) else None

    def _print(self, trainer: Trainer, text: str | Table) -> None:
        with contextlib.suppress(OSError):  # the disk of a log file that is full does not end the run
            if trainer.is_global_zero:
                self._console.print(text, highlight=False, soft_wrap=isinstance(text, str), markup=False)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> clock(3723), clock(123)
    ('1:02:03', '2:03')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
