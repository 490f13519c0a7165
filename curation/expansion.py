"""Expansion (docs/method.md §2): the concepts of an anchor's archive, and the images whose captions mention each of them.

An expansion of B anchors is a CSR array: one *entry* for every (anchor, concept) pair, concepts ascending within an
anchor. Text-driven expansion and plain captions come out in the same form, so that ranking does not know the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.base.ragged import gather_rows
from curation.mentions import Mentions

FLOOR = np.float32(1e-4)  # of every s_cj: keeps ratios finite and positive when an encoder gives negative cosines


@dataclass(frozen=True)
class Expansion:
    """The archives of B anchors before ranking.

    The references are the images j in R_i whose captions mention c, the anchor itself left out: refs(c) minus {i}.
    """

    offsets: np.ndarray  # (B + 1,) int64
    concepts: np.ndarray  # (P,) int32, ascending within an anchor
    support: np.ndarray  # (P,) int64: retrieved captions that mention the concept, the anchor's own included
    reference_count: np.ndarray  # (P,) int64
    reference_total: np.ndarray  # (P,) float64: sum of s_cj over the references
    reference_maximum: np.ndarray  # (P,) float32: largest s_cj over the references, 0 where there are none
    anchor_mentions: np.ndarray  # (P,) bool: the anchor was retrieved and its own caption mentions the concept


def expand_retrieved(neighbours: np.ndarray, anchors: np.ndarray, mentions: Mentions) -> Expansion:
    """A_i = union of C(y_j) over the retrieved j: vision- and text-driven expansion (docs/method.md §2).

    neighbours (B, L) int64: retrieved rows, -1 for none; anchors (B,) int64: the anchors' own rows, -1 where the index
    does not hold them.
    """
    owners, columns = np.nonzero(neighbours >= 0)
    rows = neighbours[owners, columns]
    positions, lengths = gather_rows(mentions.offsets, rows)
    owner = np.repeat(owners, lengths)
    concept = mentions.concepts[positions].astype(np.int64)
    own = np.repeat(rows == anchors[owners], lengths)
    similarity = np.where(own, 0, np.maximum(mentions.similarities[positions], FLOOR))

    # One sort brings the mentions of an (anchor, concept) pair together; the rest is reduction over segments.
    width = int(concept.max(initial=0)) + 1
    pair = owner * width + concept
    order = np.argsort(pair, kind="stable")
    pair, similarity, own = pair[order], similarity[order], own[order]
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    if not len(starts):
        return expand_listed(np.zeros(len(neighbours) + 1, np.int64), np.zeros(0, np.int32), support=0)
    support = np.diff(starts, append=len(pair))
    mentioned = np.logical_or.reduceat(own, starts)
    owner = pair[starts] // width
    return Expansion(
        offsets=np.searchsorted(owner, np.arange(len(neighbours) + 1)),
        concepts=(pair[starts] % width).astype(np.int32),
        support=support,
        reference_count=support - np.add.reduceat(own, starts, dtype=np.int64),
        reference_total=np.add.reduceat(similarity, starts, dtype=np.float64),
        reference_maximum=np.maximum.reduceat(similarity, starts),
        anchor_mentions=mentioned,
    )


def expand_listed(offsets: np.ndarray, concepts: np.ndarray, support: int) -> Expansion:
    """An expansion from concepts that are already known for each anchor, with no references but the anchor itself.

    offsets (B + 1,), concepts (P,): CSR, any order within an anchor. With ``support=1`` these are the concepts of the
    anchor's own caption (plain GroupViT); with 0 they come from no caption (tagging).
    """
    owner = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    ascending = np.lexsort((concepts, owner))
    size = len(concepts)
    return Expansion(
        offsets=offsets.astype(np.int64),
        concepts=concepts[ascending].astype(np.int32),
        support=np.full(size, support, np.int64),
        reference_count=np.zeros(size, np.int64),
        reference_total=np.zeros(size, np.float64),
        reference_maximum=np.zeros(size, np.float32),
        anchor_mentions=np.full(size, support > 0),
    )


def nearest_concepts(images: np.ndarray, texts: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``size`` concepts of the vocabulary nearest to each image (tagging: no retrieval), as CSR.

    images (B, D), texts (V, D): unit rows. Ties go to the smaller concept id.
    """
    cosines = images @ texts.T  # (B, D) @ (D, V) -> (B, V)
    size = min(size, len(texts))
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :size]
    return np.arange(len(images) + 1) * size, nearest.reshape(-1).astype(np.int32)
