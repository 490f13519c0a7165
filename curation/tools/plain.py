"""One archive at a time, straight from docs/method.md §2 and §3: slow, plain Python, to check the fast way by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from curation.base.embeddings import embedding_matrix
from curation.base.parquet import open_parquet, row_count
from curation.expansion import EXPANSIONS, PlainAnchor
from curation.ranking import RANKINGS, PlainEntry
from curation.run.captions import caption_column
from curation.run.curator import read_calibration
from curation.run.indexes import check_retrieved, open_representatives, open_searched
from curation.run.run import Run
from curation.run.stages.nouns import noun_positions
from curation.vocabulary import read_vocabulary

FLOOR = 1e-4
SHARDS_IN_MEMORY = 8

IndexedCaption = tuple[
    str, list[str], Any
]  # text, the fields that have it, and positions of its nouns where they are known


class PlainCurator:
    """Computes single archives of a finished run from its embeddings, captions and vocabulary."""

    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.config
        self._vocabulary = read_vocabulary(run.vocabulary)
        self._texts = self._vocabulary.embeddings.astype(np.float64)
        self._matcher = self._vocabulary.matcher()
        self._calibration = read_calibration(run)
        self._indexed = _IndexedRows(run, check_retrieved(run))
        self._representatives = open_representatives(run)

    def archive(self, image: np.ndarray, row: int, caption: list[int]) -> tuple[dict[str, float], bool]:
        """The scores of one archive by concept, and whether its neighbours are certain (no tie at the L-th place).

        image (D,) float64: unit; row: the anchor's in the index, -1 for none; caption: the concepts of its caption.
        """
        config = self._config
        neighbours, certain = self._neighbours(image, row)
        indexed = {neighbour: self._indexed.get(neighbour) for neighbour in neighbours}
        retrieved = {j: {c for said in self._said(captions) for c in said} for j, (_, captions) in indexed.items()}
        anchor = PlainAnchor(image, row, set(caption), retrieved, self._texts, config.retrieval.neighbors)
        concepts, captions = EXPANSIONS[config.archive.expansion].plain(anchor)

        similarity = {c: self._similarity(c, image) for c in concepts}
        references: dict[int, list[float]] = {}
        for c in concepts:
            others = [j for j, mentioned in captions.items() if c in mentioned and j != row]
            times = 2 if config.archive.anchor_twice and c in captions.get(row, ()) else 1
            references[c] = [self._similarity(c, indexed[j][0]) for j in others] + [similarity[c]] * times

        largest = max((value for c in concepts for value in references[c]), default=1.0)
        score = RANKINGS[config.archive.ranking_name].plain
        scores = {}
        for c in concepts:
            support = sum(c in mentioned for mentioned in captions.values())
            mean, deviation = self._calibration[c]
            scores[self._vocabulary.concepts[c]] = float(
                score(PlainEntry(similarity[c], references[c], largest, support, (mean, deviation)))
            )
        return scores, certain

    def sources(self, row: int, image: np.ndarray) -> dict[str, set[str]]:
        """For each concept that captions of the neighbours of an anchor mention, the fields whose captions do so.

        row: the anchor's in the index, -1 for none; image (D,) float64.
        """
        fields: dict[str, set[str]] = {}
        for neighbour in self._neighbours(image, row)[0]:
            _, captions = self._indexed.get(neighbour)
            for (_, names, _), said in zip(captions, self._said(captions), strict=True):
                for concept in said:
                    fields.setdefault(self._vocabulary.concepts[concept], set()).update(names)
        return fields

    def _said(self, captions: list[IndexedCaption]) -> list[list[int]]:
        """The concepts of each of an image's captions."""
        return [self._matcher.match(text, nouns) for text, _, nouns in captions]

    def _similarity(self, concept: int, image: np.ndarray) -> float:
        return max(float(self._texts[concept] @ image), FLOOR)

    def _neighbours(self, image: np.ndarray, row: int) -> tuple[list[int], bool]:
        config = self._config.retrieval
        retrieves = EXPANSIONS[self._config.archive.expansion].retrieves
        if retrieves is None:
            return [], True

        index, query = open_searched(self._run).faiss, image[None].astype(np.float32)
        if self._representatives is not None:
            return self._different(index.search(query, index.ntotal), row if retrieves == "image" else -1)
        cosines, ids = index.search(query, config.neighbors + 2)
        ranked = [(int(j), float(cosine)) for j, cosine in zip(ids[0], cosines[0], strict=True) if j >= 0]
        if row >= 0 and not config.include_anchor:
            ranked = [(j, cosine) for j, cosine in ranked if j != row]
        elif row >= 0 and retrieves == "image":
            ranked = [(row, 1.0)] + [(j, cosine) for j, cosine in ranked if j != row]
        chosen, rest = ranked[: config.neighbors], ranked[config.neighbors :]
        return [j for j, _ in chosen], not rest or chosen[-1][1] - rest[0][1] > 1e-5

    def _different(self, results: tuple[np.ndarray, np.ndarray], row: int) -> tuple[list[int], bool]:
        """The neighbours where each group of duplicates counts once, as its representative, and the anchor's not at all."""
        config, groups = self._config.retrieval, self._representatives
        assert groups is not None
        nearest: dict[int, float] = {}
        for cosine, j in sorted(zip(-results[0][0], results[1][0].tolist(), strict=True)):
            if j >= 0 and (row < 0 or groups[j] != groups[row]):
                nearest.setdefault(int(groups[j]), -float(cosine))
        ranked = list(nearest.items())
        if row >= 0 and config.include_anchor:
            ranked.insert(0, (row, 1.0))
        chosen, rest = ranked[: config.neighbors], ranked[config.neighbors :]
        return [j for j, _ in chosen], not rest or chosen[-1][1] - rest[0][1] > 1e-5


class _IndexedRows:
    """Embeddings and captions of single rows of an index, read from the shards as they are needed."""

    def __init__(self, run: Run, source: Run) -> None:
        self._run, self._source = run, source
        self._paths = source.of_shards("embeddings")
        self._ends = np.cumsum([row_count(path) for path in self._paths])
        self._shards: dict[int, tuple[pa.Table, list[Any] | None]] = {}

    def get(self, row: int) -> tuple[np.ndarray, list[IndexedCaption]]:
        """Unit embedding (D,) float64, and captions, of a row of the index."""
        number = int(np.searchsorted(self._ends, row, side="right"))
        if number not in self._shards:
            if len(self._shards) == SHARDS_IN_MEMORY:
                self._shards.clear()
            with open_parquet(self._paths[number]) as file:
                table = file.read([caption_column(self._source.config), "embedding"])
            self._shards[number] = table, noun_positions(self._run, self._source, self._source.shards[number])
        table, nouns = self._shards[number]
        at = row - (int(self._ends[number - 1]) if number else 0)
        sliced = table.slice(at, 1)
        image = embedding_matrix(sliced["embedding"])[0].astype(np.float64)
        config = self._source.config
        own = nouns[at] if nouns is not None else None
        if not config.captions:
            return image, [(sliced["caption"][0].as_py(), config.caption_sources, own)]
        captions = sliced["captions"][0].as_py()
        each = own if own is not None else [None] * len(captions)
        return image, [(item["text"], item["sources"], tagged) for item, tagged in zip(captions, each, strict=True)]
