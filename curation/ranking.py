"""Text-to-vision-guided ranking (docs/method.md §3): how relevant a concept is to the anchor, among its archive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curation.base.ragged import Ragged
from curation.expansion import FLOOR, Expansion
from curation.similarity import pair_similarities

SUPPORT_WEIGHT = 0.03  # of the ranking "supported": more helps frequent concepts only (docs/photographs.md)


@dataclass(frozen=True)
class Relevance:
    """How relevant every entry of an expansion is, in the expansion's order."""

    score: np.ndarray  # (P,) float32: what the archive is sorted by
    global_: np.ndarray  # (P,) float32, in (0, 1]
    local: np.ndarray  # (P,) float32, positive


def anchor_similarities(images: np.ndarray, texts: np.ndarray, concepts: Ragged) -> np.ndarray:
    """s_ci of every entry (P,), float32: t_c · f(x_i), at least FLOOR.

    images (B, D), texts (V, D): unit rows; concepts: the ids of each anchor's archive, B lists.
    """
    return np.maximum(pair_similarities(images, texts, concepts), FLOOR)


def rank(
    expansion: Expansion,
    similarity: np.ndarray,
    ranking: str = "cocu",
    anchor_twice: bool = False,
    calibration: np.ndarray | None = None,
) -> Relevance:
    """Score every entry of an expansion.

    similarity (P,) float32: s_ci from :func:`anchor_similarities`; ``ranking``: a name of :data:`RANKINGS`;
    ``calibration`` (V, 2): mean and standard deviation of each concept, for a ranking that is calibrated.
    ``anchor_twice`` counts the anchor once as a retrieved image and once as itself, as the released code does.
    Raises ValueError for an unknown ranking, and where a calibration is needed and missing.
    """
    if ranking not in RANKINGS:
        raise ValueError(f"unknown ranking {ranking!r}")
    method = RANKINGS[ranking]
    if method.calibrated and calibration is None:
        raise ValueError(f"ranking {ranking} needs a calibration")
    global_ = global_scores(expansion, similarity)
    local = local_scores(expansion, similarity, anchor_twice)
    return Relevance(method.score(Entries(expansion, similarity, global_, local, calibration)), global_, local)


def global_scores(expansion: Expansion, similarity: np.ndarray) -> np.ndarray:
    """global(c) = s_ci / max over c' in A_i, j in refs(c') of s_c'j; (P,) float32. The anchor belongs to every refs(c')."""
    largest = np.maximum(similarity, expansion.reference_maximum)
    lengths = expansion.concepts.lengths
    starts = expansion.concepts.offsets[:-1][lengths > 0]  # reduceat cannot take empty segments
    of_archive = np.maximum.reduceat(largest, starts) if len(starts) else largest
    return similarity / np.repeat(of_archive, lengths[lengths > 0])


def local_scores(expansion: Expansion, similarity: np.ndarray, anchor_twice: bool = False) -> np.ndarray:
    """local(c) = s_ci / mean over j in refs(c) of s_cj; (P,) float32."""
    times = 1 + (expansion.anchor_mentions if anchor_twice else 0)
    mean = (expansion.reference_total + times * similarity.astype(np.float64)) / (expansion.reference_count + times)
    return (similarity / mean).astype(np.float32)


def descending(concepts: Ragged, score: np.ndarray) -> np.ndarray:
    """The order (P,) that sorts every archive by descending score, ties by concept id; anchors stay in place."""
    return np.lexsort((concepts.values, -score, concepts.owners))


# --- the table ----------------------------------------------------------------------------------------------------------


class Entries(NamedTuple):
    """All P entries of a block, as a ranking sees them."""

    expansion: Expansion
    similarity: np.ndarray  # (P,) float32: s_ci
    global_: np.ndarray  # (P,) float32
    local: np.ndarray  # (P,) float32
    calibration: np.ndarray | None  # (V, 2)


class PlainEntry(NamedTuple):
    """One entry, as the plain formulas see it."""

    similarity: float  # s_ci
    references: list[float]  # s_cj over refs(c), the anchor included
    largest: float  # of all references of all concepts of the archive
    support: int
    calibration: tuple[float, float]  # mean and standard deviation of the concept


class Ranking(NamedTuple):
    """One way of ranking, with all that configuration, curation and checks need to know of it."""

    score: Callable[[Entries], np.ndarray]  # (P,) float32
    plain: Callable[[PlainEntry], float]  # the same for one entry, to check by
    sentence: str
    of_columns: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None  # from an archive's other columns alone
    calibrated: bool = False  # needs mean and standard deviation of every concept


def calibrated_scores(entries: Entries) -> np.ndarray:
    """(s_ci - mean of t_c · f(x)) / its standard deviation over a random sample of images; (P,) float32."""
    assert entries.calibration is not None  # see rank
    mean, deviation = entries.calibration[entries.expansion.concepts.values].T
    return ((entries.similarity - mean) / deviation).astype(np.float32)


def plain_paper(entry: PlainEntry) -> float:
    """global + local of one entry."""
    mean = sum(entry.references) / len(entry.references)
    return entry.similarity / entry.largest + entry.similarity / mean


def supported(global_: np.ndarray, local: np.ndarray, support: np.ndarray) -> np.ndarray:
    """global + local + SUPPORT_WEIGHT ln(support); (P,) float32. No support counts as one caption."""
    return (global_ + local + SUPPORT_WEIGHT * np.log(np.maximum(support, 1))).astype(np.float32)


RANKINGS = {
    "cocu": Ranking(
        score=lambda entries: entries.global_ + entries.local,
        plain=plain_paper,
        sentence="global + local relevance, as in the paper",
        of_columns=lambda columns: columns["global"] + columns["local"],
    ),
    "similarity": Ranking(
        score=lambda entries: entries.similarity,
        plain=lambda entry: entry.similarity,
        sentence="similarity of concept and image",
    ),
    "support": Ranking(
        score=lambda entries: entries.expansion.support.astype(np.float32),
        plain=lambda entry: entry.support,
        sentence="how many retrieved captions mention the concept",
        of_columns=lambda columns: columns["support"],
    ),
    "calibrated": Ranking(
        score=calibrated_scores,
        plain=lambda entry: (entry.similarity - entry.calibration[0]) / entry.calibration[1],
        sentence="similarity, by the mean and deviation of each concept over a random sample of images",
        calibrated=True,
    ),
    "supported": Ranking(
        score=lambda entries: supported(entries.global_, entries.local, entries.expansion.support),
        plain=lambda entry: plain_paper(entry) + SUPPORT_WEIGHT * (math.log(entry.support) if entry.support else 0),
        sentence="the paper's, and a little more for every further caption that mentions the concept",
        of_columns=lambda columns: supported(columns["global"], columns["local"], columns["support"]),
    ),
    "none": Ranking(
        score=lambda entries: np.ones_like(entries.similarity),
        plain=lambda entry: 1.0,
        sentence="the same for all",
        of_columns=lambda columns: np.ones_like(columns["score"]),
    ),
}
