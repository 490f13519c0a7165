"""``python benchmarks/core_speed.py``: search, scoring and clusters of a block of anchors, against a loop over anchors.

The loop does what docs/method.md §2 to §4 say for one anchor after another, with FAISS, formulas and scikit-learn: one
query, a set of concepts, a score for each, k-means. Both run in one thread over the same hundred thousand synthetic images.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from typing import NamedTuple

import faiss
import numpy as np
import torch
from results import arguments, in_turns, publish
from search_speed import NEIGHBOURS, RECALL, inverted_index, probed, tuned_probes
from sklearn.cluster import KMeans
from synthetic import DIMENSION, SHARD, VOCABULARY, SyntheticWorld, random_world
from threadpoolctl import threadpool_limits

from curation.base.markdown import table
from curation.base.ragged import Ragged
from curation.base.versions import conditions
from curation.clustering import cluster_archives
from curation.expansion import FLOOR, Anchors, Expansion, expand_retrieved
from curation.index.build import exact_index
from curation.index.neighbours import nearest
from curation.index.open import SearchIndex, searchable
from curation.mentions import Mentions
from curation.ranking import anchor_similarities, descending, rank
from curation.similarity import pair_similarities

ROWS = 100_000
LISTS = 512  # fewer and longer ones than FAISS' guidelines say: what suits a search that goes list by list
SCORING = 10.0  # us an archive, at most
SHARE = 0.35  # scoring and clusters together, of the exact search
RATIO = 80.0  # the whole, to the loop
RESTARTS = 5  # of scikit-learn's k-means: its clusters are then as tight as ours

Archive = dict[int, tuple[float, int]]  # concept -> (score, cluster)


class IndexedImages(NamedTuple):
    """Images that are retrieved, and what their captions mention."""

    vectors: np.ndarray  # (N, D)
    texts: np.ndarray  # (V, D)
    mentions: Mentions


def synthetic_images(world: SyntheticWorld, rows: int) -> IndexedImages:
    """Images of ``world``."""
    shards = [world.samples(SHARD, number) for number in range(rows // SHARD)]
    vectors = np.concatenate([shard.vectors for shard in shards])
    concepts = Ragged.concatenate(Ragged(shard.offsets, shard.concepts) for shard in shards)
    similarities = pair_similarities(vectors, world.texts, concepts)
    return IndexedImages(vectors, world.texts, Mentions(concepts, similarities))


# --- the loop -------------------------------------------------------------------------------------------------------------


def one_archive(anchor: int, index: faiss.Index, images: IndexedImages, mentioned: list[list[int]]) -> Archive:
    """The archive of one anchor, by the plain formulas; ``mentioned``: the concepts of every caption."""
    vector = images.vectors[anchor]
    retrieved = index.search(vector[None], NEIGHBOURS)[1][0]
    references = {
        concept: {int(row) for row in retrieved if concept in mentioned[row]} | {anchor}
        for concept in sorted({concept for row in retrieved for concept in mentioned[row]})
    }

    similarity = {
        (concept, row): max(float(images.texts[concept] @ images.vectors[row]), float(FLOOR))
        for concept, rows in references.items()
        for row in rows
    }
    largest = max(similarity.values(), default=1.0)
    scores = {
        concept: similarity[concept, anchor] / largest
        + similarity[concept, anchor] / float(np.mean([similarity[concept, row] for row in rows]))
        for concept, rows in references.items()
    }

    concepts = sorted(scores, key=lambda concept: (-scores[concept], concept))
    labels: Sequence[int] = range(len(concepts))
    if len(concepts) > 2:
        kmeans = KMeans(math.ceil(len(concepts) / 2), n_init=RESTARTS, random_state=0)
        labels = kmeans.fit_predict(images.texts[concepts]).tolist()
    return {concept: (scores[concept], label) for concept, label in zip(concepts, labels, strict=True)}


# --- ours -----------------------------------------------------------------------------------------------------------------


def score(
    neighbours: np.ndarray, anchors: np.ndarray, images: IndexedImages
) -> tuple[Expansion, np.ndarray, np.ndarray]:
    """Expansion of a block, the score of every entry, and their order."""
    vectors = images.vectors[anchors]
    block = Anchors(vectors, anchors, Ragged.from_lists([[]] * len(anchors)), neighbours)
    expanded = expand_retrieved(block, images.mentions, images.texts, NEIGHBOURS)
    scores = rank(expanded, anchor_similarities(vectors, images.texts, expanded.concepts)).score
    return expanded, scores, descending(expanded.concepts, scores)


def block_archives(anchors: np.ndarray, index: SearchIndex, images: IndexedImages) -> list[Archive]:
    """The archives of a block, in the form of :func:`one_archive`."""
    neighbours = nearest(index, images.vectors[anchors], anchors, NEIGHBOURS, True)[0]
    expanded, scores, order = score(neighbours, anchors, images)
    ranked = expanded.concepts.with_values(expanded.concepts.values[order])
    labels = cluster_archives(ranked, images.texts)
    entries = list(zip(ranked.values.tolist(), scores[order].tolist(), labels.tolist(), strict=True))
    return [
        {concept: (value, label) for concept, value, label in entries[start:end]}
        for start, end in itertools.pairwise(ranked.offsets.tolist())
    ]


# --- the comparison -------------------------------------------------------------------------------------------------------


def share_equal(ours: list[Archive], theirs: list[Archive]) -> float:
    """The share of archives with the same concepts and, up to rounding, the same scores."""
    return float(
        np.mean(
            [
                a.keys() == b.keys() and all(math.isclose(a[key][0], b[key][0], rel_tol=1e-4) for key in a)
                for a, b in zip(ours, theirs, strict=True)
            ]
        )
    )


def inertia(archives: list[Archive], texts: np.ndarray) -> float:
    """Sum over concepts of the squared distance to the centroid of their cluster."""
    total = 0.0
    for archive in archives:
        for cluster in {label for _, label in archive.values()}:
            members = texts[[concept for concept, (_, label) in archive.items() if label == cluster]]
            total += float(((members - members.mean(axis=0)) ** 2).sum())
    return total


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    args = arguments(__file__, "The core of curation, against a loop over anchors.").parse_args()
    torch.set_num_threads(1)  # many small products: threads would wait for one another
    machine = conditions("faiss-cpu", "scikit-learn", "torch", "numpy")
    images = synthetic_images(random_world(), ROWS)
    vectors = images.vectors
    mentioned = [
        part.tolist() for part in np.split(images.mentions.concepts.values, images.mentions.concepts.offsets[1:-1])
    ]
    inverted = inverted_index(vectors, LISTS)
    probes, tried = tuned_probes(inverted, vectors)
    flat = exact_index(vectors)
    looped, few, many = (np.arange(count) for count in ((400, 8192, 16384) if args.full else (100, 4096, 16384)))

    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        exact = searchable(flat)
        lists = probed(inverted, probes)
        theirs = [one_archive(anchor, flat, images, mentioned) for anchor in looped.tolist()]
        ours = block_archives(looped, exact, images)

        neighbours = nearest(lists, vectors[many], many, NEIGHBOURS, True)[0]
        expanded, _, order = score(neighbours, many, images)
        ranked = expanded.concepts.with_values(expanded.concepts.values[order])
        works = {
            "loop": (looped, lambda: [one_archive(anchor, flat, images, mentioned) for anchor in looped.tolist()]),
            "faiss": (few, lambda: flat.search(vectors[few], NEIGHBOURS)),
            "exact": (few, lambda: nearest(exact, vectors[few], few, NEIGHBOURS, True)),
            "lists": (many, lambda: nearest(lists, vectors[many], many, NEIGHBOURS, True)),
            "score": (many, lambda: score(neighbours, many, images)),
            "clusters": (many, lambda: cluster_archives(ranked, images.texts)),
        }
        seconds = in_turns([work for _, work in works.values()], 5 if args.full else 3)

    equal = share_equal(ours, theirs)
    looser = inertia(ours, images.texts) / inertia(theirs, images.texts)
    spent = {name: 1e6 * total / len(works[name][0]) for name, total in zip(works, seconds, strict=True)}
    rest = spent["score"] + spent["clusters"]
    share = rest / min(spent["faiss"], spent["exact"])
    with_lists = spent["lists"] + rest
    with_exact = spent["exact"] + rest
    times = spent["loop"] / with_lists
    return publish(
        "Core of curation",
        [
            machine,
            f"{ROWS:,} synthetic images of {DIMENSION} dimensions, {VOCABULARY:,} concepts, L = {NEIGHBOURS}, "
            f"{len(ranked.values) / len(many):.1f} concepts per archive; one thread, best of several rounds. The loop asks "
            f"an exact index one query at a time and clusters by scikit-learn's KMeans with {RESTARTS} restarts. Its "
            f"archives have the same concepts and scores as ours from the exact index in {equal:.1%} of {len(looped)} "
            f"cases; our clusters have {looser:.4f} of its inertia. Inverted lists: {inverted.nlist}, {probes} probed, "
            f"recall {tried[probes]:.3f}.",
            table(
                ["step", "us an archive", "the loop takes, times"],
                [
                    ["loop: search, scores and clusters", f"{spent['loop']:.0f}", "1"],
                    ["exact search, FAISS", f"{spent['faiss']:.0f}", ""],
                    ["exact search, ours", f"{spent['exact']:.0f}", ""],
                    [f"inverted lists, ours, recall {RECALL}", f"{spent['lists']:.0f}", ""],
                    ["expansion and scores", f"{spent['score']:.1f}", ""],
                    ["clusters", f"{spent['clusters']:.1f}", ""],
                    ["**whole, inverted lists**", f"{with_lists:.0f}", f"{times:.0f}"],
                    ["**whole, exact search**", f"{with_exact:.0f}", f"{spent['loop'] / with_exact:.0f}"],
                ],
            ),
        ],
        {
            f"scoring at most {SCORING:.0f} us an archive ({spent['score']:.1f})": spent["score"] <= SCORING,
            f"scoring and clusters at most {SHARE} of the exact search ({share:.2f})": share <= SHARE,
            f"the whole with inverted lists at least {RATIO:.0f} times the loop ({times:.0f})": times >= RATIO,
            f"the same concepts and scores as the loop ({equal:.1%})": equal >= 0.99,
            f"clusters as tight as scikit-learn's, to 1% ({looser:.4f})": looser <= 1.01,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
