"""All that a block of anchors needs to become archives: vocabulary, mentions, index, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation import clustering, ranking
from curation.base.errors import CocuError
from curation.base.parquet import read_columns
from curation.base.ragged import Ragged
from curation.config import CurationConfig
from curation.expansion import EXPANSIONS, Anchors, Expansion, ExpansionMethod
from curation.index.duplicates import collapse
from curation.index.graph import look_up
from curation.index.neighbours import choose_neighbours, nearest
from curation.index.open import SearchIndex
from curation.mentions import Mentions, open_mentions
from curation.ranking import RANKINGS
from curation.run.indexes import graph_size, open_graph, open_representatives, open_searched
from curation.run.run import Run
from curation.vocabulary import Vocabulary, read_vocabulary


@dataclass(frozen=True)
class Archives:
    """The archives of a block of B anchors, sorted: P entries in all."""

    concepts: Ragged  # B lists of concept ids, int32, in descending score
    score: np.ndarray  # (P,) float32
    global_: np.ndarray  # (P,) float32
    local: np.ndarray  # (P,) float32
    cluster: np.ndarray  # (P,) int16
    support: np.ndarray  # (P,) int64
    sources: np.ndarray | None = None  # (P,) int32: whose captions count as support, as bits, where these are kept

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays that :func:`curation.archive.archive_batch` takes, by name."""
        return {
            "offsets": self.concepts.offsets,
            "concepts": self.concepts.values,
            "score": self.score,
            "global": self.global_,
            "local": self.local,
            "cluster": self.cluster,
            "support": self.support,
        }


@dataclass(frozen=True)
class Curator:
    """Turns blocks of anchors into archives. Use :func:`open_curator`."""

    config: CurationConfig
    vocabulary: Vocabulary
    mentions: Mentions
    calibration: np.ndarray | None  # (V, 2), for a ranking that is calibrated
    index: SearchIndex | None  # that neighbours are looked up in; None where nothing is retrieved
    graph: np.ndarray | None = None  # the neighbours of the run's own images, where they were all searched before
    representatives: np.ndarray | None = None  # (N,) int64: of the images of the index, where duplicates count once

    @property
    def method(self) -> ExpansionMethod:
        """The expansion of the configuration."""
        return EXPANSIONS[self.config.archive.expansion]

    def neighbours(self, images: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R_i, (B, L) int64 rows of the index, and cosines (B, L), for images (B, D) that are its rows ``rows`` (B,)."""
        config = self.config.retrieval
        if self.method.retrieves == "text" and config.include_anchor:
            # An image is always nearest to itself, but not to its own caption, which has to earn its place.
            rows = np.full_like(rows, -1)
        assert self.index is not None  # this expansion retrieves
        if self.graph is not None and (rows >= 0).all():
            ids, cosines = look_up(self.graph, rows)
        elif self.representatives is not None:
            cosines, ids = self.index.search(images, graph_size(config))
        else:
            return nearest(self.index, images, rows, config.neighbors, config.include_anchor)
        if self.representatives is None:
            return choose_neighbours(ids, cosines, rows, config.neighbors, config.include_anchor)
        return self._different(images, rows, ids, cosines)

    def _different(
        self, images: np.ndarray, rows: np.ndarray, ids: np.ndarray, cosines: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """R_i of results (B, K) in which each group of duplicates counts once, searched for further where that leaves too
        few."""
        config, groups = self.config.retrieval, self.representatives
        assert groups is not None and self.index is not None
        size, include = config.neighbors, config.include_anchor
        chosen, likeness = choose_neighbours(collapse(ids, cosines, rows, groups), cosines, rows, size, include)
        few = np.flatnonzero((chosen[:, -1] < 0) & (ids[:, -1] >= 0))
        if len(few):
            others = self.index.among(groups == np.arange(len(groups)))
            cosines, ids = others.search(images[few], size + 2)  # its representative, and one to be replaced by itself
            ids = collapse(ids, cosines, rows[few], groups)
            chosen[few], likeness[few] = choose_neighbours(ids, cosines, rows[few], size, include)
        return chosen, likeness

    def expand(
        self, images: np.ndarray, rows: np.ndarray, captions: Ragged, sources: np.ndarray | None = None
    ) -> Expansion:
        """The anchors' concepts by the configured expansion; captions: the concepts of their own captions, with the
        sources of each, as bits, where these are kept."""
        retrieved = self.neighbours(images, rows)[0] if self.method.retrieves else None
        anchors = Anchors(images, rows, captions, retrieved, sources)
        return self.method.expand(anchors, self.mentions, self.vocabulary.embeddings, self.config.retrieval.neighbors)

    def curate(
        self, images: np.ndarray, rows: np.ndarray, captions: Ragged, sources: np.ndarray | None = None
    ) -> Archives:
        """The archives of a block of anchors.

        images (B, D): unit rows; rows (B,) int64: in the index, -1 for none; captions: B lists of concept ids, and the
        sources (Q,) int32 of these, as bits, where they are kept.
        """
        config, texts = self.config.archive, self.vocabulary.embeddings
        expansion = self.expand(images, rows, captions, sources)
        similarity = ranking.anchor_similarities(images, texts, expansion.concepts)
        relevance = ranking.rank(expansion, similarity, config.ranking_name, config.anchor_twice, self.calibration)

        order = ranking.descending(expansion.concepts, relevance.score)
        concepts = expansion.concepts.with_values(expansion.concepts.values[order])
        if config.clusters:
            clusters = clustering.cluster_archives(concepts, texts, config.seed)
        else:
            clusters = clustering.single_clusters(concepts)
        return Archives(
            concepts=concepts,
            score=relevance.score[order],
            global_=relevance.global_[order],
            local=relevance.local[order],
            cluster=clusters,
            support=expansion.support[order],
            sources=None if expansion.sources is None else expansion.sources[order],
        )


def open_curator(run: Run) -> Curator:
    """Open what the stages before have written."""
    config = run.config.archive
    curator = Curator(
        run.config,
        read_vocabulary(run.vocabulary),
        open_mentions(run.mentions),
        read_calibration(run) if RANKINGS[config.ranking_name].calibrated else None,
        open_searched(run) if EXPANSIONS[config.expansion].retrieves else None,
        open_graph(run),
        open_representatives(run),
    )
    _check_together(curator, run)
    return curator


def _check_together(curator: Curator, run: Run) -> None:
    """Raises CocuError where files that belong together do not: another program may have written one of them."""
    concepts, width = curator.vocabulary.embeddings.shape
    if curator.config.captions and curator.mentions.sources is None:
        raise CocuError(f"{run.mentions}: does not say which captions mention what; run cocu curate again")
    if curator.mentions.width > concepts:
        raise CocuError(f"{run.mentions}: names concepts that {run.vocabulary} lacks; run cocu curate again")
    if curator.calibration is not None and len(curator.calibration) != concepts:
        raise CocuError(f"{run.calibration}: not of the concepts of {run.vocabulary}; run cocu curate again")
    if curator.index is None:
        return
    if curator.index.rows != len(curator.mentions):
        raise CocuError(
            f"{run.mentions}: {len(curator.mentions):,} rows for the {curator.index.rows:,} vectors of the index in "
            f"{run.indexed}; run cocu curate again"
        )
    if curator.index.faiss.d != width:
        raise CocuError(f"{run.vocabulary}: embeddings of {width} dimensions, but {curator.index.faiss.d} in the index")


def read_calibration(run: Run) -> np.ndarray:
    """Mean and standard deviation (V, 2) of every concept over the random sample of images."""
    table = read_columns(run.calibration, {"mean": pa.float64(), "deviation": pa.float64()})
    return np.stack([table["mean"].to_numpy(), table["deviation"].to_numpy()], axis=1)
