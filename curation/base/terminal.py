"""What people see in a terminal: one-line errors and plain tables."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import signal
import sys
import threading
import unicodedata
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.base.addresses import redacted
from curation.base.errors import CocuError
from curation.base.extras import remedy

FAILED, INTERRUPTED = 1, 130  # exit codes
REMEDIES = {  # of what the operating system refuses
    errno.ENOSPC: "make room there, or choose another folder",
    errno.EDQUOT: "make room there, or choose another folder",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that can be written to, or change its rights",
    errno.EPERM: "choose a folder that can be written to, or change its rights",
    errno.EEXIST: "choose another path: a file is there, not a folder",
    errno.ENOENT: "correct the path",
    errno.ENOTDIR: "correct the path: a part of it is a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
}
RESUMABLE = "interrupted; run the same command again to resume"
SAID = logging.getLogger(
    "cocu.said"
)  # what commands print, for the log file (curation.base.logs); without one, nobody hears
SAID.propagate = False
SAID.addHandler(logging.NullHandler())
TURNING = {
    *map(chr, range(0x202A, 0x202F)),
    *map(chr, range(0x2066, 0x206A)),
}  # the writing direction of all that follows


def printable(value: object) -> str:
    r"""Text from data, safe to print: one line, without control characters and without secrets of addresses.

    Escape sequences could move the cursor, change the title of the window, or hide what was printed before.

    >>> printable("a dog\x1b[2J\non grass")
    'a dog�[2J on grass'
    """
    text = "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs", "Co") or c in TURNING else c
        for c in re.sub(r"[\t\r\n\v\f\x85\u2028\u2029]+", " ", str(value))
    )
    return redacted(text)


def print_error(message: str, label: str = "error", style: str = "bold red") -> None:
    """Print one line on standard error, such as ``error: world.yaml: unknown key shard``."""
    SAID.warning(f"{label}: {message}")
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"[{style}]{escape(printable(label))}:[/] {escape(printable(message))}", highlight=False)


def run_command(work: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run the work of a command and return its exit code, 0 unless ``work`` returns another.

    An error that the user can fix, an error of the operating system, and a package of an extra that is not installed are
    printed as one line and give 1; Ctrl-C and SIGTERM print ``interrupted`` and give 130.
    """
    try:
        with terminable():
            return work() or 0
    except KeyboardInterrupt:
        pass
    except Exception as error:
        if not is_interrupted():  # else it only follows from that
            print_error(_line_of(error))
            return FAILED
    Console(stderr=True, soft_wrap=True).print(interrupted, highlight=False, markup=False)
    return INTERRUPTED


def _line_of(error: Exception) -> str:
    """The line for an error that the user can fix; raises any other one."""
    match error:
        case CocuError():  # one from a worker process of torch's comes behind that process's stack
            return re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1])
        case OSError():
            path = f"{error.filename}: " if error.filename else ""
            cure = REMEDIES.get(error.errno or 0)
            return f"{path}{error.strerror or error}{f'; {cure}' if cure else ''}"
        case ModuleNotFoundError() if line := remedy(error.name or ""):
            return line
    raise error  # a mistake of ours


_interruption = threading.Event()


def is_interrupted() -> bool:
    """Whether Ctrl-C or SIGTERM is ending the command: what dies from now on is no failure."""
    return _interruption.is_set()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that what it has to clear away is cleared away."""
    handlers: dict[int, Any] = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = [number for number, handler in handlers.items() if signal.getsignal(number) == handler]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # somebody else minds them

    def interrupt(number: int, frame: object) -> None:
        _interruption.set()
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt

    _interruption.clear()
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, handlers[number])


def add_remote_option(parser: ArgumentParser) -> None:
    """The option of every command that reads a finished run: whether to follow the addresses that the run names."""
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="read tars at the addresses that the folder names, wherever they are",
    )


def plain_table(columns: Iterable[str], left: Iterable[str] = (), title: str | None = None, gap: int = 1) -> Table:
    """A table without lines whose columns are numbers, but for those named in ``left``; add rows to it and print it.

    ``gap``: spaces between columns.
    """
    table = Table(title=title, title_justify="left", box=None, padding=(0, gap, 0, 0), header_style="bold")
    aligned_left = set(left)
    for column in columns:
        table.add_column(column, justify="left" if column in aligned_left else "right", no_wrap=True)
    return table


def is_interactive() -> bool:
    """Whether somebody may be looking: progress bars are for terminals, lines for logs."""
    return sys.stderr.isatty()
