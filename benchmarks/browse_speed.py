"""``python benchmarks/browse_speed.py``: how long ``cocu browse`` and its catalogue take, and in how much memory.

A synthetic run, 20,000 archives (quick) or a million (full), is browsed by a server of its own, as people start it; every
kind of page is asked for several times over, at other rows, concepts and words each time.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlparse

import numpy as np
from results import arguments, publish
from synthetic import names
from synthetic_run import write_run

from curation.base.versions import conditions

QUICK, FULL = 20_000, 1_000_000
LIMIT = 0.3  # seconds
TIMES = 12  # that each kind of page is asked for


def addresses(rows: int, time_: int) -> dict[str, str]:
    """A page of each kind; the first time, those that have most to look through."""
    random = np.random.default_rng(time_)
    concepts = names(5000)
    concept = concepts[time_ and int(random.integers(200))]
    row = int(random.integers(rows))
    of_concept: dict[str, dict[str, object]] = {
        view: {"name": concept, "view": view} for view in ("surest", "doubtful", "omitted", "named", "clusters")
    }
    said = "a picture of" if not time_ else f"picture {concept}"
    asked: dict[str, tuple[str, dict[str, object]]] = {
        "home": ("", {"draw": time_}),
        "search by looks": ("search", {"q": f"a red {concept}", "by": "words"}),
        "the last page of these": ("search", {"q": concept, "by": "words", "page": 20}),
        "search captions": ("search", {"q": said, "by": "caption"}),
        "search keys": ("search", {"q": f"{row:09d}"[:7], "by": "key"}),
        "search concepts": ("search", {"q": concept[:2], "by": "concept"}),
        "search for no concept": ("search", {"q": f"{concept}xyz", "by": "concept"}),
        **{f"gallery, {view}": ("concept", asked_of) for view, asked_of in of_concept.items()},
        "image": (f"image/{row}", {}),
        "images that look like it": (f"like/{row}", {}),
        "vocabulary": ("vocabulary", {"sort": "visualness", "page": time_ + 1}),
        "vocabulary, filtered": ("vocabulary", {"sort": "noun_share", "show": "left out", "q": "o", "page": time_ + 1}),
        "rejects": ("rejects", {}),
        "rejects of a reason": ("rejects", {"kind": "image is missing", "page": time_ + 1}),
        "duplicates": ("duplicates", {}),
        "thumbnail": (f"picture/{row % 10_000}", {}),
    }
    return {kind: f"{path}?{urlencode(query)}" for kind, (path, query) in asked.items()}


def memory_of(process: int) -> dict[str, float]:
    """GB of a process: its own, and that of files that are mapped, which the system may take back."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 / 1e9 for name in ("RssAnon", "RssFile")}


def processor_seconds(process: int) -> float:
    """Seconds of processor time that a process has had, in hundredths."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Server:
    """``cocu browse`` of a run, in a process of its own."""

    def __init__(self, out: Path, cache: Path) -> None:
        command = [sys.executable, "-m", "cocu", "browse", str(out), "--cache", str(cache)]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = urlparse(self.process.stdout.readline().strip())
        if not self.address.port:
            raise SystemExit("cocu browse did not start")
        self.seconds = time.perf_counter() - began

    @property
    def processor(self) -> float:
        """Seconds of processor time so far."""
        return processor_seconds(self.process.pid)

    def get(self, path: str) -> tuple[float, bytes]:
        """Seconds and content of a page."""
        assert self.address.port
        connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=120)
        began = time.perf_counter()
        connection.request("GET", self.address.path + path)
        response = connection.getresponse()
        content = response.read()
        seconds = time.perf_counter() - began
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {content[:300]!r}")
        return seconds, content

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(300)


def measure(out: Path, cache: Path, rows: int) -> tuple[list[str], dict[str, bool]]:
    """The paragraphs and marks of a run."""
    first = Server(out, cache)  # builds the catalogue
    building = first.seconds, first.processor
    first.stop()
    server = Server(out, cache)
    starting = server.seconds, server.processor
    try:
        began = time.perf_counter()
        while b"The encoder is being loaded" in server.get("")[1]:
            time.sleep(0.2)
        ready = time.perf_counter() - began, server.processor - starting[1]
        seconds: dict[str, list[float]] = {}
        work: dict[str, float] = {}
        for number in range(TIMES):
            for kind, path in addresses(rows, number).items():
                before = server.processor
                seconds.setdefault(kind, []).append(server.get(path)[0])
                work[kind] = work.get(kind, 0) + server.processor - before
        memory = memory_of(server.process.pid)
    finally:
        server.stop()

    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) / 1e9
    lines = [
        f"| {kind} | {1000 * spent[0]:.0f} | {1000 * float(np.median(spent)):.0f} | {1000 * max(spent):.0f} | "
        f"{1000 * work[kind] / len(spent):.0f} |"
        for kind, spent in seconds.items()
    ]
    heads = "| page | first, ms | median, ms | slowest, ms | processor, ms, mean |"
    table = "\n".join([heads, "|---|---|---|---|---|", *lines])
    facts = (
        f"{rows:,} archives. Time, and processor time: the catalogue takes {timed(building)}, once, and {size:.2f} GB; "
        f"started again, the address is there after {timed(starting)}, encoder and index {timed(ready)} later. "
        f"Memory of the server afterwards: {memory['RssAnon']:.2f} GB of its own, and {memory['RssFile']:.2f} GB of mapped "
        f"files. The machine's load was {os.getloadavg()[0]:.1f} at the end: what a page takes of the processor is its own."
    )
    slowest = max(max(spent) for spent in seconds.values())
    typical = max(float(np.median(spent)) for spent in seconds.values())
    busiest = max(work.values()) / TIMES
    marks = {
        f"every kind of page within {LIMIT * 1000:.0f} ms of processor time ({1000 * busiest:.0f} ms)": busiest
        <= LIMIT,
        f"every kind of page within {LIMIT * 1000:.0f} ms, in the median ({1000 * typical:.0f} ms)": typical <= LIMIT,
        f"every page within {LIMIT * 1000:.0f} ms ({1000 * slowest:.0f} ms)": slowest <= LIMIT,
    }
    return [facts, table], marks


def timed(seconds: tuple[float, float]) -> str:
    """Time and processor time."""
    return f"{seconds[0]:.1f} ({seconds[1]:.1f}) s"


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "How long cocu browse takes to answer.")
    parser.add_argument("--rows", type=int, help="archives, in place of those of the size")
    parser.add_argument(
        "--folder", type=Path, help="where the run is kept for the next time (default: a temporary folder)"
    )
    args = parser.parse_args()
    rows = args.rows or (FULL if args.full else QUICK)

    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        out = folder / "out"
        if not os.path.exists(out / "manifest.json"):
            out = write_run(folder, rows)
        parts, marks = measure(out, Path(temporary) / "cache", rows)
    return publish("Browsing", [conditions("starlette", "uvicorn", "pyarrow", "faiss-cpu"), *parts], marks)


if __name__ == "__main__":
    sys.exit(main())
