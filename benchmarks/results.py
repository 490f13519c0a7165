"""What the benchmarks share: options, timing in turns, and the page RESULTS.md, one section a script."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "RESULTS.md"


def arguments(script: str, text: str) -> argparse.ArgumentParser:
    """A parser with the two sizes that every benchmark has: ``--quick`` (the default, minutes) and ``--full``."""
    parser = argparse.ArgumentParser(prog=f"python benchmarks/{Path(script).name}", description=text)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="small enough for minutes (the default)")
    size.add_argument("--full", action="store_true", help="the sizes of the paper's data, however long it takes")
    return parser


def in_turns(works: Sequence[Callable[[], object]], rounds: int = 3) -> list[float]:
    """The best seconds of each work over ``rounds`` in which all take turns, so that other load on the machine hits all."""
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            began = time.perf_counter()
            work()
            best[number] = min(best[number], time.perf_counter() - began)
    return best


# --- the page -------------------------------------------------------------------------------------------------------------


def conditions(*packages: str) -> str:
    """One line: processor, threads, memory, Python and the versions of ``packages``."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"Machine: {_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, {card}. "
        f"Python {platform.python_version()}, {versions}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    fields = dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)
    flags = fields.get("flags", "").split()
    extensions = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return f"{fields.get('model name', platform.machine()).strip()} ({', '.join(extensions)})"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table.

    >>> print(table(["search", "us"], [["exact", 3]]))
    | search | us |
    | --- | --- |
    | exact | 3 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def write_section(path: Path, title: str, text: str) -> None:
    """Put ``text``, which begins with the line ``title``, in place of the section of that title, or at the end."""
    old = path.read_text(encoding="utf-8") if path.exists() else "# Measurements\n"
    start = old.find(title + "\n")
    if start < 0:
        path.write_text(old.rstrip("\n") + "\n\n" + text, encoding="utf-8")
        return

    end = old.find("\n## ", start + len(title))
    rest = "" if end < 0 else old[end:]
    path.write_text(old[:start] + text + rest, encoding="utf-8")


def publish(title: str, parts: Sequence[str], marks: dict[str, bool]) -> int:
    """Write the section ``## title`` of paragraphs and tables, print it, and return the exit code of the script.

    ``marks`` tells whether each mark was met; the section ends with them, and the exit code is 1 when one was missed.
    """
    lines = [f"- {'met' if met else '**missed**'}: {mark}" for mark, met in marks.items()]
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    text = "\n\n".join([f"## {title}", f"`{command}`", *parts, "\n".join(lines)]) + "\n"
    write_section(RESULTS, f"## {title}", text)
    print(text)

    missed = [mark for mark, met in marks.items() if not met]
    for mark in missed:
        print(f"missed: {mark}", file=sys.stderr)
    return 1 if missed else 0
