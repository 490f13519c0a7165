"""``python benchmarks/scale.py``: time and memory of whole runs against the number of samples.

Synthetic embeddings, as clip-retrieval writes them, become archives by ``cocu curate`` with two workers,
while the memory of the whole process tree is watched. Quick: 10 and 100 thousand samples; full: a million too. Sizes that
are not measured this time keep their line in scale.csv from an earlier run, with its date.
"""

from __future__ import annotations

import datetime
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from memory_watch import MemoryWatch
from results import arguments, publish
from scale_page import LIMIT, MEMORY, STAGES, WORKERS, draw, merged, sections
from synthetic import write_data_set
from threadpoolctl import threadpool_limits

from curation import clustering, ranking
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import blocks
from curation.base.ragged import Ragged
from curation.base.versions import conditions
from curation.expansion import Anchors, expand_retrieved
from curation.run.curator import open_curator
from curation.run.indexes import first_row
from curation.run.run import Run, open_run
from curation.run.stages.archives import BLOCK

QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000)


def measure(rows: int, folder: Path) -> dict[str, str]:
    """Curate ``rows`` synthetic samples in ``folder``: one line of scale.csv."""
    data = folder / "data.yaml"
    out = folder / "out"
    if not data.exists():
        write_data_set(folder, rows)
    files.remove(str(out))
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(out)]
    command += ["--workers", str(WORKERS), "--retrieval.memory", MEMORY]

    processor_before = children_seconds()
    began = time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with MemoryWatch(running.pid, out / ".progress") as watch:
        output = running.communicate()[0]
    seconds = time.monotonic() - began
    processor_seconds = children_seconds() - processor_before
    if running.returncode:
        raise SystemExit(output)
    print(output, flush=True)

    run = open_run(str(out))
    notes = files.read_json(run.index_json)
    spent = files.read_json(run.manifest)["seconds"]
    search, scoring, clusters = of_an_archive(run)
    tuned = notes["tune index"]
    if "graph" in notes:  # all were searched before
        search, tuned = (spent["neighbours"] + spent["graph"]) / rows, tuned.get("graph", tuned)
    line = {
        "rows": rows,
        "date": datetime.date.today().isoformat(),
        "index": notes["index"]["parameters"]["factory"],
        "search": tuned["search"] or "",
        "recall": tuned["recall"],
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor_seconds, 1),
        "peak_gb": round(watch.peak / 1e9, 2),
        "private_gb": round(watch.private / 1e9, 2),
        "peak_at": max(watch.of_stage, key=lambda stage: watch.of_stage[stage]),
        "search_us": round(1e6 * search, 1),
        "scoring_us": round(1e6 * scoring, 1),
        "clusters_us": round(1e6 * clusters, 1),
        **{f"{stage} s": round(spent.get(stage, 0.0), 2) for stage in STAGES},
    }
    return {name: str(value) for name, value in line.items()}


def children_seconds() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_an_archive(run: Run) -> tuple[float, float, float]:
    """Seconds an archive for search, scoring and clusters, in one thread, over a block of the last shard."""
    curator = open_curator(run)
    shard = run.shards[-1]
    block = next(blocks(run.of_shard("embeddings", shard), ["embedding"], BLOCK))
    images = embedding_matrix(block["embedding"])
    texts = curator.vocabulary.embeddings
    row = first_row(run, shard)
    if row is None:
        raise SystemExit(f"{run.folder}: retrieves from another run's index")
    anchors = np.arange(row, row + len(block))

    def block_of(neighbours: np.ndarray) -> Anchors:
        return Anchors(images, anchors, Ragged.from_lists([[]] * len(images)), neighbours)

    best = np.full(3, np.inf)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        for _ in range(2):
            marks = [time.perf_counter()]
            neighbours, _ = curator.neighbours(images, anchors)
            marks.append(time.perf_counter())
            expansion = expand_retrieved(block_of(neighbours), curator.mentions, texts, neighbours.shape[1])
            concepts = expansion.concepts
            scores = ranking.rank(expansion, ranking.anchor_similarities(images, texts, concepts))
            ranked = concepts.with_values(concepts.values[ranking.descending(concepts, scores.score)])
            marks.append(time.perf_counter())
            clustering.cluster_archives(ranked, texts)
            marks.append(time.perf_counter())
            best = np.minimum(best, np.diff(marks))
    search, scoring, clusters = (best / len(block)).tolist()
    return search, scoring, clusters


def main() -> int:
    """Measure, print, write scale.csv, scale.png and RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "Time and memory of whole runs against the number of samples.")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of samples, in place of those of the size")
    parser.add_argument(
        "--folder", type=Path, help="where data are kept for the next time (default: a temporary folder)"
    )
    args = parser.parse_args()

    machine = conditions("faiss-cpu", "apache-beam", "pyarrow", "torch")
    measured = []
    for rows in args.rows or (FULL if args.full else QUICK):
        if args.folder:
            measured.append(measure(rows, args.folder / str(rows)))
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured.append(measure(rows, Path(folder)))
    lines = merged(measured)
    draw(lines)

    # Of this run only: lines of an earlier day may be of another machine.
    measured.sort(key=lambda line: int(line["rows"]))
    rest = [float(line["scoring_us"]) + float(line["clusters_us"]) for line in measured]
    growth = rest[-1] / rest[0]
    marks = {f"scoring and clusters of an archive do not grow with n (times {growth:.2f})": growth <= 1.25}
    last = lines[-1]
    if last["rows"] == "1000000":
        marks[f"a million samples below {LIMIT:.0f} GB ({last['peak_gb']} GB)"] = float(last["peak_gb"]) < LIMIT
    return publish("Curation against the number of samples", sections(lines, measured, machine), marks)


if __name__ == "__main__":
    sys.exit(main())
