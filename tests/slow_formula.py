"""Parts 2 and 3 of the method as plain loops, to check the fast code against: one anchor at a time, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

FLOOR = 1e-4


class Entry(NamedTuple):
    """One concept of an archive."""

    concept: int
    score: float
    global_: float
    local: float
    support: int


def dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(float(a) * float(b) for a, b in zip(one, other, strict=True))


def neighbours(
    vectors: Sequence, query: Sequence[float], anchor: int, size: int, include_anchor: bool
) -> list[tuple[int, float]]:
    """R_i with cosines: the anchor first or left out, then descending cosine, ties by id, (-1, 0) where rows run out."""
    cosines = [dot(vector, query) for vector in vectors]
    order = sorted(range(len(vectors)), key=lambda row: (-cosines[row], row))
    found = [(row, cosines[row]) for row in order if row != anchor]
    if anchor >= 0 and include_anchor:
        found.insert(0, (anchor, cosines[anchor]))
    return (found + [(-1, 0.0)] * size)[:size]


def retrieved_archive(
    image: Sequence[float],
    anchor: int,
    retrieved: Sequence[int],
    vectors: Sequence,
    captions: Sequence[set[int]],
    texts: Sequence,
    ranking: str = "cocu",
    anchor_twice: bool = False,
    calibration: Sequence | None = None,
) -> list[Entry]:
    """A_i, sorted, from retrieved rows of an index: row j has the image ``vectors[j]`` and mentions ``captions[j]``."""
    rows = [row for row in retrieved if row != -1]
    mentioning = {c: [row for row in rows if c in captions[row]] for row in rows for c in captions[row]}
    similarities = {}
    for concept, references in mentioning.items():
        others = [row for row in references if row != anchor]
        values = [dot(texts[concept], vectors[row]) for row in others] + [dot(texts[concept], image)]
        if anchor_twice and anchor in references:
            values.append(values[-1])
        similarities[concept] = [max(value, FLOOR) for value in values]
    support = {concept: len(references) for concept, references in mentioning.items()}
    return _ranked(image, texts, similarities, support, ranking, calibration)


def listed_archive(
    image: Sequence[float],
    concepts: Sequence[int],
    texts: Sequence,
    support: int,
    ranking: str = "cocu",
    calibration: Sequence | None = None,
) -> list[Entry]:
    """A_i, sorted, from concepts that nothing was retrieved for: the only reference of each is the anchor."""
    similarities = {concept: [max(dot(texts[concept], image), FLOOR)] for concept in concepts}
    return _ranked(image, texts, similarities, dict.fromkeys(concepts, support), ranking, calibration)


def _ranked(
    image: Sequence[float],
    texts: Sequence,
    similarities: dict[int, list[float]],
    support: dict[int, int],
    ranking: str,
    calibration: Sequence | None,
) -> list[Entry]:
    largest = max((value for values in similarities.values() for value in values), default=None)
    entries = []
    for concept, values in similarities.items():
        own = max(dot(texts[concept], image), FLOOR)
        global_ = own / largest
        local = own / (sum(values) / len(values))
        if ranking == "cocu":
            score = global_ + local
        elif ranking == "similarity":
            score = own
        elif ranking == "support":
            score = support[concept]
        elif ranking == "supported":
            score = global_ + local + 0.03 * math.log(max(support[concept], 1))
        elif ranking == "calibrated":
            mean, deviation = calibration[concept]
            score = (own - float(mean)) / float(deviation)
        else:
            score = 1.0
        entries.append(Entry(concept, score, global_, local, support[concept]))
    return sorted(entries, key=lambda entry: (-entry.score, entry.concept))
