"""``python benchmarks/search_speed.py``: search for a whole data set ordered by list, against FAISS' own search.

A hundred thousand synthetic images (``synthetic.py``), each a query, L = 8. Quick: the queries are one block of the archive
stage (4096 for the exact search); full: all images, block by block.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np
import torch
from results import arguments, in_turns, publish
from synthetic import DIMENSION, random_world
from threadpoolctl import threadpool_limits

from curation.base.markdown import table
from curation.base.versions import conditions
from curation.index.build import empty_index, exact_index, sample_rows, train
from curation.index.choose import TRAINING_ROWS, list_count
from curation.index.open import SearchIndex, searchable, set_search
from curation.index.recall import exact_neighbours, recall, tune
from curation.run.stages.archives import BLOCK

ROWS = 100_000
NEIGHBOURS = 8  # L
RECALL = 0.95
RATIO = 4.0  # FAISS' inverted lists to ours, at the probes that reach RECALL


def synthetic_vectors(rows: int = ROWS) -> np.ndarray:
    """Unit vectors (rows, D) float32."""
    world = random_world()
    step = 10_000
    return np.concatenate([world.samples(min(step, rows - start), start).vectors for start in range(0, rows, step)])


def inverted_index(vectors: np.ndarray, lists: int | None = None) -> faiss.Index:
    """An index of so many inverted lists; by default as many as ``auto`` would choose if it did not choose exact search."""
    lists = lists or list_count(len(vectors))
    index = empty_index(f"IVF{lists},Flat", vectors.shape[1])
    trained, _ = sample_rows(len(vectors), TRAINING_ROWS * lists, 1000)
    train(index, vectors[trained], f"IVF{lists},Flat")
    index.add(vectors)
    return index


def tuned_probes(index: faiss.Index, vectors: np.ndarray) -> tuple[int, dict[int, float]]:
    """The fewest probes that reach RECALL, and the recall of all that were tried, as ``tune index`` finds them."""
    _, held_out = sample_rows(len(vectors), 0, 1000)
    expected = exact_neighbours([vectors], vectors[held_out], NEIGHBOURS + 1)
    expected[expected == held_out[:, None]] = -1
    tried: dict[int, float] = {}

    def measure(probes: int) -> float:
        tried[probes] = recall(probed(index, probes).search(vectors[held_out], NEIGHBOURS + 1)[1], expected)
        return tried[probes]

    return tune(measure, RECALL, index.nlist)[0], tried


def probed(index: faiss.Index, probes: int) -> SearchIndex:
    """Our search over an index, set to so many probes."""
    set_search(index, f"nprobe={probes}")
    return searchable(index)


def in_blocks(search: Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]], queries: np.ndarray) -> np.ndarray:
    """Ids (B, L) that a search finds for queries (B, D), a block at a time."""
    return np.concatenate(
        [search(queries[start : start + BLOCK], NEIGHBOURS)[1] for start in range(0, len(queries), BLOCK)]
    )


class Comparison(NamedTuple):
    """One search by FAISS and by us."""

    name: str
    theirs: float  # microseconds a query
    ours: float
    same: float  # share of queries with the same set of neighbours

    @property
    def ratio(self) -> float:
        """How many times as fast ours is."""
        return self.theirs / self.ours

    def row(self) -> list[str]:
        """Its line in the table."""
        return [self.name, f"{self.theirs:.0f}", f"{self.ours:.0f}", f"{self.ratio:.1f}", f"{self.same:.2%}"]


def compare(name: str, theirs: faiss.Index, ours: SearchIndex, queries: np.ndarray, rounds: int) -> Comparison:
    """Time both searches, and compare what they find."""
    ids: dict[str, np.ndarray] = {}
    seconds = in_turns(
        [
            lambda: ids.update(theirs=in_blocks(theirs.search, queries)),
            lambda: ids.update(ours=in_blocks(ours.search, queries)),
        ],
        rounds,
    )
    slow, fast = (1e6 * total / len(queries) for total in seconds)
    same = (np.sort(ids["theirs"], axis=1) == np.sort(ids["ours"], axis=1)).all(axis=1).mean()
    return Comparison(name, slow, fast, float(same))


def block_memory(ours: SearchIndex, vectors: np.ndarray, queries: int) -> float:
    """Megabytes of numpy's arrays that a search for so many queries takes above its input."""
    tracemalloc.start()
    ours.search(vectors[:queries], NEIGHBOURS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    args = arguments(__file__, "List-ordered search, against FAISS' own.").parse_args()
    rounds = 2
    torch.set_num_threads(1)  # many small products: threads would wait for one another
    machine = conditions("faiss-cpu", "torch", "numpy")
    vectors = synthetic_vectors()
    queries = vectors if args.full else vectors[:BLOCK]
    index = inverted_index(vectors)
    best, tried = tuned_probes(index, vectors)
    flat = exact_index(vectors)

    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        by_probes = {}
        for probes in sorted({max(1, best // 4), best, *([2 * best] if args.full else [])}):
            name = f"{index.nlist} lists, {probes} probed"
            by_probes[probes] = compare(name, index, probed(index, probes), queries, rounds)
        ours = probed(index, best)
        half, whole = (block_memory(ours, vectors, size) for size in (BLOCK // 2, BLOCK))
        exact = compare("exact (flat)", flat, searchable(flat), queries if args.full else queries[:4096], rounds)

    comparisons = [*by_probes.values(), exact]
    tuned = by_probes[best]
    bf16 = searchable(flat).bf16
    products = (
        "bf16, candidates compared again in fp32" if bf16 else "fp32 (no fast bf16 here: exact search is FAISS' own)"
    )
    return publish(
        "Neighbour search",
        [
            machine,
            f"{ROWS:,} synthetic images of {DIMENSION} dimensions, {len(queries):,} of them as queries in blocks of up to "
            f"{BLOCK:,}, L = {NEIGHBOURS}; one thread, best of {rounds} rounds in turn. Products in {products}. "
            f"Recall {RECALL} takes {best} of {index.nlist} lists ({tried[best]:.3f}). FAISS: `index.search` with all "
            f"queries of a block at once. Memory of the search above its input: {half:.0f} MB for {BLOCK // 2:,} queries, "
            f"{whole:.0f} MB for {BLOCK:,} (numpy's arrays; those of torch are bounded by one product).",
            table(["search", "FAISS, us a query", "ours", "ratio", "same sets"], [item.row() for item in comparisons]),
        ],
        {
            f"inverted lists at the probes for recall {RECALL}: at least {RATIO:.0f} times FAISS "
            f"({tuned.ratio:.1f})": tuned.ratio >= RATIO,
            # The last bit of a cosine may decide between two neighbours.
            "the same result sets for 99.9% of the queries": min(item.same for item in comparisons) >= 0.999,
            f"exact search at least as fast as FAISS ({exact.ratio:.2f})": exact.ratio >= (1 if bf16 else 0.95),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
