"""``python benchmarks/neighbours_speed.py``: the neighbours of all images, as a graph and shard by shard, side by side.

Synthetic images (``synthetic.py``), L = 8, one thread, in processor time: other work on the machine matters less. Both ways
are tuned to the same recall on 1,000 held-out images. Quick: 100,000 and 300,000 images; full: a million too.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np
import torch
from results import arguments, publish
from search_speed import NEIGHBOURS, RECALL, inverted_index, synthetic_vectors
from synthetic import SHARD
from threadpoolctl import threadpool_limits

from curation.base.markdown import table
from curation.base.versions import conditions
from curation.index.choose import list_count
from curation.index.graph import EXTRA, from_either_end
from curation.index.open import searchable, set_search
from curation.index.recall import TrueNeighbours, true_neighbours, tune
from curation.run.stages.graph import TOGETHER

QUICK, FULL = (100_000, 300_000), (100_000, 300_000, 1_000_000)
QUERIES = 1000
SHARDS = 3  # that are searched one by one: the others take as long
FROM_ONE_END = 0.925  # recall of a search that becomes RECALL from either end, as is measured below
RATIO = 2.0  # both ways have the same search; how much the graph gains by its order of work


class Way(NamedTuple):
    """What one way of finding all neighbours takes: microseconds of processor time an image."""

    name: str
    lists: str
    build: float
    search: float
    recall: float

    @property
    def total(self) -> float:
        """Build and search together."""
        return self.build + self.search

    def row(self, images: int) -> list[str]:
        """Its line in the table."""
        numbers = [f"{value:.0f}" for value in (self.build, self.search, self.total)]
        return [f"{images:,}", self.name, self.lists, *numbers, f"{self.recall:.3f}"]


def processor_seconds(work: Callable[[], object]) -> float:
    """Processor time of some work in this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def tuned(index: faiss.Index, vectors: np.ndarray, truth: TrueNeighbours, recall: float) -> tuple[int, float]:
    """The fewest probes that reach a recall, and what they reach."""

    def measure(probes: int) -> float:
        set_search(index, f"nprobe={probes}")
        return truth.recall(searchable(index).search(vectors[truth.rows], NEIGHBOURS + 1)[1], pairs(vectors, truth))

    return tune(measure, recall, index.nlist)


def pairs(vectors: np.ndarray, truth: TrueNeighbours) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The cosines of held-out images, by number, and others."""
    return lambda queries, ids: np.einsum("nd,nd->n", vectors[truth.rows[queries]], vectors[ids])


def shard_by_shard(vectors: np.ndarray, truth: TrueNeighbours) -> Way:
    """Some shards' images, looked up as the archive stage does with an index that is given."""
    indexes: list[faiss.Index] = []
    build = processor_seconds(lambda: indexes.append(inverted_index(vectors, list_count(len(vectors)))))
    probes, recall = tuned(indexes[0], vectors, truth, RECALL)
    set_search(indexes[0], f"nprobe={probes}")
    opened = searchable(indexes[0])
    opened.search(vectors[:SHARD], NEIGHBOURS + 1)  # shapes are prepared
    blocks = [vectors[number * SHARD : (number + 1) * SHARD] for number in range(SHARDS)]
    search = processor_seconds(lambda: [opened.search(block, NEIGHBOURS + 1) for block in blocks])
    name = f"{indexes[0].nlist}, {probes} probed"
    return Way("shard by shard", name, 1e6 * build / len(vectors), 1e6 * search / (SHARDS * SHARD), recall)


def graph(vectors: np.ndarray, truth: TrueNeighbours) -> Way:
    """All images, as the stages of the graph do it."""
    rows, size = len(vectors), NEIGHBOURS + EXTRA
    indexes: list[faiss.Index] = []
    build = processor_seconds(lambda: indexes.append(inverted_index(vectors, list_count(rows) // 2)))
    probes, _ = tuned(indexes[0], vectors, truth, FROM_ONE_END)
    set_search(indexes[0], f"nprobe={probes}")
    opened = searchable(indexes[0])
    step = TOGETHER // (6 * vectors.shape[1])
    nearest: list[np.ndarray] = []

    def search() -> None:
        parts = []
        for start in range(0, rows, step):
            cosines, ids = opened.search(vectors[start : start + step], size)
            parts.append((start, ids, cosines))
        nearest.extend(ids for ids, _ in from_either_end(lambda: parts, rows, size))

    seconds = processor_seconds(search)
    ids = np.concatenate(nearest)[truth.rows, : NEIGHBOURS + 1]
    recall = truth.recall(ids, pairs(vectors, truth))
    return Way("graph", f"{indexes[0].nlist}, {probes} probed", 1e6 * build / rows, 1e6 * seconds / rows, recall)


def images_and_truth(rows: int) -> tuple[np.ndarray, TrueNeighbours]:
    """Synthetic images, and the true neighbours of those that are held out; on one thread."""
    vectors = synthetic_vectors(rows)
    held_out = np.sort(np.random.default_rng(0).permutation(rows)[:QUERIES])
    with threadpool_limits(1):
        return vectors, true_neighbours(np.array_split(vectors, 100), vectors[held_out], held_out, NEIGHBOURS)


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    args = arguments(__file__, "Neighbours of all images.").parse_args()
    machine = conditions("faiss-cpu", "torch", "numpy")
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    lines = []
    marks = {}
    for rows in FULL if args.full else QUICK:
        vectors, truth = images_and_truth(rows)
        with threadpool_limits(1):
            ways = [shard_by_shard(vectors, truth), graph(vectors, truth)]
        lines += [way.row(rows) for way in ways]
        ratio = ways[0].total / ways[1].total
        marks[f"{rows:,} images: recall at least {RECALL} ({ways[1].recall:.3f})"] = ways[1].recall >= RECALL
        if rows > QUICK[0]:
            marks[f"{rows:,} images: at least {RATIO:.0f} times cheaper than by shards ({ratio:.1f})"] = ratio >= RATIO
    return publish(
        "Neighbours of all images",
        [
            machine,
            f"Synthetic images of 512 dimensions, L = {NEIGHBOURS}, shards of {SHARD:,}, one thread; microseconds of "
            f"processor time an image. Recall on {QUERIES:,} held-out images, without the image itself. Build: training "
            "and filling the lists. Shard by shard is how an index that is given is searched.",
            table(["images", "way", "lists", "build", "search", "total", "recall"], lines),
        ],
        marks,
    )


if __name__ == "__main__":
    sys.exit(main())
