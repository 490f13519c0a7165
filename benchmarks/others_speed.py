"""``python benchmarks/others_speed.py``: the neighbours of all images, by us and by others, at one recall on one thread.

The same synthetic images (``synthetic.py``) for all, L = 8, in processor time, build and search together. Quick: 100,000
images; full: 300,000 too. Needs ``pip install pynndescent autofaiss``; what is not installed is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from neighbours_speed import QUERIES, Way, graph, images_and_truth, pairs, processor_seconds
from results import arguments, publish
from search_speed import NEIGHBOURS, RECALL
from threadpoolctl import threadpool_limits

from curation.base.markdown import table
from curation.base.versions import conditions
from curation.index.open import effort, set_search
from curation.index.recall import TrueNeighbours, tune

QUICK, FULL = (100_000,), (100_000, 300_000)
FIRST = 20_000  # images that a search of others is timed on: the rest takes as long


def by_pynndescent(vectors: np.ndarray, truth: TrueNeighbours) -> Way:
    """NN-Descent with the fewest neighbours an image that reach the recall."""
    NNDescent = importlib.import_module("pynndescent").NNDescent

    few = vectors[:2000]
    NNDescent(few, metric="dot", n_neighbors=16, n_jobs=1, random_state=0)  # compiled once
    for size in (12, 16, 24, 32):
        began = time.process_time()
        built = NNDescent(vectors, metric="dot", n_neighbors=size, n_jobs=1, random_state=0)
        seconds = time.process_time() - began
        ids = built.neighbor_graph[0][truth.rows, : NEIGHBOURS + 1].astype(np.int64)
        recall = truth.recall(ids, pairs(vectors, truth))
        if recall >= RECALL:
            break
    return Way("pynndescent", f"k = {size}", 1e6 * seconds / len(vectors), 0, recall)


def by_autofaiss(vectors: np.ndarray, truth: TrueNeighbours) -> Way:
    """The index that autofaiss chooses, searched by FAISS at the least effort that reaches the recall."""
    build_index = importlib.import_module("autofaiss").build_index

    indexes: list[faiss.Index] = []

    def build() -> None:
        index, _ = build_index(
            vectors,
            save_on_disk=False,  # it cannot write NumPy 2's numbers into its JSON
            metric_type="ip",
            max_index_memory_usage="4G",
            current_memory_available="8G",
            nb_cores=1,
            verbose=40,
        )
        indexes.append(index)

    seconds = processor_seconds(build)
    index = indexes[0]
    name, largest = effort(index)

    def measure(setting: int) -> float:
        set_search(index, f"{name}={setting}")
        return truth.recall(index.search(vectors[truth.rows], NEIGHBOURS + 1)[1], pairs(vectors, truth))

    setting, recall = tune(measure, RECALL, largest)
    set_search(index, f"{name}={setting}")
    search = processor_seconds(lambda: index.search(vectors[:FIRST], NEIGHBOURS + 1))
    kind = type(index).__name__.removeprefix("Index")
    return Way(
        "autofaiss, FAISS", f"{kind}, {name}={setting}", 1e6 * seconds / len(vectors), 1e6 * search / FIRST, recall
    )


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    args = arguments(__file__, "Neighbours of all images, by us and by others.").parse_args()
    machine = conditions("faiss-cpu", "torch", "numpy")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    others: dict[str, Callable[[np.ndarray, TrueNeighbours], Way]] = {
        "pynndescent": by_pynndescent,
        "autofaiss": by_autofaiss,
    }
    measures = [graph, *(measure for name, measure in others.items() if importlib.util.find_spec(name))]
    lines = []
    marks = {}
    for rows in FULL if args.full else QUICK:
        vectors, truth = images_and_truth(rows)
        with threadpool_limits(1):
            for measure in measures:
                way = measure(vectors, truth)
                lines.append(way.row(rows))
                print(lines[-1], flush=True)
                if measure is graph:
                    marks[f"{rows:,} images: the graph's recall is at least {RECALL} ({way.recall:.3f})"] = (
                        way.recall >= RECALL
                    )
    return publish(
        "Neighbours of all images, by others",
        [
            machine,
            f"The same synthetic images of 512 dimensions for all, L = {NEIGHBOURS}, one thread; microseconds of processor "
            f"time an image. Each with the least effort that reaches a recall of {RECALL} on {QUERIES:,} images that are "
            "held out, without the image itself.",
            table(["images", "way", "setting", "build", "search", "total", "recall"], lines),
        ],
        marks,
    )


if __name__ == "__main__":
    sys.exit(main())
