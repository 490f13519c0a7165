"""Concept archives on disk: one Parquet file per shard, one row per sample. Light to import: no Beam, no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import storage
from curation.errors import CurationError

FORMAT = 1
METADATA_KEY = b"cocu"
ENDING_KEY = b"cocu.end"  # what is known only when all rows are written

CONCEPT = pa.struct(
    [
        ("concept", pa.dictionary(pa.int32(), pa.string())),
        ("score", pa.float32()),  # what the list is sorted by, descending
        ("global", pa.float32()),  # relevance to the anchor against the whole archive
        ("local", pa.float32()),  # relevance to the anchor against images whose captions mention the concept
        ("cluster", pa.int16()),
        ("support", pa.int16()),  # retrieved captions that mention the concept
    ]
)
SCHEMA = pa.schema([("key", pa.string()), ("caption", pa.string()), ("concepts", pa.list_(CONCEPT))])


def archive_batch(
    keys: pa.Array,
    captions: pa.Array,
    names: pa.Array,
    offsets: np.ndarray,
    concepts: np.ndarray,
    **columns: np.ndarray,
) -> pa.RecordBatch:
    """Archive rows of a block of anchors.

    keys, captions (B,) and names (V,): string arrays; offsets (B + 1,), concepts (P,): CSR in descending score;
    ``columns``: score, global, local, cluster, support, (P,) each.
    """
    entries = [pa.DictionaryArray.from_arrays(pa.array(concepts, pa.int32()), names)]
    entries += [pa.array(columns[field.name], field.type) for field in list(CONCEPT)[1:]]
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(entries, fields=list(CONCEPT))
    )
    return pa.record_batch([keys, captions, lists], schema=SCHEMA)


@contextmanager
def parquet_writer(
    path: str, schema: pa.Schema, metadata: dict[str, Any], ending: dict[str, Any] | None = None
) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file (zstd) that carries ``metadata`` as JSON; it appears whole, or not at all.

    ``ending`` is more of it that is known only when the block ends, and is read then.
    """
    schema = schema.with_metadata({METADATA_KEY: _json(metadata)})
    with storage.atomic_write(path) as stream, pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        yield writer
        if ending:
            writer.add_key_value_metadata({ENDING_KEY: _json(ending)})


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def write_table(path: str, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Write a whole table as :func:`parquet_writer` does."""
    with parquet_writer(path, table.schema, metadata) as writer:
        writer.write_table(table)


@contextmanager
def open_parquet(path: str, mapped: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises CurationError when it is missing, or found damaged, in this block too.

    ``mapped``: a local file is mapped into memory, so that processes that read the same one share its pages.
    """
    with storage.open_file(path) as stream:
        # Arrow opens a local file itself: its threads must not call Python's, which may be about to exit.
        open_local = pa.memory_map if mapped else pa.OSFile
        source = stream if storage.is_remote(path) else open_local(storage.local_path(path))
        try:
            yield pq.ParquetFile(source, pre_buffer=False)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if getattr(error, "errno", None) is not None:  # the system's, not Arrow's
                raise
            reason = " ".join(str(error).split())
            raise CurationError(f"{path}: not a whole Parquet file ({reason}); delete it and run again") from None


def read_metadata(path: str) -> dict[str, Any]:
    """What the run that wrote a Parquet file says of it, without reading its rows; empty for a file that is not ours."""
    with open_parquet(path) as file:
        found = file.metadata.metadata or {}
    try:
        return {**json.loads(found.get(METADATA_KEY, b"{}")), **json.loads(found.get(ENDING_KEY, b"{}"))}
    except (ValueError, TypeError):
        raise CurationError(f"{path}: its metadata are damaged; delete it and run again") from None


def read_archive(path: str) -> pa.Table:
    """The archives of one shard: key, caption, concepts, in the order of the tar.

    Raises CurationError when the file is missing or damaged, or holds anything else.
    """
    with open_parquet(path, mapped=True) as file:
        if not file.schema_arrow.equals(SCHEMA):
            raise CurationError(f"{path}: not a concept archive; expected the columns {', '.join(SCHEMA.names)}")
        # Arrow cannot read a dictionary inside a struct over several row groups at once.
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        return pa.concat_tables(groups) if groups else SCHEMA.empty_table()
