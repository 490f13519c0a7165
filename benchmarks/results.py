"""What the benchmarks share: options, timing in turns, and the page RESULTS.md, one section a script."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

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
