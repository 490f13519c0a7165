"""Text-to-vision-guided ranking (docs/method.md §3): how relevant a concept is to the anchor, among its archive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.base.ragged import row_numbers
from curation.expansion import FLOOR, Expansion
from curation.similarity import pair_similarities


@dataclass(frozen=True)
class Scores:
    """Scores of every entry of an expansion, in the expansion's order."""

    score: np.ndarray  # (P,) float32: what the archive is sorted by
    global_: np.ndarray  # (P,) float32, in (0, 1]
    local: np.ndarray  # (P,) float32, positive


def anchor_similarities(images: np.ndarray, texts: np.ndarray, expansion: Expansion) -> np.ndarray:
    """s_ci of every entry (P,), float32: t_c · f(x_i), at least FLOOR. images (B, D), texts (V, D): unit rows."""
    cosines: np.ndarray = np.maximum(pair_similarities(images, texts, expansion.offsets, expansion.concepts), FLOOR)
    return cosines


def rank(
    expansion: Expansion,
    similarity: np.ndarray,
    ranking: str = "cocu",
    anchor_twice: bool = False,
    calibration: np.ndarray | None = None,
) -> Scores:
    """Score every entry of an expansion.

    similarity (P,) float32: s_ci from :func:`anchor_similarities`. ``ranking``: cocu (global + local), similarity (s_ci),
    support, calibrated (needs ``calibration`` (V, 2): mean and standard deviation of each concept), none (all equal).
    ``anchor_twice`` counts the anchor once as a retrieved image and once as itself, as the released code does.
    """
    global_ = global_scores(expansion, similarity)
    local = local_scores(expansion, similarity, anchor_twice)
    if ranking == "cocu":
        score = global_ + local
    elif ranking == "similarity":
        score = similarity
    elif ranking == "support":
        score = expansion.support.astype(np.float32)
    elif ranking == "calibrated":
        if calibration is None:
            raise ValueError("ranking calibrated needs a calibration")
        score = calibrated_scores(expansion, similarity, calibration)
    elif ranking == "none":
        score = np.ones_like(similarity)
    else:
        raise ValueError(f"unknown ranking {ranking!r}")
    return Scores(score, global_, local)


def global_scores(expansion: Expansion, similarity: np.ndarray) -> np.ndarray:
    """global(c) = s_ci / max over c' in A_i, j in refs(c') of s_c'j; (P,) float32. The anchor belongs to every refs(c')."""
    largest = np.maximum(similarity, expansion.reference_maximum)
    lengths = np.diff(expansion.offsets)
    starts = expansion.offsets[:-1][lengths > 0]  # reduceat cannot take empty segments
    of_archive = np.maximum.reduceat(largest, starts) if len(starts) else largest
    scores: np.ndarray = similarity / np.repeat(of_archive, lengths[lengths > 0])
    return scores


def local_scores(expansion: Expansion, similarity: np.ndarray, anchor_twice: bool = False) -> np.ndarray:
    """local(c) = s_ci / mean over j in refs(c) of s_cj; (P,) float32."""
    times = 1 + (expansion.anchor_mentions if anchor_twice else 0)
    mean = (expansion.reference_total + times * similarity.astype(np.float64)) / (expansion.reference_count + times)
    scores: np.ndarray = (similarity / mean).astype(np.float32)
    return scores


def calibrated_scores(expansion: Expansion, similarity: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """(s_ci - mean of t_c · f(x)) / its standard deviation over a random sample of images; (P,) float32."""
    mean, deviation = calibration[expansion.concepts].T
    scores: np.ndarray = ((similarity - mean) / deviation).astype(np.float32)
    return scores


def descending(expansion: Expansion, score: np.ndarray) -> np.ndarray:
    """The order (P,) that sorts every archive by descending score, ties by concept id; anchors stay in place."""
    return np.lexsort((expansion.concepts, -score, row_numbers(expansion.offsets)))
