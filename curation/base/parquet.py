"""Parquet files that carry JSON metadata of ours: written whole or not at all, read with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import files
from curation.base.errors import CocuError, listed, one_line

FORMAT = 1  # of the files of a run; part of every fingerprint
MOST_HELD = 1 << 28  # bytes, or values, that a small file may hold
MOST_TIMES = 1000  # times as many bytes as are in the file
ROW_GROUP = 4096  # rows that are read and written at once
METADATA_KEY = b"cocu"
ENDING_KEY = b"cocu.end"  # what is known only when all rows are written


@contextmanager
def parquet_writer(
    path: str, schema: pa.Schema, metadata: dict[str, Any], ending: dict[str, Any] | None = None
) -> Iterator[pq.ParquetWriter]:
    """Write a Parquet file (zstd) that carries ``metadata`` as JSON; it appears whole, or not at all.

    ``ending`` is more of it that is known only when the block ends, and is read then.
    """
    schema = schema.with_metadata({METADATA_KEY: _json(metadata)})
    repeating = [name for field in schema for name, kind in _leaves(field.name, field.type) if _repeats(kind)]
    options = {"compression": "zstd", "use_dictionary": repeating}
    with files.atomic_write(path) as stream, pq.ParquetWriter(stream, schema, **options) as writer:
        yield writer
        if ending:
            writer.add_key_value_metadata({ENDING_KEY: _json(ending)})


def _leaves(name: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
    """The columns that Parquet keeps a field in, by their paths, and what they hold."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(f"{name}.{field.name}", field.type)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        yield from _leaves(f"{name}.list.element", kind.value_type)
    else:
        yield name, kind


def _repeats(kind: pa.DataType) -> bool:
    """Whether values are likely to come again: others are larger with a dictionary, and take twice as long to read."""
    return not (pa.types.is_floating(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def write_table(path: str, table: pa.Table, metadata: dict[str, Any]) -> None:
    """Write a whole table as :func:`parquet_writer` does."""
    with parquet_writer(path, table.schema, metadata) as writer:
        writer.write_table(table)


@contextmanager
def open_parquet(path: str, mapped: bool = False, remedy: str = "delete it and run again") -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Raises CocuError when it is missing, or found damaged, in this block too.

    ``mapped``: a local file is mapped into memory, so that processes that read the same one share its pages. ``remedy``:
    for a file that is damaged.
    """
    with files.open_file(path) as stream:
        # Arrow opens a local file itself: its threads must not call Python's, which may be about to exit.
        open_local = pa.memory_map if mapped else pa.OSFile
        source = stream if files.is_remote(path) else open_local(files.local_path(path))
        try:
            file = pq.ParquetFile(source, pre_buffer=False)
            check_proportion(file.metadata, path)
            yield file
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if getattr(error, "errno", None) is not None:  # the system's, not Arrow's
                raise
            reason = " ".join(str(error).split())
            raise CocuError(f"{path}: not a complete Parquet file ({reason}); {remedy}") from None


def check_proportion(metadata: Any, path: str) -> None:
    """Raises CocuError for a file of a few kilobytes that says it holds gigabytes: no data of ours is so regular."""
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        chunks = [group.column(number) for number in range(group.num_columns)]
        size = sum(max(chunk.total_compressed_size, 0) for chunk in chunks)
        values = sum(chunk.num_values for chunk in chunks)
        held = max(sum(chunk.total_uncompressed_size for chunk in chunks), values)
        if held > max(MOST_HELD, MOST_TIMES * size):
            raise CocuError(f"{path}: {size:,} bytes that say they hold {held:,}: not a file of a curation run")


def read_columns(path: str, columns: Mapping[str, pa.DataType | None], mapped: bool = False) -> pa.Table:
    """Columns of a Parquet file that may be anyone's, with these types (None: any type), and no value missing.

    Raises CocuError, naming the file and the column, where one is not there or holds something else.
    """
    with open_parquet(path, mapped) as file:
        check_columns(file, columns, path)
        table = file.read(list(columns))
        for name, kind in columns.items():
            column = table[name]
            if column.null_count:
                raise CocuError(f"{path}: {column.null_count} rows have no {name}")
            if kind is None or column.type == kind:
                continue
            try:
                table = table.set_column(table.schema.get_field_index(name), name, column.cast(kind))
            except pa.ArrowException:
                raise CocuError(f"{path}: the column {name} holds {one_line(column.type, 80)}, not {kind}") from None
    return table.select(list(columns))


def check_columns(file: pq.ParquetFile, columns: Iterable[str], path: str) -> None:
    """Raises CocuError unless the columns are there."""
    for name in columns:
        if file.schema_arrow.get_field_index(name) < 0:
            raise CocuError(f"{path}: no column {name}, only {listed(file.schema_arrow.names)}; run cocu curate again")


def read_metadata(path: str) -> dict[str, Any]:
    """What the run that wrote a Parquet file says of it, without reading its rows; empty for a file that is not ours."""
    with open_parquet(path) as file:
        metadata = file.metadata.metadata or {}
    try:
        return {**json.loads(metadata.get(METADATA_KEY, b"{}")), **json.loads(metadata.get(ENDING_KEY, b"{}"))}
    except (ValueError, TypeError, RecursionError):
        raise CocuError(f"{path}: its metadata is damaged; delete it and run again") from None


def row_count(path: str) -> int:
    """Rows of a Parquet file, without reading them."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def blocks(path: str, columns: list[str], size: int = ROW_GROUP) -> Iterator[pa.RecordBatch]:
    """Row blocks of a Parquet file, in order, ``size`` rows each (the last may be shorter)."""
    with open_parquet(path) as file:
        check_columns(file, columns, path)
        yield from file.iter_batches(batch_size=size, columns=columns)
