"""Concept archives on disk: one Parquet file per shard, one row per sample. Light to import: no Beam, no torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.base.errors import CocuError, listed, one_line
from curation.base.parquet import open_parquet

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


# --- reading --------------------------------------------------------------------------------------------------------------


def read_archive(path: str) -> pa.Table:
    """The archives of one shard: key, caption, concepts, in the order of the tar.

    Files that pandas, polars or DuckDB have written from ours are read too: what counts is what the columns mean, not how
    that program stores text, whole numbers or lists. Raises CocuError when the file is missing or damaged, or holds
    anything else.
    """
    with open_parquet(path, mapped=True) as file:
        is_ours = file.schema_arrow.equals(SCHEMA)
        if not is_ours:
            _check_columns(file.schema_arrow, path)
        # Arrow cannot read a dictionary inside a struct over several row groups at once.
        columns = None if is_ours else SCHEMA.names
        groups = [file.read_row_group(number, columns=columns) for number in range(file.num_row_groups)]
        tables = groups if is_ours else [_converted(group, path) for group in groups]
        table = pa.concat_tables(tables) if tables else SCHEMA.empty_table()

    _check_values(table, path)
    return table


def _check_columns(schema: pa.Schema, path: str) -> None:
    """Raises CocuError unless the columns of an archive are there, of whatever type."""
    for name in SCHEMA.names:
        if schema.get_field_index(name) < 0:
            expected = ", ".join(SCHEMA.names)
            raise CocuError(
                f"{path}: not a concept archive; expected the columns {expected}, has {listed(schema.names)}"
            )

    lists = schema.field("concepts").type
    entry = getattr(lists, "value_type", None)
    if entry is None or not pa.types.is_struct(entry):
        raise CocuError(
            f"{path}: not a concept archive; the column concepts holds {one_line(lists, 80)}, not lists of structs"
        )
    for field in CONCEPT:
        if entry.get_field_index(field.name) < 0:
            raise CocuError(f"{path}: not a concept archive; the entries of concepts have no field {field.name}")


def _converted(table: pa.Table, path: str) -> pa.Table:
    """Archives with our types, from columns that mean the same."""
    try:
        keys, captions = (table[name].cast(pa.string()) for name in ("key", "caption"))
        lists = pa.chunked_array([_lists(chunk) for chunk in table["concepts"].chunks], SCHEMA.field("concepts").type)
    except pa.ArrowException as error:
        raise CocuError(f"{path}: cannot be read as a concept archive ({one_line(error, 200)})") from None
    return pa.table([keys, captions, lists], schema=SCHEMA)


def _lists(column: pa.Array) -> pa.Array:
    """Lists of entries of any list type, with our types; an archive that is null has no concepts."""
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    structs = column.flatten()
    fields = []
    for field in CONCEPT:
        values = pc.struct_field(structs, field.name)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        is_text = pa.types.is_dictionary(field.type)
        fields.append(values.cast(pa.string()).dictionary_encode() if is_text else values.cast(field.type))

    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    entries = pa.StructArray.from_arrays(fields, fields=list(CONCEPT))
    return pa.ListArray.from_arrays(offsets, entries).cast(SCHEMA.field("concepts").type)


def _check_values(table: pa.Table, path: str) -> None:
    """Raises CocuError where a value is missing or a score is not finite: readers count on both."""
    for name in SCHEMA.names:
        if table[name].null_count:
            raise CocuError(f"{path}: {table[name].null_count} rows have no {name}")
    for chunk in table["concepts"].chunks:
        entries = chunk.flatten()
        for field in CONCEPT:
            values = entries.field(field.name)
            if entries.null_count or values.null_count:
                raise CocuError(f"{path}: an entry of an archive has no {field.name}")
            if pa.types.is_floating(field.type) and not np.isfinite(values.to_numpy()).all():
                raise CocuError(f"{path}: a {field.name} is not finite")
