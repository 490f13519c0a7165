"""The page of ``scale.py``: its table in scale.csv, the plot, and what larger data sets would take."""

from __future__ import annotations

import csv
from pathlib import Path

from synthetic import DIMENSION, VOCABULARY

from curation.base.configuration import parse_bytes
from curation.base.markdown import table
from curation.index.choose import choose_index

TABLE = Path(__file__).with_name("scale.csv")
PLOT = Path(__file__).with_name("scale.png")
WORKERS = 2
MEMORY = "4G"  # retrieval.memory
LIMIT = 8.0  # GB, the whole process tree, a million samples
STAGES = (
    *("embed", "visualness", "concepts", "train index", "fill index", "index", "tune index", "mentions"),
    *("neighbours", "graph", "archive"),
)
LARGER = ((12_000_000, "16G"), (12_000_000, "32G"), (400_000_000, "480G"))  # samples and retrieval.memory

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


def merged(measured: list[dict[str, str]]) -> list[dict[str, str]]:
    """The lines of scale.csv with those measured now in place of older ones of the same size; writes the file."""
    old = list(csv.DictReader(TABLE.open())) if TABLE.exists() else []
    by_rows = {int(line["rows"]): line for line in [*old, *measured]}
    lines = [by_rows[rows] for rows in sorted(by_rows)]
    with TABLE.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(measured[0]), lineterminator="\n", extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(lines)
    return lines


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
        label = line["index"].partition(",")[0]
        point = (int(line["rows"]), float(line["search_us"]))
        left.annotate(label, point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
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
    choice = choose_index(rows, DIMENSION, parse_bytes(memory, "retrieval.memory"), 0.95, graph=True)
    old, new = (int(name.partition(",")[0].removeprefix("IVF")) for name in (line["index"], choice.factory))  # lists
    times = rows / measured
    share = int(line["search"].partition("=")[2]) / old
    centroids = old / (old + share * measured)  # share of the products of a query
    search = centroids * new / old + (1 - centroids) * times * (old / new) ** 0.5

    per_sample = 1e-6 * (float(line["scoring_us"]) + float(line["clusters_us"]))
    by_shard = sum(float(line[f"{stage} s"]) for stage in ("embed", "visualness", "concepts"))
    seconds = {
        "train": float(line["train index s"]) * WORKERS * (new / old) ** 2,
        "fill": float(line["fill index s"]) * times * new / old,
        "search": 1e-6 * float(line["search_us"]) * rows * search,
        "rest": rows * per_sample + times * by_shard,
    }
    one_process = times * sum(float(line[f"{stage} s"]) for stage in ("index", "tune index", "mentions"))
    hours = [f"{spent / 3600:,.1f}" for spent in (*seconds.values(), sum(seconds.values()))]
    mentions = 24 * rows / 1e9  # an offset and two concepts with their similarities
    return [
        f"{rows / 1e6:,.0f} M",
        f"`{choice.factory}`",
        f"{choice.bytes / 1e9:,.0f} + {mentions:,.1f} GB",
        *hours,
        f"{one_process / 3600:,.1f}",
    ]


def sections(lines: list[dict[str, str]], measured: list[dict[str, str]], machine: str) -> list[str]:
    """Paragraphs and tables of RESULTS.md."""
    last = lines[-1]
    columns = [f"{name}, s" for name in STAGES]
    earlier = "Lines with an earlier date were not measured in this run." if len(measured) < len(lines) else ""
    parts = [
        machine,
        f"Synthetic embeddings of {DIMENSION} dimensions, fp16, {VOCABULARY:,} Zipf concepts, 10,000 samples a shard "
        f"(two shards at least), imported and curated by `cocu curate --workers {WORKERS} "
        f"--retrieval.memory {MEMORY}`, everything from import to manifest. Memory: the largest PSS of the whole process "
        "tree, mapped files included. Times of an archive: one thread, a block of the last shard. Figures and plot: "
        f"`benchmarks/scale.csv`, `benchmarks/scale.png`. {earlier}",
        "![time and memory against the number of samples](scale.png)",
        table(HEADER, [[cell.format(**line) for cell in CELLS] for line in lines]),
        table(
            ["samples", *columns],
            [[f"{int(line['rows']):,}", *(line.get(f"{name} s", "") for name in STAGES)] for line in lines],
        )
        + "\n\nStages that work on shards: the sum over shards, each in one thread. Those that run once (train, index, "
        "tune, mentions, graph): by the clock.",
    ]

    if last["index"].startswith("IVF"):
        header = [
            "samples",
            "index",
            "index + mentions",
            "train",
            "fill",
            "search",
            "rest",
            "total, hours",
            "one process",
        ]
        parts.append(
            f"Extrapolated from {int(last['rows']):,} samples, never run. Processor hours, of which the columns before the "
            "total are spread over all workers; training uses all cores of one machine; the last column is the clock time "
            "of stages that run in one process (merging, tuning, mentions), whatever the number of workers.\n\n"
            + table(header, [extrapolated(last, rows, memory) for rows, memory in LARGER])
        )
    return parts
