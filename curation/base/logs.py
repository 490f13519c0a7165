"""What a command says: on the terminal as loudly as it was asked to, and line by line in a log file.

It passes through two loggers of the standard library, which nobody hears until :func:`log_to` and :func:`speak` listen:
SAID, what the terminal shows as well, and DETAIL below it, what it shows with ``-v`` only.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.control import Control

from curation.base.errors import CocuError, OutputError
from curation.base.terminal import SAID, printable

DETAIL = SAID.getChild("detail")
SECRET = re.compile(r"(?i)(secret|token|passw|credential|connection_string|access_key|api_?key)")  # names of options
WIDTH = 160  # columns of tables in a log file


def add_loudness(parser: ArgumentParser) -> None:
    """The options -q and -v."""
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument("-q", "--quiet", action="store_true", help="print nothing but warnings and errors")
    loudness.add_argument("-v", "--verbose", action="store_true", help="print what goes into the log file, too")


class SpokenConsole(Console):
    """A console whose lines are also written into the log file; those of progress bars are not."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        super().print(*objects, **options)
        if SAID.isEnabledFor(logging.INFO) and not all(isinstance(item, Control) for item in objects):
            # In a notebook, a console shows what it is given, whatever its file.
            plain = Console(file=io.StringIO(), width=WIDTH, color_system=None, emoji=False, force_jupyter=False)
            plain.print(*objects, **options)
            for line in plain.file.getvalue().splitlines():  # type: ignore[attr-defined]
                SAID.info(line.rstrip())


@contextlib.contextmanager
def speak(verbose: bool) -> Iterator[None]:
    """Show what DETAIL says on standard error while the block lasts, if ``verbose``."""
    if not verbose:
        yield
        return
    handler = _StandardError()
    handler.setFormatter(_Lines("%(asctime)s %(message)s", "%H:%M:%S"))
    with _attached(handler, DETAIL):
        yield


@contextlib.contextmanager
def log_to(path: str, words: Sequence[str]) -> Iterator[None]:
    """Append what is said while the block lasts to a log file, and how the block ended, under the command ``words``.

    Raises OutputError where it cannot be written.
    """
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); make room there, or name another output"
        ) from None
    handler.setFormatter(_Lines("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk: the run itself will say so
    with _attached(handler, SAID):  # and DETAIL, its child
        DETAIL.info(f"--- {command_line(words)}")
        try:
            yield
        except CocuError as error:
            SAID.error(str(error))
            raise
        except KeyboardInterrupt:
            SAID.error("interrupted")
            raise
        except Exception:
            DETAIL.exception("unexpected")
            raise
        DETAIL.info("--- ended")


def command_line(words: Sequence[str]) -> str:
    """A command for a log file, without the values of options that are secrets by their names.

    >>> command_line(["cocu", "curate", "my data.yaml", "--s3_secret_access_key=abc", "--azure_connection_string", "x"])
    "cocu curate 'my data.yaml' --s3_secret_access_key=*** --azure_connection_string '***'"
    """
    shown: list[str] = []
    hide_next = False
    for word in words:
        name, equals, _ = word.partition("=")
        is_secret = name.startswith("-") and SECRET.search(name) is not None
        shown.append("***" if hide_next else f"{name}=***" if is_secret and equals else word)
        hide_next = is_secret and not equals
    return " ".join(word if word.endswith("=***") else shlex.quote(word) for word in shown)


@contextlib.contextmanager
def _attached(handler: logging.Handler, logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk, on which its last lines are still to be written
            handler.close()


class _StandardError(logging.Handler):
    """Standard error as it is when something is said: a progress bar replaces it while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Lines(logging.Formatter):
    """Every line with its time; without control characters and secrets, whatever wrote them."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "\n".join(printable(line) for line in text.splitlines())
