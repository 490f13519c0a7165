"""Held-out images of a run: what recall an index of it has for them, and the least effort that reaches enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from curation.config import RetrievalConfig
from curation.index import build
from curation.index.graph import EXTRA
from curation.index.open import SearchIndex, effort, set_search
from curation.index.recall import TrueNeighbours, true_neighbours, tune

QUERIES = 1000  # images that are held out
ROUNDED = 1e-3  # more than a cosine of vectors in fp16 is off
Blocks = Callable[[], Iterator[np.ndarray]]  # (n, D) unit vectors, fp32


class ReadOnce:
    """Vectors of rows that are kept for the next time: to read some of a data set's is to read them all."""

    def __init__(self, read: Callable[[np.ndarray], np.ndarray]) -> None:
        self._read = read
        self._rows = np.zeros(0, np.int64)  # ascending
        self._vectors: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The vectors (N, D) of rows (N,)."""
        fresh = np.setdiff1d(rows, self._rows)
        if len(fresh) or self._vectors is None:
            vectors = self._read(fresh)
            kept = vectors[:0] if self._vectors is None else self._vectors
            every = np.concatenate([self._rows, fresh])
            order = np.argsort(every)
            self._rows, self._vectors = every[order], np.concatenate([kept, vectors])[order]
        return self._vectors[np.searchsorted(self._rows, rows)]


@dataclass(frozen=True)
class HeldOut:
    """Images that are held out of training an index, and what its search should find for them."""

    config: RetrievalConfig
    opened: SearchIndex
    queries: np.ndarray  # (Q, D)
    truth: TrueNeighbours
    vectors: ReadOnce

    @staticmethod
    def of(opened: SearchIndex, config: RetrievalConfig, images: Blocks, vectors: Blocks, both_ends: bool) -> HeldOut:
        """Held-out rows of ``images()``, and their true neighbours among ``vectors()``, those that the index holds.

        ``both_ends``: recall will be asked for with edges from either end.
        """
        _, rows = build.sample_rows(opened.rows, 0, QUERIES)
        queries = build.pick(images(), rows)
        truth = true_neighbours(vectors(), queries, rows, config.neighbors)
        read_once = ReadOnce(lambda asked: build.pick(vectors(), asked))
        if both_ends:  # each setting asks for some of them
            read_once(truth.ids[truth.ids >= 0])
        return HeldOut(config, opened, queries, truth, read_once)

    def least_search(self, enough: str | None = None, from_either_end: bool = False) -> tuple[str | None, float]:
        """Search parameters that reach ``retrieval.recall``, or those that are configured; and their recall.

        ``enough``: parameters that are known to reach it.
        """
        name, largest = effort(self.opened.faiss)
        if self.config.search or not name:
            return self.config.search, self.recall(from_either_end)

        def measure(setting: int) -> float:
            set_search(self.opened.faiss, f"{name}={setting}")
            return self.recall(from_either_end)

        first = int(enough.partition("=")[2]) if enough else 1
        setting, reached = tune(measure, self.config.recall, largest, first)
        return f"{name}={setting}", reached

    def recall(self, from_either_end: bool = False) -> float:
        """The share of the true neighbours that the index finds as it is set now."""
        size = self.config.neighbors + (EXTRA if from_either_end else 1)
        with threadpool_limits(1):  # thousands of small products: threads would wait for one another
            cosines, ids = self.opened.search(self.queries, size)
            if from_either_end:
                back = self._from_the_other_end(ids, size)
                ids = np.concatenate([ids, back], axis=1)
                cosines = np.concatenate([cosines, np.where(back < 0, -np.inf, np.inf)], axis=1)
        return self.truth.recall(ids, self._true_cosines(ids, cosines))

    def _true_cosines(self, ids: np.ndarray, cosines: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """The cosines of pairs, of which those that a search of ours found (Q, K) are nearly right: it keeps vectors in
        fp32 or fp16. The images' own are looked up only where a rounding could decide whether they are as near as the L-th.
        """
        if self.opened.lists is None:
            return self._cosines

        def nearly(numbers: np.ndarray, asked: np.ndarray) -> np.ndarray:
            near = cosines[numbers, (ids[numbers] == asked[:, None]).argmax(1)]
            close = np.flatnonzero(np.abs(near - self.truth.farthest[numbers]) < ROUNDED)
            near[close] = self._cosines(numbers[close], asked[close])
            return near

        return nearly

    def _cosines(self, numbers: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.einsum("nd,nd->n", self.queries[numbers], self.vectors(ids))

    def _from_the_other_end(self, ids: np.ndarray, size: int) -> np.ndarray:
        """The true neighbours (Q, L) that a search missed, but whose own search finds the query; -1 elsewhere."""
        expected = self.truth.ids
        missed = (expected >= 0) & ~(expected[:, :, None] == ids[:, None, :]).any(axis=2)
        query, column = np.nonzero(missed)
        asked, position = np.unique(expected[query, column], return_inverse=True)
        theirs = self.opened.search(self.vectors(asked), size)[1]
        finding = (theirs[position] == self.truth.rows[query][:, None]).any(axis=1)
        back = np.full(expected.shape, -1, np.int64)
        back[query[finding], column[finding]] = expected[query[finding], column[finding]]
        return back
