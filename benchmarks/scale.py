"""``python benchmarks/scale.py``: time and memory of whole runs against the number of samples.

Synthetic embeddings, as clip-retrieval writes them, become archives by ``python -m pipelines.curate`` with two workers,
while the memory of the whole process tree is watched. Quick: 10 and 100 thousand samples; full: a million too. Sizes that
are not measured now stay in scale.csv from an earlier run, with its date.
"""

from __future__ import annotations

import csv
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
from results import arguments, conditions, publish, table
from synthetic import DIMENSION, VOCABULARY, write_data_set
from threadpoolctl import threadpool_limits

from curation import clustering, expansion, ranking
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import blocks
from curation.index.choose import choose_index, parse_bytes
from curation.run.run import Run, open_run
from curation.run.stages.archives import BLOCK, first_row, open_curator

TABLE = Path(__file__).with_name("scale.csv")
PLOT = Path(__file__).with_name("scale.png")
QUICK, FULL = (10_000, 100_000), (10_000, 100_000, 1_000_000)
WORKERS = 2
MEMORY = "4G"  # retrieval.memory
LIMIT = 8.0  # GB, the whole process tree, a million samples
ABOVE = {"textcoords": "offset points", "ha": "center", "fontsize": 8}  # of matplotlib's annotate
STAGES = ("embed", "visualness", "concepts", "train index", "fill index", "index", "tune index", "mentions", "archive")
LARGER = ((12_000_000, "16G"), (12_000_000, "32G"), (400_000_000, "480G"))  # samples and retrieval.memory


# --- one size -------------------------------------------------------------------------------------------------------------


def measure(rows: int, folder: Path) -> dict[str, object]:
    """Curate ``rows`` synthetic samples in ``folder``: one line of scale.csv."""
    data, out = folder / "data.yaml", folder / "out"
    if not data.exists():
        write_data_set(folder, rows)
    files.remove(str(out))
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(out)]
    command += ["--workers", str(WORKERS), "--retrieval.memory", MEMORY]
    before, began = children_seconds(), time.monotonic()
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with MemoryWatch(running.pid, out / ".progress") as watch:
        output = running.communicate()[0]
    seconds = time.monotonic() - began
    if running.returncode:
        raise SystemExit(output)
    print(output, flush=True)
    run = open_run(str(out))
    notes, spent = files.read_json(run.index_json), files.read_json(run.manifest)["seconds"]
    search, scoring, clusters = of_an_archive(run)
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
        **{f"{stage} s": round(spent.get(stage, 0.0), 2) for stage in STAGES},
    }


def children_seconds() -> float:
    """Processor time of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def of_an_archive(run: Run) -> tuple[float, float, float]:
    """Seconds an archive for search, scoring and clusters, in one thread, over a block of the last shard."""
    curator, shard = open_curator(run), run.shards[-1]
    block = next(blocks(run.of_shard("embeddings", shard), ["embedding"], BLOCK))
    images, row, texts = embedding_matrix(block["embedding"]), first_row(run, shard), curator.vocabulary.embeddings
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
    return tuple(best / len(block))


# --- all sizes ------------------------------------------------------------------------------------------------------------


HEADER, CELLS = zip(  # of the table
    ("samples", "{rows}"),
    ("measured", "{date}"),
    ("index, search", "`{index}` {search}"),
    ("recall", "{recall}"),
    ("run, s", "{seconds}"),
    ("processor, s", "{processor_seconds}"),
    ("peak, GB", "{peak_gb}"),
    ("without files, GB", "{private_gb}"),
    ("peak in", "{peak_at}"),
    ("search, us", "{search_us}"),
    ("scores, us", "{scoring_us}"),
    ("clusters, us", "{clusters_us}"),
    strict=True,
)


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


def draw(lines: list[dict[str, str]]) -> None:
    """scale.png: time of an archive, and memory, against the number of samples."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [int(line["rows"]) for line in lines]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for column, label in (("search_us", "search"), ("clusters_us", "clusters"), ("scoring_us", "expansion and scores")):
        left.plot(rows, [float(line[column]) for line in lines], "o-", label=label)
    for line in lines:
        left.annotate(line["index"].partition(",")[0], (int(line["rows"]), float(line["search_us"])), (0, 6), **ABOVE)
    left.set(xscale="log", yscale="log", xlabel="samples", ylabel="microseconds an archive, one thread", title="Time")
    left.margins(y=0.15)
    left.legend()
    right.plot(rows, [float(line["peak_gb"]) for line in lines], "o-", label="all (PSS), mapped index included")
    right.plot(rows, [float(line["private_gb"]) for line in lines], "o-", label="without mapped files")
    right.axhline(LIMIT, color="grey", linestyle=":", label="limit")
    right.set(
        xscale="log", ylim=0, xlabel="samples", ylabel="GB, the whole process tree", title=f"Memory, {WORKERS} workers"
    )
    right.legend()
    figure.savefig(PLOT, dpi=110)


def extrapolated(line: dict[str, str], rows: int, memory: str) -> list[str]:
    """What ``rows`` samples would take, from the largest measured line: a row of the table, an estimate throughout.

    Work on samples grows with n; training with the square of the lists; assigning vectors to lists with n times the
    lists. A query meets all centroids and the vectors of the lists it probes; their share of all lists is taken to fall
    with the square root of the lists.
    """
    measured = int(line["rows"])
    choice = choose_index(rows, DIMENSION, parse_bytes(memory), 0.95)
    old, new = (int(name.partition(",")[0].removeprefix("IVF")) for name in (line["index"], choice.factory))
    times = rows / measured
    share = int(line["search"].partition("=")[2]) / old
    centroids = old / (old + share * measured)  # of the products of a query
    search = centroids * new / old + (1 - centroids) * times * (old / new) ** 0.5
    seconds = {
        "train": float(line["train index s"]) * WORKERS * (new / old) ** 2,
        "fill": float(line["fill index s"]) * times * new / old,
        "search": 1e-6 * float(line["search_us"]) * rows * search,
        "rest": times * (1e-6 * float(line["scoring_us"]) + 1e-6 * float(line["clusters_us"])) * measured
        + times * sum(float(line[f"{stage} s"]) for stage in ("embed", "visualness", "concepts")),
    }
    alone = times * sum(float(line[f"{stage} s"]) for stage in ("index", "tune index", "mentions"))
    hours = [f"{spent / 3600:,.1f}" for spent in (*seconds.values(), sum(seconds.values()))]
    mentions = 24 * rows / 1e9  # an offset and two concepts with their similarities
    return [
        f"{rows / 1e6:,.0f} M",
        f"`{choice.factory}`",
        f"{choice.bytes / 1e9:,.0f} + {mentions:,.1f} GB",
        *hours,
        f"{alone / 3600:,.1f}",
    ]


def main() -> int:
    """Measure, print, write scale.csv, scale.png and RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "Time and memory of whole runs against the number of samples.")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of samples, in place of those of the size")
    parser.add_argument(
        "--folder", type=Path, help="where data are kept, for another time, and run (default: temporary)"
    )
    given = parser.parse_args()
    machine, found = conditions("faiss-cpu", "apache-beam", "pyarrow", "torch"), []
    for rows in given.rows or (FULL if given.full else QUICK):
        if given.folder:
            found.append(measure(rows, given.folder / str(rows)))
            continue
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(rows, Path(folder)))
    lines = merged(found)
    draw(lines)
    now, last = {str(line["rows"]) for line in found}, lines[-1]
    # Of this run only: lines of an earlier day may be of another machine.
    rest = [float(line["scoring_us"]) + float(line["clusters_us"]) for line in lines if str(line["rows"]) in now]
    growth = rest[-1] / rest[0]
    parts = [
        machine,
        f"Synthetic embeddings of {DIMENSION} dimensions, fp16, {VOCABULARY:,} Zipf concepts, 10,000 samples a shard "
        f"(two shards at least), imported and curated by `python -m pipelines.curate --workers {WORKERS} "
        f"--retrieval.memory {MEMORY}`, everything from import to manifest. Memory: the largest PSS of the whole process "
        "tree, mapped files included. Times of an archive: one thread, a block of the last shard. Figures and plot: "
        "`benchmarks/scale.csv`, `benchmarks/scale.png`. "
        + ("" if len(now) == len(lines) else "Lines with an earlier date were not measured in this run."),
        "![time and memory against the number of samples](scale.png)",
        table(HEADER, [[cell.format(**line) for cell in CELLS] for line in lines]),
        table(
            ["samples", *(f"{name}, s" for name in STAGES)],
            [[f"{int(line['rows']):,}", *(line[f"{name} s"] for name in STAGES)] for line in lines],
        )
        + "\n\nStages that work on shards: the sum over shards, each in one thread. Those that run once (train, index, "
        "tune, mentions): by the clock.",
    ]
    if last["index"].startswith("IVF"):
        parts.append(
            f"Extrapolated from {int(last['rows']):,} samples, never run. Processor hours, of which the columns before the "
            "total are spread over all workers; training uses all cores of one machine; the last column is the clock time "
            "of stages that run in one process (merging, tuning, mentions), whatever the number of workers.\n\n"
            + table(
                [
                    "samples",
                    "index",
                    "index + mentions",
                    "train",
                    "fill",
                    "search",
                    "rest",
                    "total, hours",
                    "one process",
                ],
                [extrapolated(last, rows, memory) for rows, memory in (LARGER)],
            )
        )
    marks = {f"scoring and clusters of an archive do not grow with n (times {growth:.2f})": growth <= 1.25}
    if last["rows"] == "1000000":
        marks[f"a million samples below {LIMIT:.0f} GB ({last['peak_gb']} GB)"] = float(last["peak_gb"]) < LIMIT
    return publish("Curation against the number of samples", parts, marks)


if __name__ == "__main__":
    sys.exit(main())
