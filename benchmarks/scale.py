"""``python benchmarks/scale.py``: time and memory of whole runs of ``python -m pipelines.curate`` against the number of samples.

Synthetic embeddings, as clip-retrieval writes them, become archives by the real command with two worker processes, while
the memory of the whole process tree is watched. Quick: 10 and 100 thousand samples; full: a million too. Sizes that are
not measured now stay in scale.csv from an earlier run, with its date.
"""

from __future__ import annotations

import csv
import datetime
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from results import arguments, conditions, publish, table
from synthetic import DIMENSION, VOCABULARY, write_data_set
from threadpoolctl import threadpool_limits

from curation import clustering, expansion, ranking, storage
from curation.outputs import Outputs, blocks, open_outputs
from curation.stages.archives import BLOCK, first_row, open_curator
from curation.stages.work import csr
from curation.vocabulary import embedding_matrix

TABLE = Path(__file__).with_name("scale.csv")
PLOT = Path(__file__).with_name("scale.png")
QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000)
WORKERS = 2
MEMORY = "4G"  # retrieval.memory
LIMIT = 8.0  # GB, the whole process tree, a million samples
POLL = 0.25  # seconds between two looks at the memory
INDEX_STAGES = ("train index", "fill index", "index", "tune index")


# --- the memory of a process tree -----------------------------------------------------------------------------------------


class MemoryWatch:
    """The largest memory of a process and its children while the block lasts, and the stage in which each was largest.

    PSS, the sum over processes of private pages and of their share of common ones, mapped files included (/proc, Linux).
    """

    def __init__(self, process: int, progress: Path) -> None:
        self.peak = self.private = 0  # bytes
        self.of_stage: dict[str, int] = {}
        self._process, self._progress, self._over = process, progress, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        """Start to watch."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            held, private = tree_memory(self._process)
            self.peak, self.private = max(self.peak, held), max(self.private, private)
            stage = latest(self._progress)
            self.of_stage[stage] = max(self.of_stage.get(stage, 0), held)


def tree_memory(process: int) -> tuple[int, int]:
    """PSS of a process and all its descendants, and the part of it that belongs to no file, in bytes."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(name)] = int(fields[1])
    total = private = 0
    for name in parents:
        ancestor = name
        while ancestor not in (process, 0):
            ancestor = parents.get(ancestor, 0)
        if ancestor != process:
            continue
        try:
            lines = Path("/proc", str(name), "smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, private = total + sizes["Pss"], private + sizes["Pss_Anon"]
    return total, private


def latest(progress: Path) -> str:
    """The stage that was the last to note anything."""
    try:
        with os.scandir(progress) as found:
            return max(((entry.stat().st_mtime, entry.name) for entry in found), default=(0.0, "start"))[1]
    except OSError:
        return "start or end"


# --- one size -------------------------------------------------------------------------------------------------------------


def measure(rows: int, folder: Path, options: list[str]) -> dict[str, object]:
    """Curate ``rows`` synthetic samples in ``folder``: one line of scale.csv."""
    data, out = write_data_set(folder, rows), folder / "out"
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(out)]
    command += ["--workers", str(WORKERS), "--retrieval.memory", MEMORY, *options]
    before, began = children_seconds(), time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with MemoryWatch(running.pid, out / ".progress") as watch:
        output = running.communicate()[0]
    seconds = time.monotonic() - began
    if running.returncode:
        raise SystemExit(output)
    print(output, flush=True)
    outputs = open_outputs(str(out))
    notes, spent = storage.read_json(outputs.index_json), storage.read_json(outputs.manifest)["seconds"]
    search, scoring, clusters = of_an_archive(outputs)
    at = max(watch.of_stage, key=watch.of_stage.get)
    return {
        "rows": rows,
        "date": datetime.date.today().isoformat(),
        "index": notes["index"]["parameters"]["factory"],
        "search": notes["tune index"]["search"] or "",
        "recall": notes["tune index"]["recall"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(children_seconds() - before, 1),
        "peak_gb": round(watch.peak / 1e9, 2),
        "private_gb": round(watch.private / 1e9, 2),
        "peak_at": at,
        "search_us": round(1e6 * search, 1),
        "scoring_us": round(1e6 * scoring, 1),
        "clusters_us": round(1e6 * clusters, 1),
        **{f"{stage} s": round(spent.get(stage, 0.0), 2) for stage in ("embed", "visualness", "concepts")},
        **{f"{stage} s": round(spent.get(stage, 0.0), 2) for stage in (*INDEX_STAGES, "mentions", "archive")},
    }


def children_seconds() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_an_archive(outputs: Outputs) -> tuple[float, float, float]:
    """Seconds an archive for search, scoring and clusters, in one thread, over a block of the last shard."""
    curator, shard = open_curator(outputs), outputs.shards[-1]
    block = next(blocks(outputs.of_shard("embeddings", shard), ["concepts", "embedding"], BLOCK))
    images, row, texts = embedding_matrix(block["embedding"]), first_row(outputs, shard), curator.vocabulary.embeddings
    anchors, best = np.arange(row, row + len(block)), np.full(3, np.inf)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        for _ in range(2):
            marks = [time.perf_counter()]
            neighbours, _ = curator.neighbours(images, anchors)
            marks.append(time.perf_counter())
            expanded = expansion.expand_retrieved(neighbours, anchors, curator.mentions)
            scores = ranking.rank(expanded, ranking.anchor_similarities(images, texts, expanded))
            ranked = expanded.concepts[ranking.descending(expanded, scores.score)]
            marks.append(time.perf_counter())
            clustering.cluster_archives(expanded.offsets, ranked, texts)
            marks.append(time.perf_counter())
            best = np.minimum(best, np.diff(marks))
    csr(block["concepts"])
    return tuple(best / len(block))


# --- all sizes ------------------------------------------------------------------------------------------------------------


def merged(found: list[dict[str, object]]) -> list[dict[str, str]]:
    """The lines of scale.csv with those of ``found`` in place of older ones of the same size; writes the file."""
    old = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    lines = {int(line["rows"]): line for line in old} | {
        line["rows"]: {key: str(value) for key, value in line.items()} for line in found
    }
    ordered = [lines[rows] for rows in sorted(lines)]
    with TABLE.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(found[0]), lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(ordered)
    return ordered


if __name__ == "__main__" and len(sys.argv) > 2:
    import json

    rows = int(sys.argv[1])
    folder = Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    line = measure(rows, folder, sys.argv[3:])
    print(json.dumps(line, indent=1))
    merged([line])
