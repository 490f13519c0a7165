"""Expansion (docs/method.md §2): the concepts of an anchor's archive, and the images whose captions mention each of them.

An expansion of B anchors holds one *entry* for every (anchor, concept) pair, concepts ascending within an anchor. All
expansions of the table :data:`EXPANSIONS` come out in this form, so that ranking does not know the difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from curation.base.ragged import Ragged

if TYPE_CHECKING:  # it imports pyarrow, which --help of curation does without
    from curation.mentions import Mentions

FLOOR = np.float32(1e-4)  # of every s_cj: keeps ratios finite and positive when an encoder gives negative cosines


@dataclass(frozen=True)
class Anchors:
    """A block of B anchors, and what was retrieved for them."""

    images: np.ndarray  # (B, D) float32, unit rows: f(x_i)
    rows: np.ndarray  # (B,) int64: the anchors' own rows in the index, -1 where it does not hold them
    captions: Ragged  # B lists of concept ids: C(y_i)
    neighbours: np.ndarray | None = None  # (B, L) int64: R_i as rows of the index, -1 for none; None: nothing retrieved
    sources: np.ndarray | None = None  # (Q,) int32: which captions mention each value of ``captions``, as bits


@dataclass(frozen=True)
class Expansion:
    """The archives of B anchors before ranking.

    The references are the images j in R_i whose captions mention c, the anchor itself left out: refs(c) minus {i}.
    """

    concepts: Ragged  # B lists of concept ids, int32, ascending; P entries in all
    support: np.ndarray  # (P,) int64: retrieved captions that mention the concept, the anchor's own included
    reference_count: np.ndarray  # (P,) int64
    reference_total: np.ndarray  # (P,) float64: sum of s_cj over the references
    reference_maximum: np.ndarray  # (P,) float32: largest s_cj over the references, 0 where there are none
    anchor_mentions: np.ndarray  # (P,) bool: the anchor was retrieved and its own caption mentions the concept
    sources: np.ndarray | None = None  # (P,) int32: fields of the captions that count as support, as bits, where known


# --- the expansions -----------------------------------------------------------------------------------------------------


def expand_retrieved(anchors: Anchors, mentions: Mentions, texts: np.ndarray, size: int) -> Expansion:
    """A_i = union of C(y_j) over the retrieved j: vision- and text-driven expansion (docs/method.md §2)."""
    assert anchors.neighbours is not None  # these expansions retrieve
    owners, columns = np.nonzero(anchors.neighbours >= 0)
    rows = anchors.neighbours[owners, columns]
    mentioned, lengths = mentions.concepts.gather(rows)
    owner = np.repeat(owners, lengths)
    concept = mentions.concepts.values[mentioned].astype(np.int64)
    own = np.repeat(rows == anchors.rows[owners], lengths)
    similarity = np.where(own, 0, np.maximum(mentions.similarities[mentioned], FLOOR))

    # One sort brings the mentions of an (anchor, concept) pair together; the rest is reduction over segments.
    width = int(concept.max(initial=0)) + 1
    pair = owner * width + concept
    order = np.argsort(pair, kind="stable")
    pair, similarity, own = pair[order], similarity[order], own[order]
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    if not len(starts):
        nothing = None if mentions.sources is None else mentions.sources[:0]
        return listed(Ragged.from_lists([[]] * len(anchors.rows), np.int32), support=0, sources=nothing)

    sources = None
    if mentions.sources is not None:
        sources = np.bitwise_or.reduceat(mentions.sources[mentioned][order], starts)
    support = np.diff(starts, append=len(pair))
    owner = pair[starts] // width
    offsets = np.searchsorted(owner, np.arange(len(anchors.rows) + 1))
    return Expansion(
        concepts=Ragged(offsets, (pair[starts] % width).astype(np.int32)),
        support=support,
        reference_count=support - np.add.reduceat(own, starts, dtype=np.int64),
        reference_total=np.add.reduceat(similarity, starts, dtype=np.float64),
        reference_maximum=np.maximum.reduceat(similarity, starts),
        anchor_mentions=np.logical_or.reduceat(own, starts),
        sources=sources,
    )


def expand_caption(anchors: Anchors, mentions: Mentions, texts: np.ndarray, size: int) -> Expansion:
    """A_i = C(y_i): what the anchor's own caption mentions, as plain GroupViT is trained."""
    return listed(anchors.captions, support=1, sources=anchors.sources)


def expand_tagging(anchors: Anchors, mentions: Mentions, texts: np.ndarray, size: int) -> Expansion:
    """A_i = the ``size`` concepts of the vocabulary nearest to f(x_i), without retrieval."""
    concepts = nearest_concepts(anchors.images, texts, size)
    sources = None if anchors.sources is None else np.zeros(len(concepts.values), np.int32)
    return listed(concepts, support=0, sources=sources)


def listed(concepts: Ragged, support: int, sources: np.ndarray | None = None) -> Expansion:
    """An expansion from concepts that are already known for each anchor, with no references but the anchor itself.

    concepts: B lists of ids, in any order. With ``support=1`` these are the concepts of the anchor's own caption; with 0
    they come from no caption. sources: bits for each of them, where these are known.
    """
    ascending = np.lexsort((concepts.values, concepts.owners))
    size = len(concepts.values)
    return Expansion(
        concepts=concepts.with_values(concepts.values[ascending].astype(np.int32)),
        support=np.full(size, support, np.int64),
        reference_count=np.zeros(size, np.int64),
        reference_total=np.zeros(size, np.float64),
        reference_maximum=np.zeros(size, np.float32),
        anchor_mentions=np.full(size, support > 0),
        sources=None if sources is None else sources[ascending],
    )


def nearest_concepts(images: np.ndarray, texts: np.ndarray, size: int) -> Ragged:
    """The ``size`` concepts of the vocabulary nearest to each image, nearest first: B lists of ids.

    images (B, D), texts (V, D): unit rows. Ties go to the smaller concept id.
    """
    cosines = images @ texts.T  # (B, D) @ (D, V) -> (B, V)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :size]
    lengths = np.full(len(images), nearest.shape[1])
    return Ragged.from_lengths(lengths, nearest.reshape(-1).astype(np.int32))


# --- the same for one anchor, in plain Python, to check them by ---------------------------------------------------------


class PlainAnchor(NamedTuple):
    """One anchor as the plain formulas see it."""

    image: np.ndarray  # (D,) float64
    row: int  # in the index, -1 where it does not hold the anchor
    caption: set[int]  # C(y_i)
    retrieved: dict[int, set[int]]  # row of the index: C(y_j), for every j in R_i
    texts: np.ndarray  # (V, D) float64
    size: int  # L


PlainArchive = tuple[set[int], dict[int, set[int]]]  # A_i; and row: C(y_j) of the captions that count as support


def plain_retrieved(anchor: PlainAnchor) -> PlainArchive:
    """Formula of :func:`expand_retrieved`."""
    return {concept for caption in anchor.retrieved.values() for concept in caption}, anchor.retrieved


def plain_caption(anchor: PlainAnchor) -> PlainArchive:
    """Formula of :func:`expand_caption`: as if the anchor alone had been retrieved."""
    return anchor.caption, {anchor.row: anchor.caption}


def plain_tagging(anchor: PlainAnchor) -> PlainArchive:
    """Formula of :func:`expand_tagging`."""
    nearest = np.argsort(-(anchor.texts @ anchor.image), kind="stable")
    return set(nearest[: anchor.size].tolist()), {}


# --- the table ----------------------------------------------------------------------------------------------------------


class ExpansionMethod(NamedTuple):
    """One way of expanding, with all that configuration, curation, reports and checks need to know of it."""

    expand: Callable[[Anchors, Mentions, np.ndarray, int], Expansion]  # of anchors, by mentions, t_c (V, D) and L
    plain: Callable[[PlainAnchor], PlainArchive]  # the same for one anchor, to check by
    sentence: str  # where the concepts come from
    retrieves: str | None = (
        None  # the index that neighbours are looked up in: image or text; None: nothing is retrieved
    )
    of_captions: bool = True  # whether its concepts come from captions, rather than from the vocabulary alone
    ranking: str = "cocu"  # the ranking that it is compared by


EXPANSIONS = {
    "vision": ExpansionMethod(
        expand_retrieved, plain_retrieved, "the captions of the images that look most like it", retrieves="image"
    ),
    "caption": ExpansionMethod(expand_caption, plain_caption, "its own caption"),
    "text": ExpansionMethod(expand_retrieved, plain_retrieved, "the captions that fit it best", retrieves="text"),
    "tagging": ExpansionMethod(
        expand_tagging,
        plain_tagging,
        "the vocabulary, by similarity to the image",
        of_captions=False,
        ranking="similarity",
    ),
}
