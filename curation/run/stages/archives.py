"""From embeddings and index to ``archives/<shard>.parquet``: expansion, ranking and clusters of every anchor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation import clustering, expansion, ranking
from curation.archive import SCHEMA, archive_batch
from curation.archive.entries import is_omitted
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import FORMAT, blocks, open_parquet, parquet_writer
from curation.base.ragged import row_numbers
from curation.index.neighbours import nearest
from curation.index.open import SearchIndex, open_index
from curation.mentions import Mentions, open_mentions
from curation.run.run import Run, record
from curation.run.stages.index import CAPTIONS, IMAGES, search_device
from curation.run.stages.work import Work, csr, fingerprint_of, vocabulary_content
from curation.samples import Shard
from curation.vocabulary import Vocabulary, read_vocabulary

BLOCK = 16384  # anchors that are looked up, ranked and clustered at once; the search gains from many


def archive(run: Run, shard: Shard) -> None:
    """Write the concept archives of a shard."""
    config, path, source = run.config, run.of_shard("archives", shard), run.of_shard("embeddings", shard)
    notes = files.read_json(run.index_json)
    searched = searched_index(run)
    parameters = asdict(config.archive) | {
        "neighbors": config.retrieval.neighbors,
        "include_anchor": config.retrieval.include_anchor,
        "search": searched["search"],
    }
    inputs = [
        fingerprint_of(source, "embed"),
        vocabulary_content(run.vocabulary),
        notes["mentions"]["fingerprint"],
        searched["fingerprint"],
    ]
    if config.archive.ranking_name == "calibrated":
        inputs.append(fingerprint_of(run.calibration, "vocabulary"))
    work = Work(run, "archive", path, record(parameters, inputs), shard)
    if work.fresh:
        return
    curator = open_curator(run)
    names = pa.array(curator.vocabulary.concepts, pa.string())
    row = first_row(run, shard)
    totals = {"archive_concepts": 0, "gained": 0, "empty": 0}
    metadata = {"format": FORMAT, "data": config.name, "parameters": parameters}
    ending: dict[str, Any] = {}
    written: list[pa.RecordBatch] = []
    with parquet_writer(path, SCHEMA, metadata, ending) as writer:
        for block in blocks(source, ["key", "caption", "concepts", "embedding"], BLOCK):
            images = embedding_matrix(block["embedding"])
            anchors = np.full(len(block), -1) if row is None else np.arange(row, row + len(block))
            mentioned = csr(block["concepts"])
            archives = curator.curate(images, anchors, *mentioned)
            written.append(archive_batch(block["key"], block["caption"], names, **archives))
            row = None if row is None else row + len(block)
            work.advance(len(block))
            for name, count in count_gains(*mentioned, archives["offsets"], archives["concepts"]).items():
                totals[name] += count
        # One row group: Arrow's plain readers cannot read a dictionary inside a struct over several of them.
        writer.write_table(pa.Table.from_batches(written, SCHEMA))
        ending["archive"] = work.record | {"counts": totals}
    work.done(**totals)


@dataclass(frozen=True)
class Curator:
    """All that a block of anchors needs to become archives."""

    run: Run
    vocabulary: Vocabulary
    mentions: Mentions
    calibration: np.ndarray | None  # (V, 2), for the calibrated ranking
    index: SearchIndex | None  # of images, or of captions for text-driven expansion; None where nothing is retrieved

    def neighbours(self, images: np.ndarray, anchors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """R_i, (B, L) int64 rows of the index, and cosines (B, L), for images (B, D) that are rows ``anchors`` (B,)."""
        config = self.run.config.retrieval
        if self.run.config.archive.expansion == "text" and config.include_anchor:
            # An image is always nearest to itself, but not to its own caption, which has to earn its place.
            anchors = np.full_like(anchors, -1)
        assert self.index is not None  # these expansions retrieve
        return nearest(self.index, images, anchors, config.neighbors, config.include_anchor)

    def expand(
        self, images: np.ndarray, anchors: np.ndarray, offsets: np.ndarray, concepts: np.ndarray
    ) -> expansion.Expansion:
        """The anchors' concepts by the configured expansion; offsets and concepts: those of their own captions."""
        config = self.run.config
        if config.archive.expansion == "caption":
            return expansion.expand_listed(offsets, concepts, support=1)
        if config.archive.expansion == "tagging":
            tags = expansion.nearest_concepts(images, self.vocabulary.embeddings, config.retrieval.neighbors)
            return expansion.expand_listed(*tags, support=0)
        return expansion.expand_retrieved(self.neighbours(images, anchors)[0], anchors, self.mentions)

    def curate(
        self, images: np.ndarray, anchors: np.ndarray, offsets: np.ndarray, concepts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The archives of a block, sorted: the arrays that :func:`curation.archive.archive_batch` takes."""
        config, texts = self.run.config.archive, self.vocabulary.embeddings
        expanded = self.expand(images, anchors, offsets, concepts)
        similarity = ranking.anchor_similarities(images, texts, expanded)
        scores = ranking.rank(expanded, similarity, config.ranking_name, config.anchor_twice, self.calibration)
        order = ranking.descending(expanded, scores.score)
        ranked = expanded.concepts[order]
        if config.clusters:
            clusters = clustering.cluster_archives(expanded.offsets, ranked, texts, config.seed)
        else:
            clusters = clustering.single_clusters(expanded.offsets)
        return {
            "offsets": expanded.offsets,
            "concepts": ranked,
            "score": scores.score[order],
            "global": scores.global_[order],
            "local": scores.local[order],
            "cluster": clusters,
            "support": expanded.support[order],
        }


def open_curator(run: Run) -> Curator:
    """Open what the stages before have written."""
    config = run.config
    retrieves = config.archive.expansion in ("vision", "text")
    return Curator(
        run,
        read_vocabulary(run.vocabulary),
        open_mentions(run.mentions),
        read_calibration(run) if config.archive.ranking_name == "calibrated" else None,
        open_searched(run) if retrieves else None,
    )


def open_searched(run: Run) -> SearchIndex:
    """The index that anchors are looked up in, with its search parameters set."""
    found = searched_index(run)
    return open_index(found["path"], found["search"], found["bytes"], search_device(run.config.retrieval))


def searched_index(run: Run) -> dict[str, Any]:
    """The index that anchors are looked up in, this run's or that of ``retrieval.data``: its note, path and search."""
    config = run.config
    kind = CAPTIONS if config.archive.expansion == "text" else IMAGES
    notes = files.read_json(files.join(config.retrieval.data or run.folder, "index", "index.json"))
    tuned = notes[kind.stage("tune")]["search"]
    built: dict[str, Any] = notes[kind.stage("")]
    return built | {"path": run.index(kind.name), "search": config.retrieval.search or tuned}


def read_calibration(run: Run) -> np.ndarray:
    """Mean and standard deviation (V, 2) of every concept over the random sample of images."""
    with open_parquet(run.calibration) as file:
        table = file.read()
    return np.stack([table["mean"].to_numpy(), table["deviation"].to_numpy()], axis=1)


def first_row(run: Run, shard: Shard) -> int | None:
    """The row of the index that holds the first sample of a shard; None where the index is another run's."""
    if run.config.retrieval.data:
        return None
    rows = 0
    for item in files.read_json(run.index_json)["mentions"]["shards"]:
        if item["name"] == shard.name:
            return rows
        rows += item["rows"]
    raise KeyError(f"{shard.name} is not in {run.index_json}")


def count_gains(
    caption_offsets: np.ndarray, caption_concepts: np.ndarray, offsets: np.ndarray, concepts: np.ndarray
) -> dict[str, int]:
    """How many concepts the archives of a block have, how many archives have one that the caption lacks, how many none."""
    gained = row_numbers(offsets)[is_omitted(offsets, concepts, caption_offsets, caption_concepts)]
    empty = np.diff(offsets) == 0
    return {"archive_concepts": len(concepts), "gained": len(np.unique(gained)), "empty": int(empty.sum())}
