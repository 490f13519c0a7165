"""Packing from its beginning to its end: one at a time in a folder, with progress, and what came of it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from curation.base import files
from curation.base.configuration import parse_bytes, require
from curation.base.errors import CocuError
from curation.run.rejects import is_notable
from curation.tools.pack.shards import NOTE, Packer, Pattern, Tally, identify
from curation.tools.pack.sources import open_source
from curation.tools.pack.tables import DOWNLOAD, Columns

HEAD = b"# Written by cocu pack"
CURES = {  # where the most frequent reason is one of these
    "no caption": "put a .txt beside each, or name a table with --captions",
    "no such image": "name the folder that the file names are relative to with --images",
    "is an address": DOWNLOAD,
}
LOG_EVERY = 30  # seconds between two lines where there is no terminal


def pack(args: argparse.Namespace, console: Console) -> None:
    """Do what the command line says. Raises CocuError."""
    pattern = Pattern.parse(args.output)
    require(args.count > 0, f"--count: {args.count} must be at least 1")
    size = parse_bytes(args.size, "--size")
    named = tuple(dict.fromkeys(args.caption_column))
    columns = Columns(args.image_column, next(iter(named), None), named if len(named) > 1 else ())
    source = open_source(args.source, pattern.folder, args.captions, args.images, columns)

    absent = [folder for folder in (pattern.folder, *pattern.folder.parents) if not folder.exists()]
    try:
        pattern.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CocuError(f"{pattern.folder}: cannot be written ({error.strerror}); give another -o") from None
    lock = FileLock(pattern.folder / ".packing.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CocuError(
            f"{pattern.folder}: another process is packing into it; wait for it, or give another -o"
        ) from None
    try:
        with console.status("Listing images ..."):
            options = [pattern.name, args.count, size, args.name, *columns.captions]
            total, fingerprint = identify(source.entries(), options)
        if not total:
            raise CocuError(f"{args.source}: names no image; give a folder of images, or a table with a row for each")
        configuration = pattern.configuration
        check_ours(configuration)
        if configuration.exists() and files.read_note(str(pattern.folder / NOTE)).get("fingerprint") == fingerprint:
            console.print(f"{pattern.folder}: already packed; nothing to do", highlight=False, soft_wrap=True)
            return

        packer = Packer(pattern, fingerprint, args.count, size)
        files.remove(str(configuration))  # no configuration: not finished
        with _Shown(console, total) as shown:
            tally = packer.pack(source.entries(), shown.advance)
        packer.tables()
        print_tally(tally, pattern, console)
        if not tally.samples:
            (reason, _), *_ = tally.reasons.most_common(1)
            cure = next((cure for words, cure in CURES.items() if reason.startswith(words)), "")
            raise CocuError(
                f"{args.source}: not one of {total:,} images can be packed ({reason}); "
                f"{cure or f'{pattern.folder}/rejects.csv names all'}"
            )
        with files.atomic_write(str(configuration)) as stream:
            name = args.name or data_name(args.source)
            stream.write(configuration_of(name, pattern, tally, columns.captions).encode())
        packer.clean()
        console.print(
            f"Next: cocu curate {shlex.quote(str(configuration))}", highlight=False, soft_wrap=True, markup=False
        )
    finally:
        lock.release()
        if os.path.exists(lock.lock_file):
            os.remove(lock.lock_file)
        with contextlib.suppress(OSError):  # one that is not empty stays
            for folder in absent:
                folder.rmdir()


def check_ours(configuration: Path) -> None:
    """Raises CocuError where a configuration that somebody wrote would be overwritten."""
    if configuration.exists() and HEAD not in configuration.read_bytes()[:1000]:
        raise CocuError(f"{configuration}: is there, but was not written by packing; move it, or give another -o")


class _Shown:
    """Progress: a bar with rate and time left on a terminal, a line now and then in a log."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total, self._done = console, total, 0
        self._start = self._last = time.monotonic()
        self._bar = Progress(
            TextColumn("packing"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} images/s"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("packing", total=total, rate="")

    def __enter__(self) -> _Shown:
        """Start."""
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Show the last state and stop."""
        self._bar.update(self._task, completed=self._done)
        self._bar.stop()

    def advance(self) -> None:
        """One image more is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._last < (0.2 if self._console.is_terminal else LOG_EVERY):
            return
        self._last = now
        rate = self._done / (now - self._start)
        self._bar.update(self._task, completed=self._done, rate=f"{rate:,.0f}")
        if not self._console.is_terminal:
            left = (self._total - self._done) / rate
            line = f"packing {self._done:,} of {self._total:,}, {rate:,.0f} images/s, {left:,.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)


def print_tally(tally: Tally, pattern: Pattern, console: Console) -> None:
    """What was packed, and what was not, by reason."""
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in tally.kinds.most_common())
    tars = "1 tar" if tally.shards == 1 else f"{tally.shards:,} tars"
    line = f"{tally.samples:,} samples in {tars}" + (f" ({kinds})" if kinds else "")
    console.print(f"{line}: {pattern.folder}", highlight=False, soft_wrap=True, markup=False)
    rejects = tally.reasons.total()
    if not rejects:
        return
    counts = {"rejects": rejects, "samples": rejects + tally.samples}
    colour = "red" if is_notable(counts) else "yellow"
    console.print(f"[{colour}]{rejects:,} could not be packed:[/]", highlight=False)
    for reason, count in tally.reasons.most_common():
        names = ", ".join(name if name.isprintable() else repr(name) for name in tally.examples[reason])
        console.print(
            f"  [{colour}]{escape(f'{count:,} x {reason}, such as {names}')}[/]", highlight=False, soft_wrap=True
        )
    console.print(f"  All of them: {pattern.folder}/rejects.csv", highlight=False, soft_wrap=True, markup=False)


def data_name(source: Path) -> str:
    """The name of a data set, after its folder or file.

    >>> data_name(Path("photos/my trip (2)"))
    'my-trip-2'
    """
    resolved = source.resolve()
    name = resolved.name if resolved.is_dir() else resolved.stem
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "packed"


def configuration_of(name: str, pattern: Pattern, tally: Tally, captions: Sequence[str] = ()) -> str:
    """The YAML file for curation; paths in it are relative to it. ``captions``: the several columns that were packed."""
    folder = pattern.folder.name if pattern.configuration.parent != pattern.folder else "."
    shards = [os.path.normpath(os.path.join(folder, name)) for name in pattern.shards(tally.shards)]
    values = {
        "name": name,
        "shards": shards[0] if len(shards) == 1 else shards,
        "image": ";".join(sorted(tally.kinds, key=lambda kind: (-tally.kinds[kind], kind))),
        **({"captions": [f"json:captions.{column}" for column in captions]} if captions else {"caption": "txt"}),
        "encoder": {"model": "ViT-B-16", "pretrained": "openai"},
        "vocabulary": {"source": "build", "min_count": max(3, min(100, tally.samples // 1000))},
    }
    head = f"{HEAD.decode()}; keys.csv beside the tars leads from keys to file names.\n"
    return head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
