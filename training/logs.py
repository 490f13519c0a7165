"""Logs of a run, TensorBoard and CSV, for which a full disk is no reason to end it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning_utilities.core.rank_zero import rank_zero_only

from curation.base import files
from curation.base.errors import OutputError
from curation.base.terminal import print_error

PAUSE = 60.0  # seconds after which TensorBoard's files are tried again


def loggers(output: str) -> list[Any]:
    """TensorBoard and CSV, side by side in ``output/logs/version_N``."""
    threading.excepthook = without_board(threading.excepthook)
    board = Board(output, name="logs")
    return [board, Metrics(output, name="logs", version=board.version)]


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
