"""The indexes of a run: the names of their files and stages, and the one that anchors are looked up in.

A run may have an index of its images (``image``) and, for text-driven expansion, one of its captions (``text``).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.base import files, gpus
from curation.base.devices import find_device
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError, quoted
from curation.base.parquet import blocks, row_count
from curation.config import RetrievalConfig
from curation.expansion import EXPANSIONS
from curation.index.duplicates import chosen_rows, open_duplicates
from curation.index.graph import EXTRA, SPARE, read_graph
from curation.index.open import SearchIndex, open_index
from curation.run.records import Reader, Record, read_record, recorded
from curation.run.run import Run, indexed_run
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
    tuned = read(index_json, kind.stage("tune")).get("search")
    if not isinstance(tuned, str | None):
        raise CocuError(f"{index_json}: search: {quoted(tuned)} is not a text; delete it and run again")
    return merged, run.config.retrieval.search or tuned


def has_graph(run: Run) -> bool:
    """Whether all images of a run are searched together: with ``auto`` where its own index is not exact, and wherever their
    duplicates count once."""
    retrieval = run.config.retrieval
    if has_duplicates(run):
        return True
    if retrieval.index != "auto" or retrieval.search or retrieval.data:
        return False
    if EXPANSIONS[run.config.archive.expansion].retrieves != "image":
        return False
    # Not by a reader: where this is a forecast and the index is yet to be chosen, what it was before says more.
    trained = recorded(run.index_json, INDEXES["image"].stage("train"))
    return bool(trained.get("parameters", {}).get("factory", "Flat") != "Flat")


def graph_size(config: RetrievalConfig) -> int:
    """K, the neighbours of every image that a graph holds."""
    return config.neighbors + EXTRA + (min(config.neighbors, SPARE) if config.counts_once else 0)


def open_graph(run: Run) -> np.ndarray | None:
    """The graph of all neighbours, mapped into memory: ids (N, K) and cosines (N, K); None where there is none."""
    indexed, written = (recorded(run.index_json, stage) for stage in (INDEXES["image"].stage(""), "graph"))
    if not has_graph(run) or not written:  # a run of an earlier version has none
        return None
    if EXPANSIONS[run.config.archive.expansion].retrieves != "image":  # it is there for the duplicates only
        return None
    size = whole_number(written, "bytes", run.index_json)
    rows = whole_number(indexed, "rows", run.index_json)
    return read_graph(run.graph, size, rows, run.config.retrieval.neighbors + (not run.config.retrieval.include_anchor))


def has_duplicates(run: Run) -> bool:
    """Whether a run looks for near-identical images among its own: those of ``retrieval.data`` are that run's."""
    retrieval = run.config.retrieval
    retrieves = EXPANSIONS[run.config.archive.expansion].retrieves
    return retrieval.counts_once and not retrieval.data and retrieves is not None


def duplicates_record(run: Run, read: Reader = read_record) -> Record:
    """The record of the duplicates among the images that are retrieved; empty where all of them count."""
    if has_duplicates(run):
        return read(run.index_json, "duplicates")
    if not (run.config.retrieval.counts_once and run.config.retrieval.data):
        return {}
    source = indexed_run(run)
    return read(source.index_json, "duplicates") if has_duplicates(source) else {}


def read_duplicates(run: Run) -> pa.Table | None:
    """The duplicates among the images that are retrieved, mapped into memory; None where all of them count."""
    written = duplicates_record(run)
    if not written:
        return None
    path = files.join(run.indexed, "index", "index.json")
    size, rows = (whole_number(written, name, path) for name in ("bytes", "rows"))
    return open_duplicates(files.join(run.indexed, "index", "duplicates.arrow"), size, rows)


def open_representatives(run: Run) -> np.ndarray | None:
    """The representative (N,) int64 of every image that may be retrieved; None where all of them count."""
    table = read_duplicates(run)
    return None if table is None else chosen_rows(table, duplicates_record(run)["rows"])


def open_searched(run: Run) -> SearchIndex:
    """The index that anchors are looked up in, with its search parameters set."""
    kind = INDEXES[EXPANSIONS[run.config.archive.expansion].retrieves or "image"]
    merged, search = searched_index(run)
    return _open(run, kind, merged, search)


def open_images(run: Run) -> SearchIndex | None:
    """The index of a run's own images; None where it has none, because it retrieves from another run."""
    if run.config.retrieval.data:
        return None
    kind = INDEXES["image"]
    tuned = read_record(run.index_json, kind.stage("tune")).get("search")
    return _open(run, kind, read_record(run.index_json, kind.stage("")), run.config.retrieval.search or tuned)


def _open(run: Run, kind: VectorIndex, merged: Record, search: str | None) -> SearchIndex:
    path = files.join(run.indexed, "index", "index.json")
    size, *shape = (whole_number(merged, name, path) for name in ("bytes", "rows", "dimension"))
    return open_index(run.index(kind.name), search, size, own_search_device(run.config.retrieval), (shape[0], shape[1]))


def whole_number(record: Record, name: str, path: str) -> int:
    """A number that index.json notes. Raises CocuError for anything else."""
    value = record.get(name)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise CocuError(f"{path}: {name}: {quoted(value)} is not a count; delete it and run again")
    return value


def indexed_shards(run: Run) -> list[tuple[str, int]]:
    """The shards whose images are indexed, in the order of the index: name and rows. Raises CocuError."""
    items = read_record(run.index_json, "mentions").get("shards")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise CocuError(f"{run.index_json}: mentions names no shards; delete it and run again")
    return [(str(item.get("name")), whole_number(item, "rows", run.index_json)) for item in items]


def check_retrieved(run: Run) -> Run:
    """The run whose images are retrieved, where its shards are still those that were indexed.

    Raises CocuError where rows of the index would be taken for other samples: the run of ``retrieval.data`` was made again,
    or files of different runs lie in one folder.
    """
    source = indexed_run(run)
    paths = source.of_shards("embeddings")
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(row_count, paths))
    names = [shard.name for shard in source.shards]
    if indexed_shards(run) != list(zip(names, rows, strict=True)):
        raise CocuError(
            f"{source.folder}: its shards are no longer those that {run.folder} was made with; run cocu curate again"
        )

    if source is not run:
        with ThreadPoolExecutor(16) as pool:
            rows = list(pool.map(row_count, run.of_shards("embeddings")))
    with ThreadPoolExecutor(16) as pool:
        archived = list(pool.map(row_count, run.of_shards("archives")))
    for shard, count, written in zip(run.shards, rows, archived, strict=True):
        if count != written:
            raise CocuError(
                f"{run.of_shard('archives', shard)}: {written:,} rows for the {count:,} of "
                f"{run.of_shard('embeddings', shard)}; run cocu curate again"
            )
    return source


def first_row(run: Run, shard: Shard) -> int | None:
    """The row of the index that holds the first sample of a shard; None where the index is another run's."""
    if run.config.retrieval.data:
        return None
    rows = 0
    for name, count in indexed_shards(run):
        if name == shard.name:
            return rows
        rows += count
    raise CocuError(f"{run.index_json}: has no shard {shard.name}; run cocu curate again")


def search_device(config: RetrievalConfig) -> str:
    """The device to search on. Raises CocuError for a GPU that is asked for and absent."""
    return find_device(config.device, "retrieval.device")


def own_search_device(config: RetrievalConfig) -> str:
    """The device that this process searches on: of several GPUs its own. Raises CocuError as search_device does."""
    if config.device in ("auto", "cuda"):
        gpus.take_instance()
    return gpus.own_device(search_device(config))
