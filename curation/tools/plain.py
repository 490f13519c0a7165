"""One archive at a time, straight from docs/method.md §2 and §3: slow, plain Python, to check the fast way by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from curation.base.embeddings import embedding_matrix
from curation.base.parquet import open_parquet, row_count
from curation.concepts import Matcher
from curation.run.run import Run, open_run
from curation.run.stages.archives import open_searched, read_calibration
from curation.vocabulary import read_vocabulary

FLOOR = 1e-4
INDEXES = {"vision": "image", "text": "text"}
SHARDS_IN_MEMORY = 8


class PlainCurator:
    """Computes single archives of a finished run from its embeddings, captions and vocabulary."""

    def __init__(self, run: Run) -> None:
        self._outputs, self._config = run, run.config
        self._vocabulary = read_vocabulary(run.vocabulary)
        self._texts = self._vocabulary.embeddings.astype(np.float64)
        self._matcher = Matcher(self._vocabulary.concepts)
        self._calibration = read_calibration(run)
        self._indexed = _Rows(open_run(self._config.retrieval.data) if self._config.retrieval.data else run)

    def archive(self, image: np.ndarray, anchor: int, own: list[int]) -> tuple[dict[str, float], bool]:
        """The scores of one archive by concept, and whether its neighbours are certain (no tie at the L-th place).

        image (D,) float64: unit; anchor: its row in the index, -1 for none; own: the concepts of its caption.
        """
        expansion, ranking = self._config.archive.expansion, self._config.archive.ranking_name
        neighbours, certain = self._neighbours(image, anchor)
        found = {row: self._indexed.get(row) for row in neighbours}
        mentions = {row: self._matcher.match(caption) for row, (_, caption) in found.items()}
        if expansion == "caption":
            archive = set(own)
        elif expansion == "tagging":
            nearest = np.argsort(-(self._texts @ image), kind="stable")
            archive = set(nearest[: self._config.retrieval.neighbors].tolist())
        else:
            archive = {c for row in mentions for c in mentions[row]}
        similarity = {c: self._similarity(c, image) for c in archive}
        references: dict[int, list[float]] = {}
        for c in archive:
            others = [self._similarity(c, found[row][0]) for row in mentions if c in mentions[row] and row != anchor]
            said = c in mentions.get(anchor, own if expansion == "caption" else [])
            times = 2 if self._config.archive.anchor_twice and said else 1
            references[c] = others + [similarity[c]] * times
        largest = max((value for c in archive for value in references[c]), default=1.0)
        formulas: dict[str, Callable[[int], float]] = {
            "cocu": lambda c: similarity[c] / largest + similarity[c] / (sum(references[c]) / len(references[c])),
            "similarity": lambda c: similarity[c],
            "support": lambda c: sum(c in said for said in mentions.values()) + (expansion == "caption"),
            "calibrated": lambda c: (similarity[c] - self._calibration[c][0]) / self._calibration[c][1],
            "none": lambda c: 1,
        }
        return {self._vocabulary.concepts[c]: float(formulas[ranking](c)) for c in archive}, certain

    def _similarity(self, concept: int, image: np.ndarray) -> float:
        return max(float(self._texts[concept] @ image), FLOOR)

    def _neighbours(self, image: np.ndarray, anchor: int) -> tuple[list[int], bool]:
        config, kind = self._config.retrieval, INDEXES.get(self._config.archive.expansion)
        if kind is None:
            return [], True
        index = open_searched(self._outputs).faiss
        cosines, ids = index.search(image[None].astype(np.float32), config.neighbors + 2)
        ranked = [(int(row), float(cosine)) for row, cosine in zip(ids[0], cosines[0], strict=True) if row >= 0]
        if anchor >= 0 and not config.include_anchor:
            ranked = [(row, cosine) for row, cosine in ranked if row != anchor]
        elif anchor >= 0 and kind == "image":
            ranked = [(anchor, 1.0)] + [(row, cosine) for row, cosine in ranked if row != anchor]
        chosen, rest = ranked[: config.neighbors], ranked[config.neighbors :]
        return [row for row, _ in chosen], not rest or chosen[-1][1] - rest[0][1] > 1e-5


class _Rows:
    """Embeddings and captions of single rows of an index, read from the shards as they are needed."""

    def __init__(self, source: Run) -> None:
        self._paths = [source.of_shard("embeddings", shard) for shard in source.shards]
        self._ends = np.cumsum([row_count(path) for path in self._paths])
        self._tables: dict[int, pa.Table] = {}

    def get(self, row: int) -> tuple[np.ndarray, str]:
        """Unit embedding (D,) float64 and caption of a row of the index."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        if number not in self._tables:
            if len(self._tables) == SHARDS_IN_MEMORY:
                self._tables.clear()
            with open_parquet(self._paths[number]) as file:
                self._tables[number] = file.read(["caption", "embedding"])
        table = self._tables[number].slice(row - (int(self._ends[number - 1]) if number else 0), 1)
        return embedding_matrix(table["embedding"])[0].astype(np.float64), table["caption"][0].as_py()
