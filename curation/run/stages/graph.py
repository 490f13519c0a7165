"""From an index to ``index/graph.npy``: the neighbours of all images, searched in large groups, from either end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import blocks, parquet_writer
from curation.index.graph import Part, from_either_end, graph_type, groups
from curation.index.open import SearchIndex, open_index
from curation.run.indexes import INDEXES, graph_size, has_graph, own_search_device
from curation.run.progress import Progress
from curation.run.records import Reader, Record, fingerprints, is_as_long_as_noted, note, record, recorded
from curation.run.run import Run
from curation.run.stages.stage import Stage
from curation.samples import Shard

TOGETHER = 1 << 28  # bytes of the vectors that are searched together: more of them use a list better
EXACT_TOGETHER = 1 << 13  # rows, where the index is exact, so that workers share the work
IMAGE = INDEXES["image"]


def _output(run: Run, shard: Shard) -> str:
    return run.of_shard("neighbours", shard)


def _members(run: Run, shards: list[dict[str, Any]], dimension: int, shard: Shard) -> list[Shard]:
    """The shards that are searched together with one, where it is the first of them; else none."""
    most = _together(run, dimension)
    numbers = groups([item["rows"] for item in shards], most)
    first = [group for group in numbers if shards[group[0]]["name"] == shard.name]
    names = {shards[number]["name"] for number in first[0]} if first else set()
    return [other for other in run.shards if other.name in names]


def _together(run: Run, dimension: int) -> int:
    """Rows that are searched together: many, where a list is read and rounded for all of them."""
    exact = recorded(run.index_json, IMAGE.stage("")).get("parameters", {}).get("factory") == "Flat"
    return min(TOGETHER // (6 * dimension), EXACT_TOGETHER if exact else TOGETHER)  # bytes in fp32 and bf16


def _graph_expected(run: Run, read: Reader) -> Record | None:
    """None where anchors are looked up in the index itself."""
    if not has_graph(run):
        return None
    indexed, tuned = read(run.index_json, IMAGE.stage("")), read(run.index_json, IMAGE.stage("tune"))
    search = run.config.retrieval.search or tuned.get("graph", tuned)["search"]
    parameters = {"neighbors": graph_size(run.config.retrieval), "search": search}
    embedded = fingerprints(run.of_shards("embeddings"), "embed", read)
    return record(parameters, [indexed["fingerprint"], embedded])


# --- neighbours -----------------------------------------------------------------------------------------------------------


def _neighbours_expected(run: Run, shard: Shard, read: Reader) -> Record | None:
    """None for a shard that is searched with an earlier one, and where the graph has the neighbours already."""
    graph = _graph_expected(run, read)
    if graph is None or (
        recorded(run.index_json, "graph").get("fingerprint") == graph["fingerprint"] and _is_whole(run)
    ):
        return None
    shards = read(run.index_json, "mentions")["shards"]
    members = _members(run, shards, read(run.index_json, IMAGE.stage(""))["dimension"], shard)
    if not members:
        return None
    indexed = read(run.index_json, IMAGE.stage(""))["fingerprint"]
    embedded = [read(run.of_shard("embeddings", member), "embed")["fingerprint"] for member in members]
    return record(graph["parameters"], [indexed, embedded])


def _write_neighbours(run: Run, shard: Shard, expected: Record, progress: Progress) -> None:
    """Search for the images of some consecutive shards."""
    size = expected["parameters"]["neighbors"]
    indexed = recorded(run.index_json, IMAGE.stage(""))
    shards = recorded(run.index_json, "mentions")["shards"]
    opened = _open(run, indexed, expected["parameters"]["search"])
    members = _members(run, shards, indexed["dimension"], shard)
    schema = pa.schema([("ids", pa.list_(pa.int64(), size)), ("cosines", pa.list_(pa.float32(), size))])

    with parquet_writer(_output(run, shard), schema, {"neighbours": expected}) as writer:
        for vectors in _batches(run, members, _together(run, indexed["dimension"])):
            cosines, ids = opened.search(vectors, size)
            columns = [
                pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size) for values in (ids, cosines)
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            progress.advance(len(vectors))


def _open(run: Run, indexed: Record, search: str | None) -> SearchIndex:
    device = own_search_device(run.config.retrieval)
    shape = (indexed["rows"], indexed["dimension"])
    return open_index(run.index(IMAGE.name), search, indexed["bytes"], device, shape)


def _batches(run: Run, members: list[Shard], most: int) -> Iterator[np.ndarray]:
    """The vectors of shards, (n, D) float32, about ``most`` rows at a time."""
    waiting: list[np.ndarray] = []
    for member in members:
        for block in blocks(run.of_shard("embeddings", member), ["embedding"]):
            waiting.append(embedding_matrix(block["embedding"]))
            if sum(map(len, waiting)) >= most:
                yield np.concatenate(waiting)
                waiting = []
    if waiting:
        yield np.concatenate(waiting)


# --- graph ----------------------------------------------------------------------------------------------------------------


def _is_whole(run: Run) -> bool:
    return is_as_long_as_noted(run, "graph", run.graph)


def _parts(run: Run, size: int) -> Iterator[Part]:
    """What the searches found, in the order of the rows."""
    row = 0
    for path in filter(files.exists, run.of_shards("neighbours")):
        for block in blocks(path, ["ids", "cosines"], 1 << 16):
            ids, cosines = (block[name].flatten().to_numpy().reshape(-1, size) for name in ("ids", "cosines"))
            yield row, ids, cosines
            row += len(block)


def _write_graph(run: Run, expected: Record, progress: Progress) -> None:
    """Join the searches: ``index/graph.npy``, a row for every image."""
    size = expected["parameters"]["neighbors"]
    rows = recorded(run.index_json, IMAGE.stage(""))["rows"]
    kind = graph_type(rows, size)
    with files.atomic_write(run.graph) as stream:  # not mapped: a full disk would end the process
        header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(stream, header)
        for ids, cosines in from_either_end(lambda: _parts(run, size), rows, size):
            edges = np.empty(len(ids), kind)
            edges["ids"], edges["cosines"] = ids, cosines
            stream.write(edges.tobytes())
            progress.advance(len(ids))
    note(run, "graph", expected | {"file": "graph.npy", "bytes": files.version(run.graph)["size"]})
    files.remove(run.path("neighbours"))


GRAPH = [
    Stage("neighbours", True, _output, _neighbours_expected, _write_neighbours),
    Stage("graph", False, lambda run: run.index_json, _graph_expected, _write_graph, _is_whole),
]
