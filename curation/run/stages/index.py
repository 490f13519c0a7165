"""From embeddings to ``index/``: trained on a sample, filled shard by shard, merged, and tuned to the recall.

A *kind* of index holds images (``image``) or, for text-driven expansion, captions (``text``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from curation.base import files
from curation.base.devices import find_device
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import ROW_GROUP, blocks, open_parquet, parquet_writer, row_count
from curation.config import RetrievalConfig
from curation.index import build
from curation.index.choose import TRAINING_ROWS, choose_index, parse_bytes
from curation.index.open import SearchIndex, effort, open_index, set_search
from curation.index.recall import exact_neighbours, recall, tune
from curation.run.run import Run, record, recorded
from curation.run.stages.work import Work, fingerprint_of, nothing_to_do
from curation.samples import Shard

QUERIES = 1000  # held out to measure recall


@dataclass(frozen=True)
class Kind:
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
        for shard in run.shards:
            for block in blocks(run.of_shard(self.folder, shard), ["embedding"], ROW_GROUP):
                yield embedding_matrix(block["embedding"])


IMAGES = Kind("image", "", "embeddings", "embed")
CAPTIONS = Kind("text", "text ", "captions", "captions")


def train(run: Run, kind: Kind) -> None:
    """Choose the index and train it on a random sample: ``index/<kind>.trained.faiss``."""
    config, path = run.config.retrieval, kind.trained(run)
    paths = [run.of_shard(kind.folder, shard) for shard in run.shards]
    rows = sum(row_count(source) for source in paths)
    with open_parquet(paths[0]) as file:
        dimension = file.schema_arrow.field("embedding").type.list_size
    factory, expected = config.index, None
    if config.index == "auto":
        gpu = config.device.startswith("cuda")
        factory, _, expected = choose_index(rows, dimension, parse_bytes(config.memory), config.recall, gpu)
    empty = build.empty_index(factory, dimension)
    inverted = faiss.try_extract_index_ivf(empty)
    size = config.train_sample or TRAINING_ROWS * (inverted.nlist if inverted else 4096)
    parameters = {"factory": factory} | ({} if empty.is_trained else {"train_sample": size})
    new = record(parameters, [fingerprint_of(source, kind.embedded_by) for source in paths])
    work = Work(run, kind.stage("train"), run.index_json, new, whole=is_whole(run, kind.stage("train"), path))
    if work.fresh:
        return
    if not empty.is_trained:
        trained, _ = build.sample_rows(rows, size, QUERIES)
        build.train(empty, build.pick(kind.vectors(run), trained), factory)
        work.advance(len(trained))
    set_search(empty, config.search)  # a wrong parameter is found now rather than in every shard
    build.write_index(empty, path)
    notes = {"rows": rows, "dimension": dimension, "in_parts": build.fills_in_parts(empty), "expected_bytes": expected}
    note(run, kind.stage("train"), new | notes | {"bytes": files.version(path)["size"]})
    work.done()


def encode(run: Run, shard: Shard, kind: Kind) -> None:
    """Encode a shard's vectors for the index; nothing where the index takes them as they are, or has them already."""
    trained, path, source = _trained(run, kind), kind.codes(run, shard), run.of_shard(kind.folder, shard)
    built = recorded(run.index_json, kind.stage(""))
    held = built.get("trained") == trained["fingerprint"] and is_whole(run, kind.stage(""), run.index(kind.name))
    if held or not trained["in_parts"]:
        return nothing_to_do(run)
    new = record({}, [trained["fingerprint"], fingerprint_of(source, kind.embedded_by)])
    work = Work(run, kind.stage("fill"), path, new, shard)
    if work.fresh:
        return
    empty = faiss.read_index(files.local_path(kind.trained(run)))
    width = empty.sa_code_size()
    schema = pa.schema([("code", pa.binary(width))])
    with parquet_writer(path, schema, {kind.stage("fill"): new}) as writer:
        for block in blocks(source, ["embedding"], ROW_GROUP):
            codes = build.encode(empty, embedding_matrix(block["embedding"]))
            buffers = [None, pa.py_buffer(codes)]
            writer.write_batch(
                pa.record_batch([pa.Array.from_buffers(pa.binary(width), len(codes), buffers)], schema=schema)
            )
            work.advance(len(codes))
    work.done()


def merge(run: Run, kind: Kind) -> None:
    """Put all vectors into the index: ``index/<kind>.faiss``."""
    trained, path, stage = _trained(run, kind), run.index(kind.name), kind.stage("")
    new = record(trained["parameters"], trained["fingerprint"])
    work = Work(run, stage, run.index_json, new, whole=is_whole(run, stage, path))
    if work.fresh:
        return
    built = faiss.read_index(files.local_path(kind.trained(run)))
    if trained["in_parts"]:

        def codes() -> Iterator[np.ndarray]:
            for shard in run.shards:
                for block in blocks(kind.codes(run, shard), ["code"], ROW_GROUP):
                    data = np.frombuffer(block["code"].buffers()[1], np.uint8).reshape(-1, built.sa_code_size())
                    yield data[block["code"].offset :][: len(block)]

        build.fill(built, codes)
    else:
        for block in kind.vectors(run):
            built.add(block)
    build.write_index(built, path)
    notes = {"trained": trained["fingerprint"], "file": f"{kind.name}.faiss", "metric": "cosine"}
    notes |= {key: trained[key] for key in ("rows", "dimension", "expected_bytes")}
    note(run, stage, new | notes | {"bytes": files.version(path)["size"]})
    files.remove(run.path(f"{kind.name}-codes"))
    work.advance(built.ntotal)
    work.done()


def tune_search(run: Run, kind: Kind) -> None:
    """Find the search parameters that reach the recall, measured on held-out images, and note both in ``index.json``."""
    config, built = run.config.retrieval, recorded(run.index_json, kind.stage(""))
    stage = kind.stage("tune")
    exact = built.get("parameters", {}).get("factory") == "Flat"
    parameters = {"search": config.search} | ({} if exact else {"neighbors": config.neighbors, "recall": config.recall})
    images = [fingerprint_of(run.of_shard("embeddings", shard), "embed") for shard in run.shards]
    work = Work(run, stage, run.index_json, record(parameters, [built.get("fingerprint"), images]))
    if work.fresh:
        return
    opened = open_index(run.index(kind.name), config.search, built["bytes"], search_device(config))
    search, found = config.search, 1.0
    if not exact:
        search, found = _least_search(run, kind, opened)
    note(run, stage, work.record | {"search": search, "recall": round(found, 4), "queries": QUERIES})
    work.done()


def _least_search(run: Run, kind: Kind, opened: SearchIndex) -> tuple[str | None, float]:
    """Search parameters that reach ``retrieval.recall``, or those that are configured; and the recall that they have."""
    config = run.config.retrieval
    _, rows = build.sample_rows(opened.rows, 0, QUERIES)
    queries = build.pick(IMAGES.vectors(run), rows)
    expected = exact_neighbours(kind.vectors(run), queries, config.neighbors + 1)
    expected[expected == rows[:, None]] = -1  # to find the image itself is no merit

    def measure() -> float:
        with threadpool_limits(1):  # thousands of small products: threads would wait for one another
            return recall(opened.search(queries, config.neighbors + 1)[1], expected)

    name, largest = effort(opened.faiss)
    if config.search or not name:
        return config.search, measure()

    def measure_at(setting: int) -> float:
        set_search(opened.faiss, f"{name}={setting}")
        return measure()

    setting, found = tune(measure_at, config.recall, largest)
    return f"{name}={setting}", found


def search_device(config: RetrievalConfig) -> str:
    """The device to search on. Raises CocuError for a GPU that is asked for and absent."""
    return find_device(config.device, "retrieval.device")


def _trained(run: Run, kind: Kind) -> dict[str, Any]:
    trained: dict[str, Any] = files.read_json(run.index_json)[kind.stage("train")]
    return trained


def is_whole(run: Run, stage: str, path: str) -> bool:
    """Whether a file is as long as index.json says that it was written."""
    return files.exists(path) and files.version(path)["size"] == recorded(run.index_json, stage).get("bytes")


def note(run: Run, stage: str, entry: dict[str, Any]) -> None:
    """Set one entry of index.json."""
    files.write_json(run.index_json, files.read_note(run.index_json) | {stage: entry})
