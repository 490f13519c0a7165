"""A factory string is tried on a few vectors before anything is trained: FAISS accepts more than it can search."""

from __future__ import annotations

import re

import faiss
import numpy as np

from curation.base.embeddings import normalise
from curation.base.errors import CocuError
from curation.index.build import empty_index, encode, faiss_reason, fill, fills_in_parts
from curation.index.open import check_structure, limit_reading, set_search

VECTORS = 4096
LISTS = 104  # instead of thousands, which so few vectors cannot train; NSG over the lists wants more than 100
DIMENSIONS = (64, 240, 1024, 3840)  # divisible by what people divide dimensions by
QUERIES, NEIGHBOURS = 64, 5
TOO_FEW = "should be at least as large as number of clusters"  # of codes: not of the lists, which are few here


class Unsearchable(CocuError):
    """FAISS builds such an index, but not as it is built here, or not for cosines."""


def try_form(factory: str, search: str | None = None) -> None:
    """Try a factory string while the dimension is not known yet. Raises CocuError as :func:`try_factory` does."""
    for dimension in DIMENSIONS:
        try:
            try_factory(factory, dimension, search)
            return
        except Unsearchable:
            raise
        except CocuError:  # it may want more dimensions, or other divisors
            if dimension == DIMENSIONS[-1]:
                raise


def try_factory(factory: str, dimension: int, search: str | None = None) -> None:
    """Build a small index as the stages do, write, read and search it.

    Raises CocuError in one line where a step fails, :class:`Unsearchable` where that has nothing to do with the dimension.
    """
    index = empty_index(re.sub(r"IVF(\d+)([kM]?)", _fewer_lists, factory), dimension)
    set_search(index, search)
    vectors = normalise(np.random.default_rng(0).normal(size=(VECTORS, dimension)))
    try:
        _train_quickly(index, vectors)
    except RuntimeError as error:
        reason = faiss_reason(error)
        if TOO_FEW in reason:
            return  # the data may have enough
        raise CocuError(f"retrieval.index: FAISS cannot train {factory} ({reason})") from None

    try:
        _fill(index, vectors)
        written = faiss.serialize_index(index)
        limit_reading(written.nbytes)  # an index that was opened before may have set less
        index = faiss.deserialize_index(written)
        check_structure(index)
        cosines, ids = index.search(vectors[:QUERIES], NEIGHBOURS)
    except (RuntimeError, ValueError) as error:
        raise _refused(factory, faiss_reason(error)) from None
    if ids.min() < -1 or ids.max() >= VECTORS or (np.diff(cosines, axis=1) > 1e-6).any():
        raise _refused(factory, "its results are not rows in descending cosine")
    nearness = np.einsum("qd,qkd->qk", vectors[:QUERIES], vectors[ids])[ids >= 0].mean()
    if not nearness > 2 / np.sqrt(dimension * QUERIES * NEIGHBOURS):  # two deviations of the mean for random images
        raise _refused(factory, "what it finds is no nearer than random images")


def _refused(factory: str, reason: str) -> Unsearchable:
    return Unsearchable(f"retrieval.index: {factory} does not work here ({reason}); choose another index, or auto")


def _fewer_lists(match: re.Match[str]) -> str:
    lists = int(match[1]) * {"": 1, "k": 1 << 10, "M": 1 << 20}[match[2]]
    return f"IVF{min(lists, LISTS)}"


def _train_quickly(index: faiss.Index, vectors: np.ndarray) -> None:
    """Train for what can be built, not for what is found well, and without FAISS' warnings that vectors are few."""
    inner = index
    quantizers = []  # FAISS does not keep those of rotations alive
    while isinstance(inner, faiss.IndexPreTransform | faiss.IndexRefine):
        if isinstance(inner, faiss.IndexRefine):
            inner = faiss.downcast_index(inner.base_index)
            continue
        for number in range(inner.chain.size()):
            transform = faiss.downcast_VectorTransform(inner.chain.at(number))
            if isinstance(transform, faiss.OPQMatrix):
                transform.niter = 2
                transform.pq = faiss.ProductQuantizer(transform.d_out, transform.M, 8)
                quantizers.append(transform.pq)
        inner = faiss.downcast_index(inner.index)

    if isinstance(inner, faiss.IndexPQ | faiss.IndexIVFPQ):
        inner.do_polysemous_training = False
        quantizers.append(inner.pq)
    for quantizer in quantizers:
        quantizer.cp.min_points_per_centroid, quantizer.cp.niter = 1, 4
    index.train(vectors)


def _fill(index: faiss.Index, vectors: np.ndarray) -> None:
    halves = np.split(vectors, 2)
    if fills_in_parts(index):
        fill(index, lambda: [encode(index, half) for half in halves])
        return
    for half in halves:  # as shards are added
        index.add(half)
