"""Logs of a run, TensorBoard and CSV, for which a full disk is no reason to end it."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image

from curation.base import files
from curation.base.errors import CocuError, OutputError
from curation.base.terminal import print_error

SIMPLE = (int, float, bool, str)  # types of values that TensorBoard shows as they are
PAUSE = 60.0  # seconds after which TensorBoard's files are tried again


def loggers(output: str, step: int | None = None, wandb: str | None = None) -> list[Any]:
    """TensorBoard and CSV, side by side in ``output/logs/version_N``, and Weights & Biases where a project is named.

    A run that goes on in its folder, at ``step``, goes on in TensorBoard's newest version too, so that it stays one run
    there; what was logged beyond the step is hidden. Raises CocuError where wandb is not installed.
    """
    threading.excepthook = without_board(threading.excepthook)
    version = None if step is None else newest_board(output)
    if version is None:
        board = Board(output, name="logs")
        metrics = Metrics(output, name="logs", version=board.version)
    else:
        board = Board(output, name="logs", version=version, purge_step=step)
        metrics = Metrics(output, name="logs")
    return [board, metrics, *([weights_and_biases(output, wandb, step is not None)] if wandb else [])]


def newest_board(output: str) -> int | None:
    """The number of the newest version with TensorBoard's events; None where there is none."""
    events = Path(output).glob("logs/version_*/events.out.tfevents.*")
    numbers = (path.parent.name.removeprefix("version_") for path in events)
    return max((int(number) for number in numbers if number.isdigit()), default=None)


def weights_and_biases(output: str, project: str, goes_on: bool) -> Any:
    """A logger for wandb.ai, or for its folder alone under WANDB_MODE=offline; one run for an output folder.

    The run's name there is that of the folder; its id is noted in ``logs/wandb.json``, so that a run that goes on goes on
    there too. Raises CocuError where wandb is not installed.
    """
    try:
        importlib.import_module("wandb")
    except ImportError:
        raise CocuError("wandb: the package is not installed; run pip install wandb, or leave --wandb out") from None
    from lightning.pytorch.loggers import WandbLogger

    folder = os.path.join(output, "logs")
    os.makedirs(folder, exist_ok=True)
    note = os.path.join(folder, "wandb.json")
    before = files.read_note(note).get("id") if goes_on else None
    identity = str(before or secrets.token_hex(4))
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # Lightning sets it on the function
        files.write_json(note, {"id": identity}, durable=False)
    return WandbLogger(name=os.path.basename(os.path.abspath(output)), project=project, save_dir=folder, id=identity)


def log_picture(logger: Any, name: str, picture: Image.Image, step: int) -> None:
    """Show a picture in a log that takes pictures."""
    if isinstance(logger, Board):
        logger.log_picture(name, picture, step)
    elif hasattr(logger, "log_image"):  # Weights & Biases, and others of Lightning's
        logger.log_image(name, [picture], step=step)


class LoggedSettings(Callback):
    """Says to the logs with what a run was made, beside the metrics that it came to."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = {key: value if type(value) in SIMPLE else str(value) for key, value in settings.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the settings."""
        score = "val/retrieval_accuracy" if pl_module.benchmark is None else "val/miou"
        for logger in trainer.loggers:
            if isinstance(logger, Board):
                logger.log_settings(self._settings, ["val/score", score, "train/loss"])
            elif not isinstance(logger, Metrics):
                logger.log_hyperparams(self._settings)


def without_board(shown: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], object]:
    """What shows the exceptions of threads, but for those of TensorBoard's writer, which :class:`Board` says in a line."""

    def show(raised: threading.ExceptHookArgs) -> None:
        if type(raised.thread).__module__.partition(".")[0] != "tensorboard" or not isinstance(
            raised.exc_value, OSError
        ):
            shown(raised)

    return show


class Notice:
    """Says once that logs cannot be written, and again after they could be."""

    def __init__(self) -> None:
        self._said = False

    @contextlib.contextmanager
    def block(self, path: str) -> Iterator[None]:
        """Say what goes wrong in the block in place of raising it."""
        try:
            yield
            self._said = False
        except (OSError, OutputError, ValueError) as error:
            cause = error.__cause__ if isinstance(error, ValueError) else error  # TensorBoardLogger wraps in ValueError
            if not isinstance(cause, (OSError, OutputError)):
                raise
            if not self._said:
                with contextlib.suppress(OSError):  # standard error may be a file on the same disk
                    print_error(f"{path}: cannot be written ({cause}); training goes on", "warning", "yellow")
            self._said = True


class Board(TensorBoardLogger):
    """TensorBoard; some time after an error it begins another file of events."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._notice = Notice()
        self._paused_until = 0.0

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Write, or say why not."""
        if time.monotonic() >= self._paused_until:
            with self._reopening():
                super().log_metrics(metrics, step)

    @rank_zero_only
    def log_settings(self, settings: dict[str, Any], metrics: Sequence[str]) -> None:
        """Fill the HPARAMS tab: settings of the run, and the tags whose newest values are its metrics."""
        from torch.utils.tensorboard.summary import hparams

        with self._reopening():
            for summary in hparams(settings, dict.fromkeys(metrics, 0.0)):  # the values are those logged under the tags
                self.experiment._get_file_writer().add_summary(summary)

    @rank_zero_only
    def log_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Show a picture, or say why not."""
        if time.monotonic() >= self._paused_until:
            with self._reopening():
                self.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    @rank_zero_only
    def save(self) -> None:
        """Write, or say why not."""
        if time.monotonic() >= self._paused_until:
            with self._reopening():
                super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write, or say why not."""
        with self._reopening():
            super().finalize(status)

    @contextlib.contextmanager
    def _reopening(self) -> Iterator[None]:
        with self._notice.block(self.log_dir):
            try:
                yield
            except (OSError, ValueError):
                self._experiment = None  # its thread has ended
                self._kwargs.pop("purge_step", None)  # what this run has written since stays
                self._paused_until = time.monotonic() + PAUSE
                raise


class Metrics(CSVLogger):
    """``metrics.csv``; lines that cannot be written wait for the next time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._notice = Notice()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The file, a :class:`MetricsFile`."""
        if self._experiment is None:
            os.makedirs(self.root_dir, exist_ok=True)
            self._experiment = MetricsFile(self.log_dir)
        return self._experiment

    @rank_zero_only
    def save(self) -> None:
        """Write, or say why not."""
        with self._notice.block(self.log_dir):
            super().save()


class MetricsFile(ExperimentWriter):
    """Appends whole lines or nothing, and never has less in the file than before."""

    def save(self) -> None:
        """Write the lines that are waiting. Raises OSError or OutputError, with the file as it was."""
        if not self.metrics:
            return
        columns = self.metrics_keys
        self.metrics_keys = sorted({*columns, *(key for row in self.metrics for key in row)})
        exists = os.path.isfile(self.metrics_file_path)
        try:
            if exists and self.metrics_keys != columns:
                self._rewrite_with_new_header(self.metrics_keys)
        except BaseException:
            self.metrics_keys = columns
            raise

        append_whole(self.metrics_file_path, as_csv(self.metrics, self.metrics_keys, header=not exists))
        self.metrics = []

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as stream:
            rows = list(csv.DictReader(stream))
        with files.atomic_write(self.metrics_file_path) as stream:
            stream.write(as_csv(rows, fieldnames, header=True))


def as_csv(rows: list[dict[str, Any]], columns: list[str], header: bool) -> bytes:
    """Rows as the lines of a CSV file.

    >>> as_csv([{"step": 1}], ["loss", "step"], header=True)
    b'loss,step\\r\\n,1\\r\\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def append_whole(path: str, content: bytes) -> None:
    """Append to a file; when that fails, the file is as long as before. Raises OSError."""
    with open(path, "ab", buffering=0) as stream:
        length = stream.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(content):
                written += stream.write(content[written:])
        except BaseException:
            stream.truncate(length)
            raise
