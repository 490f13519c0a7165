"""From embeddings and index to ``archives/<shard>.parquet``: expansion, ranking and clusters of every anchor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.archive import SCHEMA, archive_batch, archive_schema
from curation.archive.parquet import DUPLICATE_OF
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import FORMAT, blocks, parquet_writer
from curation.base.ragged import Ragged, is_in
from curation.expansion import EXPANSIONS
from curation.index.duplicates import COLUMNS
from curation.ranking import RANKINGS
from curation.run.captions import source_names
from curation.run.curator import open_curator
from curation.run.indexes import (
    duplicates_record,
    first_row,
    has_duplicates,
    has_graph,
    read_duplicates,
    searched_index,
)
from curation.run.progress import Progress
from curation.run.records import Reader, Record, record, vocabulary_content
from curation.run.run import Run, indexed_run
from curation.run.stages.stage import Stage
from curation.samples import Shard

BLOCK = 16384  # anchors that are looked up, ranked and clustered at once; the search gains from many


def _archives(run: Run, shard: Shard) -> str:
    return run.of_shard("archives", shard)


def _expected(run: Run, shard: Shard, read: Reader) -> Record:
    config = run.config
    searched, search = searched_index(run, read)
    parameters = asdict(config.archive) | {
        "neighbors": config.retrieval.neighbors,
        "include_anchor": config.retrieval.include_anchor,
        "search": search,
    }
    inputs = [
        read(run.of_shard("embeddings", shard), "embed")["fingerprint"],
        vocabulary_content(run, read),
        read(run.index_json, "mentions")["fingerprint"],
        searched["fingerprint"],
    ]
    if config.retrieval.counts_once:
        parameters["duplicates"] = "once"
        inputs += [written["fingerprint"] for written in [duplicates_record(run, read)] if written]
    if has_graph(run):
        inputs.append(read(run.index_json, "graph")["fingerprint"])
    if RANKINGS[config.archive.ranking_name].calibrated:
        inputs.append(read(run.calibration, "vocabulary")["fingerprint"])
    return record(parameters, inputs)


def _write(run: Run, shard: Shard, expected: Record, progress: Progress) -> dict[str, int]:
    """Write the concept archives of a shard."""
    curator = open_curator(run)
    names = pa.array(curator.vocabulary.concepts, pa.string())
    first = first_row(run, shard)
    start = 0
    totals = {"archive_concepts": 0, "gained": 0, "empty": 0}
    metadata = {"format": FORMAT, "data": run.config.name, "parameters": expected["parameters"]}
    ending: dict[str, Any] = {}
    batches: list[pa.RecordBatch] = []
    has_several = bool(run.config.captions)
    fields = _sources(run)
    duplicates = _Duplicates(run) if run.config.retrieval.counts_once else None
    schema = archive_schema(has_several, duplicates is not None)
    with parquet_writer(_archives(run, shard), schema, metadata, ending) as writer:
        columns = ["key", "caption", "concepts", "embedding", *(["captions", "sources"] if has_several else [])]
        for block in blocks(run.of_shard("embeddings", shard), columns, BLOCK):
            images = embedding_matrix(block["embedding"])
            captions = Ragged.from_arrow(block["concepts"])
            rows = np.full(len(block), -1) if first is None else first + start + np.arange(len(block))
            own = block["sources"].flatten().to_numpy() if has_several else None
            archives = curator.curate(images, rows, captions, own)

            several: dict[str, Any] = {"duplicate_of": duplicates.of(rows)} if duplicates else {}
            if archives.sources is not None and has_several:
                several |= {"several": block["captions"], "sources": source_names(archives.sources, fields)}
            batches.append(archive_batch(block["key"], block["caption"], names, **archives.columns(), **several))
            start += len(block)
            progress.advance(len(block))
            for name, count in count_gains(captions, archives.concepts).items():
                totals[name] += count

        write_whole(writer, batches, schema)
        ending["archive"] = expected | {"counts": totals}
    return totals


class _Duplicates:
    """Which image represents each of a run's own."""

    def __init__(self, run: Run) -> None:
        table = read_duplicates(run) if has_duplicates(run) else None
        self._table = COLUMNS.empty_table() if table is None else table
        self._rows = self._table["row"].to_numpy()

    def of(self, rows: np.ndarray) -> pa.Array:
        """Shard and key of the representative of rows (B,), null where that is the row itself: structs of DUPLICATE_OF."""
        position = np.searchsorted(self._rows, rows)
        is_one = np.append(self._rows, -2)[position] == rows  # -1: an image that no index holds
        chosen = self._table.take(pa.array(position[is_one]))
        place = pa.array(np.where(is_one, np.cumsum(is_one) - 1, 0), mask=~is_one)
        shards, keys = (chosen[name].combine_chunks().cast(pa.string()) for name in ("shard", "key"))
        structs = pa.StructArray.from_arrays([shards, keys], fields=list(DUPLICATE_OF.type))
        return structs.take(place)


def _sources(run: Run) -> list[str]:
    """The names of the fields that the sources of concepts are bits of: those of the run whose captions are support."""
    retrieves = EXPANSIONS[run.config.archive.expansion].retrieves
    return indexed_run(run).config.caption_sources if retrieves and run.config.captions else run.config.caption_sources


def write_whole(writer: pq.ParquetWriter, batches: list[pa.RecordBatch], schema: pa.Schema = SCHEMA) -> None:
    """Write archives as one row group, however many: Arrow's plain readers cannot read a dictionary inside a struct over
    several of them, and its writer begins another after a million rows unless told otherwise."""
    table = pa.Table.from_batches(batches, schema)
    writer.write_table(table, row_group_size=max(len(table), 1))


def count_gains(captions: Ragged, archives: Ragged) -> dict[str, int]:
    """How many concepts the archives of a block have, how many archives have one that the caption lacks, how many none."""
    gained = archives.owners[~is_in(archives, captions)]
    empty = archives.lengths == 0
    return {
        "archive_concepts": len(archives.values),
        "gained": len(np.unique(gained)),
        "empty": int(empty.sum()),
    }


ARCHIVE = Stage("archive", True, _archives, _expected, _write)
