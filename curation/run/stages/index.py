"""From embeddings to ``index/``: trained on a sample, filled shard by shard, merged, and tuned to the recall."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.configuration import parse_bytes
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import blocks, open_parquet, parquet_writer, row_count
from curation.index import build
from curation.index.choose import TRAINING_ROWS, choose_index
from curation.index.open import open_index, read_trained, set_search
from curation.index.trial import try_factory
from curation.run.held_out import QUERIES, HeldOut
from curation.run.indexes import INDEXES, VectorIndex, own_search_device
from curation.run.progress import Progress
from curation.run.records import Reader, Record, fingerprints, is_as_long_as_noted, note, record, recorded
from curation.run.run import Run
from curation.run.stages.stage import Stage
from curation.samples import Shard


def index_stages(kind: VectorIndex) -> list[Stage]:
    """The steps that build one index."""

    def once(verb: str, expected: Any, compute: Any, **more: Any) -> Stage:
        steps = partial(expected, kind=kind), partial(compute, kind=kind)
        return Stage(kind.stage(verb), False, lambda run: run.index_json, *steps, **more)

    return [
        once(
            "train",
            _train_expected,
            _train,
            is_whole=lambda run: is_as_long_as_noted(run, kind.stage("train"), kind.trained(run)),
        ),
        Stage(kind.stage("fill"), True, kind.codes, partial(_fill_expected, kind=kind), partial(_fill, kind=kind)),
        once("", _merge_expected, _merge, is_whole=lambda run: _is_merged(run, kind)),
        once("tune", _tune_expected, _tune),
    ]


# --- train ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Untrained:
    """The index that is to be trained, and on how much."""

    factory: str
    index: faiss.Index
    rows: int
    dimension: int
    sample: int
    expected_bytes: int | None


def _choose(run: Run, kind: VectorIndex) -> _Untrained:
    config = run.config.retrieval
    paths = run.of_shards(kind.folder)
    rows = sum(map(row_count, paths))
    with open_parquet(paths[0]) as file:
        dimension = file.schema_arrow.field("embedding").type.list_size

    factory, expected_bytes = config.index, None
    if config.index == "auto":
        gpu = config.device.startswith("cuda")
        factory, _, expected_bytes = choose_index(
            rows,
            dimension,
            parse_bytes(config.memory, "retrieval.memory"),
            config.recall,
            gpu,
            _for_graph(run, kind),
        )
    empty = build.empty_index(factory, dimension)
    inverted = faiss.try_extract_index_ivf(empty)
    sample = config.train_sample or TRAINING_ROWS * (inverted.nlist if inverted else 4096)
    return _Untrained(factory, empty, rows, dimension, sample, expected_bytes)


def _for_graph(run: Run, kind: VectorIndex) -> bool:
    """Whether an index may come to serve a graph; whatever the expansion is now, so that another keeps the index."""
    return run.config.retrieval.index == "auto" and kind.name == "image"


def _train_expected(run: Run, read: Reader, kind: VectorIndex) -> Record:
    embedded = fingerprints(run.of_shards(kind.folder), kind.embedded_by, read)
    choice = _choose(run, kind)
    parameters = {"factory": choice.factory} | ({} if choice.index.is_trained else {"train_sample": choice.sample})
    return record(parameters, embedded)


def _train(run: Run, expected: Record, progress: Progress, kind: VectorIndex) -> None:
    """Choose the index and train it on a random sample: ``index/<kind>.trained.faiss``."""
    choice, path = _choose(run, kind), kind.trained(run)
    if run.config.retrieval.index != "auto":
        try_factory(choice.factory, choice.dimension, run.config.retrieval.search)
    empty = choice.index
    if not empty.is_trained:
        trained, _ = build.sample_rows(choice.rows, choice.sample, QUERIES)
        build.train(empty, build.pick(kind.vectors(run), trained), choice.factory)
        progress.advance(len(trained))
    set_search(empty, run.config.retrieval.search)  # a wrong parameter is found now rather than in every shard
    build.write_index(empty, path)
    facts = {
        "rows": choice.rows,
        "dimension": choice.dimension,
        "in_parts": build.fills_in_parts(empty),
        "expected_bytes": choice.expected_bytes,
    }
    note(run, kind.stage("train"), expected | facts | {"bytes": files.version(path)["size"]})


# --- fill -----------------------------------------------------------------------------------------------------------------


def _fill_expected(run: Run, shard: Shard, read: Reader, kind: VectorIndex) -> Record | None:
    """None where the index takes the vectors as they are, or has them already."""
    trained = read(run.index_json, kind.stage("train"))
    merged = recorded(run.index_json, kind.stage(""))
    has_them = merged.get("trained") == trained["fingerprint"] and _is_merged(run, kind)
    if has_them or not trained["in_parts"]:
        return None
    embedded = read(run.of_shard(kind.folder, shard), kind.embedded_by)
    return record({}, [trained["fingerprint"], embedded["fingerprint"]])


def _fill(run: Run, shard: Shard, expected: Record, progress: Progress, kind: VectorIndex) -> None:
    """Encode a shard's vectors for the index."""
    trained = read_trained(kind.trained(run))
    width = trained.sa_code_size()
    schema = pa.schema([("code", pa.binary(width))])
    with parquet_writer(kind.codes(run, shard), schema, {kind.stage("fill"): expected}) as writer:
        for block in blocks(run.of_shard(kind.folder, shard), ["embedding"]):
            codes = build.encode(trained, embedding_matrix(block["embedding"]))
            column = pa.Array.from_buffers(pa.binary(width), len(codes), [None, pa.py_buffer(codes)])
            writer.write_batch(pa.record_batch([column], schema=schema))
            progress.advance(len(codes))


# --- merge ----------------------------------------------------------------------------------------------------------------


def _is_merged(run: Run, kind: VectorIndex) -> bool:
    return is_as_long_as_noted(run, kind.stage(""), run.index(kind.name))


def _merge_expected(run: Run, read: Reader, kind: VectorIndex) -> Record:
    trained = read(run.index_json, kind.stage("train"))
    return record(trained["parameters"], trained["fingerprint"])


def _merge(run: Run, expected: Record, progress: Progress, kind: VectorIndex) -> None:
    """Put all vectors into the index: ``index/<kind>.faiss``."""
    trained, path = files.read_json(run.index_json)[kind.stage("train")], run.index(kind.name)
    merged = read_trained(kind.trained(run))
    if trained["in_parts"]:

        def codes() -> Iterator[np.ndarray]:
            for shard in run.shards:
                for block in blocks(kind.codes(run, shard), ["code"]):
                    data = np.frombuffer(block["code"].buffers()[1], np.uint8).reshape(-1, merged.sa_code_size())
                    yield data[block["code"].offset :][: len(block)]

        build.fill(merged, codes)
    else:
        for block in kind.vectors(run):
            merged.add(block)

    build.write_index(merged, path)
    facts = {"trained": trained["fingerprint"], "file": f"{kind.name}.faiss", "metric": "cosine"}
    facts |= {key: trained[key] for key in ("rows", "dimension", "expected_bytes")}
    note(run, kind.stage(""), expected | facts | {"bytes": files.version(path)["size"]})
    files.remove(run.path(f"{kind.name}-codes"))
    progress.advance(merged.ntotal)


# --- tune -----------------------------------------------------------------------------------------------------------------


def _is_exact(merged: Record) -> bool:
    return bool(merged["parameters"]["factory"] == "Flat")


def _tune_expected(run: Run, read: Reader, kind: VectorIndex) -> Record:
    config = run.config.retrieval
    merged = read(run.index_json, kind.stage(""))
    measured = {} if _is_exact(merged) else {"neighbors": config.neighbors, "recall": config.recall}
    images = fingerprints(run.of_shards("embeddings"), "embed", read)
    return record({"search": config.search} | measured, [merged["fingerprint"], images])


def _tune(run: Run, expected: Record, progress: Progress, kind: VectorIndex) -> None:
    """Find the search parameters that reach the recall, measured on held-out images, and note both in ``index.json``."""
    config = run.config.retrieval
    merged = recorded(run.index_json, kind.stage(""))
    opened = open_index(run.index(kind.name), config.search, merged["bytes"], own_search_device(config))
    exact = _is_exact(merged)
    both_ends = _for_graph(run, kind)
    images, vectors = (partial(index.vectors, run) for index in (INDEXES["image"], kind))
    held_out = None if exact else HeldOut.of(opened, config, images, vectors, both_ends)
    search, reached = (config.search, 1.0) if held_out is None else held_out.least_search()
    if reached < config.recall and config.index == "auto" and not config.search:
        factory, share = merged["parameters"]["factory"], math.floor(1000 * reached) / 1000
        raise CocuError(
            f"retrieval.recall: {factory} finds {share} of the true neighbours with all its lists, not {config.recall}; "
            f"raise retrieval.memory, so that auto can choose a finer index, or lower retrieval.recall to {share}"
        )
    facts: Record = {"search": search, "recall": round(reached, 4), "queries": QUERIES}
    if held_out is not None and both_ends and not config.search:
        search, reached = held_out.least_search(search, from_either_end=True)
        facts["graph"] = {"search": search, "recall": round(reached, 4)}
    note(run, kind.stage("tune"), expected | facts)
