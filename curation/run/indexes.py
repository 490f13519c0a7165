"""The indexes of a run: the names of their files and stages, and the one that anchors are looked up in.

A run may have an index of its images (``image``) and, for text-driven expansion, one of its captions (``text``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from curation.base import files
from curation.base.devices import find_device
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import blocks
from curation.config import RetrievalConfig
from curation.expansion import EXPANSIONS
from curation.index.open import SearchIndex, open_index
from curation.run.records import Reader, Record, read_record
from curation.run.run import Run
from curation.samples import Shard


@dataclass(frozen=True)
class VectorIndex:
    """One of the indexes of a run: where its vectors come from, and the names of its stages and files."""

    name: str  # of the file
    prefix: str  # of the stages
    folder: str  # of the vectors
    embedded_by: str  # the stage that wrote them

    def stage(self, verb: str) -> str:
        """The name of a stage: "train index", "train text index", ..."""
        return f"{verb} {self.prefix}index".strip()

    def trained(self, run: Run) -> str:
        """The index before any vector is in it."""
        return run.path("index", f"{self.name}.trained.faiss")

    def codes(self, run: Run, shard: Shard) -> str:
        """The codes of one shard's vectors, until they are in the index."""
        return run.of_shard(f"{self.name}-codes", shard)

    def vectors(self, run: Run) -> Iterator[np.ndarray]:
        """Blocks (n, D) of unit vectors, fp32, in the order of the shards."""
        for path in run.of_shards(self.folder):
            for block in blocks(path, ["embedding"]):
                yield embedding_matrix(block["embedding"])


INDEXES = {
    "image": VectorIndex("image", "", "embeddings", "embed"),
    "text": VectorIndex("text", "text ", "captions", "captions"),
}


def searched_index(run: Run, read: Reader = read_record) -> tuple[Record, str | None]:
    """The record of the index that anchors are looked up in, this run's or that of ``retrieval.data``, and the search
    parameters to use."""
    kind = INDEXES[EXPANSIONS[run.config.archive.expansion].retrieves or "image"]
    index_json = files.join(run.indexed, "index", "index.json")
    merged = read(index_json, kind.stage(""))
    tuned: str | None = read(index_json, kind.stage("tune"))["search"]
    return merged, run.config.retrieval.search or tuned


def open_searched(run: Run) -> SearchIndex:
    """The index that anchors are looked up in, with its search parameters set."""
    kind = INDEXES[EXPANSIONS[run.config.archive.expansion].retrieves or "image"]
    merged, search = searched_index(run)
    return open_index(run.index(kind.name), search, merged["bytes"], search_device(run.config.retrieval))


def first_row(run: Run, shard: Shard) -> int | None:
    """The row of the index that holds the first sample of a shard; None where the index is another run's."""
    if run.config.retrieval.data:
        return None
    rows = 0
    for item in read_record(run.index_json, "mentions")["shards"]:
        if item["name"] == shard.name:
            return rows
        rows += int(item["rows"])
    raise KeyError(f"{shard.name} is not in {run.index_json}")


def search_device(config: RetrievalConfig) -> str:
    """The device to search on. Raises CocuError for a GPU that is asked for and absent."""
    return find_device(config.device, "retrieval.device")
