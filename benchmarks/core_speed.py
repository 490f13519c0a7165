"""``python benchmarks/core_speed.py``: search, scoring and clusters of a block of anchors, against a loop over anchors.

The loop does for one anchor after another what docs/method.md §2 to §4 say, with FAISS, formulas and scikit-learn: one query,
a set of concepts, a score for each, k-means. Both run in one thread over the same hundred thousand synthetic images.
"""

from __future__ import annotations

import itertools
import math
import sys
from typing import NamedTuple

import faiss
import numpy as np
import torch
from results import arguments, conditions, in_turns, publish, table
from search_speed import NEIGHBOURS, RECALL, inverted_index, probed, tuned_probes
from sklearn.cluster import KMeans
from synthetic import DIMENSION, SHARD, VOCABULARY, Samples, World, random_world
from threadpoolctl import threadpool_limits

from curation.clustering import cluster_archives
from curation.expansion import FLOOR, Expansion, expand_retrieved
from curation.index.build import exact_index
from curation.index.neighbours import nearest
from curation.index.open import SearchIndex, searchable
from curation.mentions import Mentions
from curation.ranking import Scores, anchor_similarities, descending, rank
from curation.similarity import pair_similarities

ROWS = 100_000
LISTS = 512  # fewer and longer ones than FAISS' guidelines say: what suits a search that goes list by list
SCORING = 10.0  # us an archive, at most
SHARE = 0.35  # scoring and clusters together, of the exact search
RATIO = 80.0  # the whole, to the loop
RESTARTS = 5  # of scikit-learn's k-means: its clusters are then as tight as ours


class Data(NamedTuple):
    """Indexed images and what their captions mention."""

    vectors: np.ndarray  # (N, D)
    texts: np.ndarray  # (V, D)
    mentions: Mentions


def synthetic_data(world: World, rows: int) -> Data:
    """Images of ``world``."""
    parts = [world.samples(SHARD, number) for number in range(rows // SHARD)]
    vectors = np.concatenate([part.vectors for part in parts])
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    made = Samples(
        vectors, np.concatenate([[0], np.cumsum(lengths)]), np.concatenate([part.concepts for part in parts])
    )
    similarities = pair_similarities(vectors, world.texts, made.offsets, made.concepts)
    return Data(vectors, world.texts, Mentions(made.offsets, made.concepts, similarities))


# --- the loop -------------------------------------------------------------------------------------------------------------


def one_archive(anchor: int, index: faiss.Index, data: Data, said: list[list[int]]) -> dict[int, tuple[float, int]]:
    """Concept -> (score, cluster) of one anchor, by the plain formulas; ``said``: the concepts of every caption."""
    image = data.vectors[anchor]
    retrieved = index.search(image[None], NEIGHBOURS)[1][0]
    references = {
        concept: {int(row) for row in retrieved if concept in said[row]} | {anchor}
        for concept in sorted({concept for row in retrieved for concept in said[row]})
    }
    similar = {
        (concept, row): max(float(data.texts[concept] @ data.vectors[row]), float(FLOOR))
        for concept, rows in references.items()
        for row in rows
    }
    largest = max(similar.values(), default=1.0)
    scores = {
        concept: similar[concept, anchor] / largest
        + similar[concept, anchor] / float(np.mean([similar[concept, row] for row in rows]))
        for concept, rows in references.items()
    }
    concepts = sorted(scores, key=lambda concept: (-scores[concept], concept))
    labels: list[int] | np.ndarray = range(len(concepts))
    if len(concepts) > 2:
        labels = KMeans(math.ceil(len(concepts) / 2), n_init=RESTARTS, random_state=0).fit_predict(data.texts[concepts])
    return {concept: (scores[concept], int(label)) for concept, label in zip(concepts, labels, strict=True)}


# --- ours -----------------------------------------------------------------------------------------------------------------


def score(neighbours: np.ndarray, anchors: np.ndarray, data: Data) -> tuple[Expansion, Scores, np.ndarray]:
    """Expansion, scores and order of a block."""
    expanded = expand_retrieved(neighbours, anchors, data.mentions)
    scores = rank(expanded, anchor_similarities(data.vectors[anchors], data.texts, expanded))
    return expanded, scores, descending(expanded, scores.score)


def tightness(archives: list[dict[int, tuple[float, int]]], texts: np.ndarray) -> float:
    """Total inertia of the clusters of archives."""
    total = 0.0
    for archive in archives:
        for cluster in {label for _, label in archive.values()}:
            members = texts[[concept for concept, (_, label) in archive.items() if label == cluster]]
            total += float(((members - members.mean(axis=0)) ** 2).sum())
    return total


def block_archives(anchors: np.ndarray, index: SearchIndex, data: Data) -> list[dict[int, tuple[float, int]]]:
    """The archives of a block, in the form of :func:`one_archive`."""
    neighbours = nearest(index, data.vectors[anchors], anchors, NEIGHBOURS, True)[0]
    expanded, scores, order = score(neighbours, anchors, data)
    concepts, values = expanded.concepts[order], scores.score[order]
    labels = cluster_archives(expanded.offsets, concepts, data.texts)
    return [
        {int(concepts[at]): (float(values[at]), int(labels[at])) for at in range(start, end)}
        for start, end in itertools.pairwise(expanded.offsets)
    ]


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    given = arguments(__file__, "The core of curation, against a loop over anchors.").parse_args()
    torch.set_num_threads(1)  # many small products: threads would wait for one another
    machine = conditions("faiss-cpu", "scikit-learn", "torch", "numpy")
    data = synthetic_data(random_world(), ROWS)
    inverted = inverted_index(data.vectors, LISTS)
    probes, tried = tuned_probes(inverted, data.vectors)
    flat, lists = exact_index(data.vectors), probed(inverted, probes)
    offsets = data.mentions.offsets.tolist()
    said = [data.mentions.concepts[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    some, few, many = (np.arange(count) for count in ((400, 8192, 16384) if given.full else (100, 4096, 16384)))
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        exact = searchable(flat)
        looped = [one_archive(anchor, flat, data, said) for anchor in some]
        ours = block_archives(some, exact, data)
        equal = np.mean(
            [
                a.keys() == b.keys() and all(math.isclose(a[key][0], b[key][0], rel_tol=1e-4) for key in a)
                for a, b in zip(looped, ours, strict=True)
            ]
        )
        looser = tightness(ours, data.texts) / tightness(looped, data.texts)
        neighbours = nearest(lists, data.vectors[many], many, NEIGHBOURS, True)[0]
        expanded, _, order = score(neighbours, many, data)
        ranked = expanded.concepts[order]
        works = {
            "loop": (some, lambda: [one_archive(anchor, flat, data, said) for anchor in some]),
            "faiss": (few, lambda: flat.search(data.vectors[few], NEIGHBOURS)),
            "exact": (few, lambda: nearest(exact, data.vectors[few], few, NEIGHBOURS, True)),
            "lists": (many, lambda: nearest(lists, data.vectors[many], many, NEIGHBOURS, True)),
            "score": (many, lambda: score(neighbours, many, data)),
            "clusters": (many, lambda: cluster_archives(expanded.offsets, ranked, data.texts)),
        }
        seconds = in_turns([work for _, work in works.values()], 5 if given.full else 3)
    spent = {name: 1e6 * taken / len(works[name][0]) for name, taken in zip(works, seconds, strict=True)}
    rest = spent["score"] + spent["clusters"]
    whole, all_exact = spent["lists"] + rest, spent["exact"] + rest
    share = rest / min(spent["faiss"], spent["exact"])
    return publish(
        "Core of curation",
        [
            machine,
            f"{ROWS:,} synthetic images of {DIMENSION} dimensions, {VOCABULARY:,} concepts, L = {NEIGHBOURS}, "
            f"{len(ranked) / len(many):.1f} concepts an archive; one thread, best of some rounds in turn. The loop asks "
            f"an exact index one query at a time and clusters by scikit-learn's KMeans with {RESTARTS} restarts. Its "
            f"archives have the same concepts and scores as ours from the exact index in {equal:.1%} of {len(some)} cases; "
            f"our clusters have {looser:.4f} of its inertia. Inverted lists: {inverted.nlist}, {probes} probed, recall "
            f"{tried[probes]:.3f}.",
            table(
                ["step", "us an archive", "the loop takes, times"],
                [
                    ["loop: search, scores and clusters", f"{spent['loop']:.0f}", "1"],
                    ["exact search, FAISS", f"{spent['faiss']:.0f}", ""],
                    ["exact search, ours", f"{spent['exact']:.0f}", ""],
                    [f"inverted lists, ours, recall {RECALL}", f"{spent['lists']:.0f}", ""],
                    ["expansion and scores", f"{spent['score']:.1f}", ""],
                    ["clusters", f"{spent['clusters']:.1f}", ""],
                    ["**whole, inverted lists**", f"{whole:.0f}", f"{spent['loop'] / whole:.0f}"],
                    ["**whole, exact search**", f"{all_exact:.0f}", f"{spent['loop'] / all_exact:.0f}"],
                ],
            ),
        ],
        {
            f"scoring at most {SCORING:.0f} us an archive ({spent['score']:.1f})": spent["score"] <= SCORING,
            f"scoring and clusters at most {SHARE} of the exact search ({share:.2f})": share <= SHARE,
            f"the whole with inverted lists at least {RATIO:.0f} times the loop ({spent['loop'] / whole:.0f})": spent[
                "loop"
            ]
            >= RATIO * whole,
            f"the same concepts and scores as the loop ({equal:.1%})": equal >= 0.99,
            f"clusters as tight as scikit-learn's, to 1% ({looser:.4f})": looser <= 1.01,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
