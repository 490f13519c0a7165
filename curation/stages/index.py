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
import torch
from threadpoolctl import threadpool_limits

from curation import index, storage
from curation.archive import open_parquet, parquet_writer
from curation.config import RetrievalConfig
from curation.encoder import choose_device
from curation.index_choice import TRAINING_ROWS, choose_index, parse_bytes
from curation.outputs import Outputs, blocks, record, recorded, row_count
from curation.recall import exact_neighbours, recall, tune
from curation.samples import Shard
from curation.stages.work import ROW_GROUP, Work, fingerprint_of, nothing_to_do
from curation.vocabulary import embedding_matrix

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

    def trained(self, outputs: Outputs) -> str:
        """The index before any vector is in it."""
        return outputs.path("index", f"{self.name}.trained.faiss")

    def codes(self, outputs: Outputs, shard: Shard) -> str:
        """The codes of one shard's vectors, until they are in the index."""
        return outputs.of_shard(f"{self.name}-codes", shard)

    def vectors(self, outputs: Outputs) -> Iterator[np.ndarray]:
        """Blocks (n, D) of unit vectors, fp32, in the order of the shards."""
        for shard in outputs.shards:
            for block in blocks(outputs.of_shard(self.folder, shard), ["embedding"], ROW_GROUP):
                yield embedding_matrix(block["embedding"])


IMAGES = Kind("image", "", "embeddings", "embed")
CAPTIONS = Kind("text", "text ", "captions", "captions")


def train(outputs: Outputs, kind: Kind) -> None:
    """Choose the index and train it on a random sample: ``index/<kind>.trained.faiss``."""
    config, path = outputs.config.retrieval, kind.trained(outputs)
    paths = [outputs.of_shard(kind.folder, shard) for shard in outputs.shards]
    rows = sum(row_count(source) for source in paths)
    with open_parquet(paths[0]) as file:
        dimension = file.schema_arrow.field("embedding").type.list_size
    factory, expected = config.index, None
    if config.index == "auto":
        gpu = config.device.startswith("cuda")
        factory, _, expected = choose_index(rows, dimension, parse_bytes(config.memory), config.recall, gpu)
    empty = index.empty_index(factory, dimension)
    inverted = faiss.try_extract_index_ivf(empty)
    size = config.train_sample or TRAINING_ROWS * (inverted.nlist if inverted else 4096)
    parameters = {"factory": factory} | ({} if empty.is_trained else {"train_sample": size})
    new = record(parameters, [fingerprint_of(source, kind.embedded_by) for source in paths])
    work = Work(
        outputs, kind.stage("train"), outputs.index_json, new, whole=is_whole(outputs, kind.stage("train"), path)
    )
    if work.fresh:
        return
    if not empty.is_trained:
        trained, _ = index.sample_rows(rows, size, QUERIES)
        index.train(empty, index.pick(kind.vectors(outputs), trained), factory)
        work.advance(len(trained))
    index.set_search(empty, config.search)  # a wrong parameter is found now rather than in every shard
    index.write_index(empty, path)
    notes = {"rows": rows, "dimension": dimension, "in_parts": index.fills_in_parts(empty), "expected_bytes": expected}
    note(outputs, kind.stage("train"), new | notes | {"bytes": storage.version(path)["size"]})
    work.done()


def encode(outputs: Outputs, shard: Shard, kind: Kind) -> None:
    """Encode a shard's vectors for the index; nothing where the index takes them as they are, or has them already."""
    trained, path, source = _trained(outputs, kind), kind.codes(outputs, shard), outputs.of_shard(kind.folder, shard)
    built = recorded(outputs.index_json, kind.stage(""))
    held = built.get("trained") == trained["fingerprint"] and is_whole(
        outputs, kind.stage(""), outputs.index(kind.name)
    )
    if held or not trained["in_parts"]:
        return nothing_to_do(outputs)
    new = record({}, [trained["fingerprint"], fingerprint_of(source, kind.embedded_by)])
    work = Work(outputs, kind.stage("fill"), path, new, shard)
    if work.fresh:
        return
    empty = faiss.read_index(storage.local_path(kind.trained(outputs)))
    width = empty.sa_code_size()
    schema = pa.schema([("code", pa.binary(width))])
    with parquet_writer(path, schema, {kind.stage("fill"): new}) as writer:
        for block in blocks(source, ["embedding"], ROW_GROUP):
            codes = index.encode(empty, embedding_matrix(block["embedding"]))
            buffers = [None, pa.py_buffer(codes)]
            writer.write_batch(
                pa.record_batch([pa.Array.from_buffers(pa.binary(width), len(codes), buffers)], schema=schema)
            )
            work.advance(len(codes))
    work.done()


def merge(outputs: Outputs, kind: Kind) -> None:
    """Put all vectors into the index: ``index/<kind>.faiss``."""
    trained, path, stage = _trained(outputs, kind), outputs.index(kind.name), kind.stage("")
    new = record(trained["parameters"], trained["fingerprint"])
    work = Work(outputs, stage, outputs.index_json, new, whole=is_whole(outputs, stage, path))
    if work.fresh:
        return
    built = faiss.read_index(storage.local_path(kind.trained(outputs)))
    if trained["in_parts"]:

        def codes() -> Iterator[np.ndarray]:
            for shard in outputs.shards:
                for block in blocks(kind.codes(outputs, shard), ["code"], ROW_GROUP):
                    data = np.frombuffer(block["code"].buffers()[1], np.uint8).reshape(-1, built.sa_code_size())
                    yield data[block["code"].offset :][: len(block)]

        index.fill(built, codes)
    else:
        for block in kind.vectors(outputs):
            built.add(block)
    index.write_index(built, path)
    notes = {"trained": trained["fingerprint"], "file": f"{kind.name}.faiss", "metric": "cosine"}
    notes |= {key: trained[key] for key in ("rows", "dimension", "expected_bytes")}
    note(outputs, stage, new | notes | {"bytes": storage.version(path)["size"]})
    storage.remove(outputs.path(f"{kind.name}-codes"))
    work.advance(built.ntotal)
    work.done()


def tune_search(outputs: Outputs, kind: Kind) -> None:
    """Find the search parameters that reach the recall, measured on held-out images, and note both in ``index.json``."""
    config, built = outputs.config.retrieval, recorded(outputs.index_json, kind.stage(""))
    stage = kind.stage("tune")
    exact = built.get("parameters", {}).get("factory") == "Flat"
    parameters = {"search": config.search} | ({} if exact else {"neighbors": config.neighbors, "recall": config.recall})
    images = [fingerprint_of(outputs.of_shard("embeddings", shard), "embed") for shard in outputs.shards]
    work = Work(outputs, stage, outputs.index_json, record(parameters, [built.get("fingerprint"), images]))
    if work.fresh:
        return
    opened = index.open_index(outputs.index(kind.name), config.search, built["bytes"], search_device(config))
    search, found = config.search, 1.0
    if not exact:
        search, found = _least_search(outputs, kind, opened)
    note(outputs, stage, work.record | {"search": search, "recall": round(found, 4), "queries": QUERIES})
    work.done()


def _least_search(outputs: Outputs, kind: Kind, opened: index.SearchIndex) -> tuple[str | None, float]:
    """Search parameters that reach ``retrieval.recall``, or those that are configured; and the recall that they have."""
    config = outputs.config.retrieval
    _, rows = index.sample_rows(opened.rows, 0, QUERIES)
    queries = index.pick(IMAGES.vectors(outputs), rows)
    expected = exact_neighbours(kind.vectors(outputs), queries, config.neighbors + 1)
    expected[expected == rows[:, None]] = -1  # to find the image itself is no merit

    def measure() -> float:
        with threadpool_limits(1):  # thousands of small products: threads would wait for one another
            return recall(opened.search(queries, config.neighbors + 1)[1], expected)

    name, largest = index.effort(opened.faiss)
    if config.search or not name:
        return config.search, measure()

    def measure_at(setting: int) -> float:
        index.set_search(opened.faiss, f"{name}={setting}")
        return measure()

    setting, found = tune(measure_at, config.recall, largest)
    return f"{name}={setting}", found


def search_device(config: RetrievalConfig) -> str:
    """The device to search on. Raises CurationError for a GPU that is asked for and absent."""
    return choose_device(config.device, torch.cuda.device_count(), "retrieval.device")


def _trained(outputs: Outputs, kind: Kind) -> dict[str, Any]:
    trained: dict[str, Any] = storage.read_json(outputs.index_json)[kind.stage("train")]
    return trained


def is_whole(outputs: Outputs, stage: str, path: str) -> bool:
    """Whether a file is as long as index.json says that it was written."""
    return storage.exists(path) and storage.version(path)["size"] == recorded(outputs.index_json, stage).get("bytes")


def note(outputs: Outputs, stage: str, entry: dict[str, Any]) -> None:
    """Set one entry of index.json."""
    storage.write_json(outputs.index_json, storage.read_note(outputs.index_json) | {stage: entry})
