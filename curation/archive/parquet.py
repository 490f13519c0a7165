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

# Of runs whose images may have several captions: each caption with the fields that have it, and for each concept the fields
# whose captions, among those that count as support, mention it.
SOURCES = pa.list_(pa.string())
CAPTION = pa.struct([("text", pa.string()), ("sources", SOURCES)])
SEVERAL = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),  # the first one
        ("captions", pa.list_(CAPTION)),
        ("concepts", pa.list_(pa.struct([*CONCEPT, pa.field("sources", SOURCES)]))),
    ]
)

# Of runs in which near-identical images count once: the image that represents this one, null for one that counts itself.
DUPLICATE_OF = pa.field("duplicate_of", pa.struct([("shard", pa.string()), ("key", pa.string())]))


def archive_schema(several: bool = False, duplicates: bool = False) -> pa.Schema:
    """The columns of archives; ``several``: images may have several captions; ``duplicates``: these count once."""
    schema = SEVERAL if several else SCHEMA
    return schema.insert(len(schema) - 1, DUPLICATE_OF) if duplicates else schema


FORMS = tuple(archive_schema(several, duplicates) for several in (False, True) for duplicates in (False, True))


def entry_fields(schema: pa.Schema) -> list[pa.Field]:
    """The fields of an entry of an archive."""
    return list(schema.field("concepts").type.value_type)


def archive_batch(
    keys: pa.Array,
    captions: pa.Array,
    names: pa.Array,
    offsets: np.ndarray,
    concepts: np.ndarray,
    several: pa.Array | None = None,
    duplicate_of: pa.Array | None = None,
    **columns: np.ndarray | pa.Array,
) -> pa.RecordBatch:
    """Archive rows of a block of anchors.

    keys, captions (B,) and names (V,): string arrays; offsets (B + 1,), concepts (P,): CSR in descending score;
    ``columns``: score, global, local, cluster, support, (P,) each; with ``several`` (B,), lists of CAPTION, also sources,
    (P,) lists of strings. ``duplicate_of`` (B,): structs of DUPLICATE_OF, where duplicates count once.
    """
    schema = archive_schema(several is not None, duplicate_of is not None)
    fields = entry_fields(schema)
    entries = [pa.DictionaryArray.from_arrays(pa.array(concepts, pa.int32()), names)]
    entries += [pa.array(columns[field.name], field.type) for field in fields[1:]]
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(entries, fields=fields))
    more = [column for column in (several, duplicate_of) if column is not None]
    return pa.record_batch([keys, captions, *more, lists], schema=schema)


# --- reading --------------------------------------------------------------------------------------------------------------


def read_archive(path: str) -> pa.Table:
    """The archives of one shard: key, caption, concepts, in the order of the tar; captions too, where there are several.

    Files that pandas, polars or DuckDB have written from ours are read too: what counts is what the columns mean, not how
    that program stores text, whole numbers or lists. Raises CocuError when the file is missing or damaged, or holds
    anything else.
    """
    with open_parquet(path, mapped=True) as file:
        is_ours = any(file.schema_arrow.equals(form) for form in FORMS)
        if not is_ours:
            _check_columns(file.schema_arrow, path)
        schema = _schema_of(file.schema_arrow)
        # Arrow cannot read a dictionary inside a struct over several row groups at once.
        columns = None if is_ours else schema.names
        groups = [file.read_row_group(number, columns=columns) for number in range(file.num_row_groups)]
        tables = groups if is_ours else [_converted(group, schema, path) for group in groups]
        table = pa.concat_tables(tables) if tables else schema.empty_table()

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


def _schema_of(schema: pa.Schema) -> pa.Schema:
    """Which of FORMS archives of anyone's columns have."""
    entry = schema.field("concepts").type.value_type
    has_sources = schema.get_field_index("captions") >= 0 and entry.get_field_index("sources") >= 0
    has_duplicates = schema.get_field_index("duplicate_of") >= 0
    return archive_schema(has_sources, has_duplicates and pa.types.is_struct(schema.field("duplicate_of").type))


def _converted(table: pa.Table, schema: pa.Schema, path: str) -> pa.Table:
    """Archives with our types, from columns that mean the same."""
    try:
        texts = [table[name].cast(schema.field(name).type) for name in schema.names[:-1]]
        kind = schema.field("concepts").type
        lists = pa.chunked_array([_lists(chunk, kind) for chunk in table["concepts"].chunks], kind)
    except pa.ArrowException as error:
        raise CocuError(f"{path}: cannot be read as a concept archive ({one_line(error, 200)})") from None
    return pa.table([*texts, lists], schema=schema)


def _lists(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Lists of entries of any list type, as ``kind``; an archive that is null has no concepts."""
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    structs = column.flatten()
    expected = list(kind.value_type)
    fields = []
    for field in expected:
        values = pc.struct_field(structs, field.name)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        is_text = pa.types.is_dictionary(field.type)
        fields.append(values.cast(pa.string()).dictionary_encode() if is_text else values.cast(field.type))

    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    entries = pa.StructArray.from_arrays(fields, fields=expected)
    return pa.ListArray.from_arrays(offsets, entries).cast(kind)


def _check_values(table: pa.Table, path: str) -> None:
    """Raises CocuError where a value is missing or a score is not finite: readers count on both."""
    for name in table.column_names:
        if table[name].null_count and name != DUPLICATE_OF.name:
            raise CocuError(f"{path}: {table[name].null_count} rows have no {name}")
    for chunk in table["captions"].chunks if "captions" in table.column_names else ():
        captions = chunk.flatten()
        if captions.null_count or captions.field("text").null_count or len(chunk) > len(captions):
            raise CocuError(f"{path}: a row, or one of its captions, has no text")
    for chunk in table["concepts"].chunks:
        entries = chunk.flatten()
        for field in entry_fields(table.schema):
            values = entries.field(field.name)
            if entries.null_count or values.null_count:
                raise CocuError(f"{path}: an entry of an archive has no {field.name}")
            if pa.types.is_floating(field.type) and not np.isfinite(values.to_numpy()).all():
                raise CocuError(f"{path}: a {field.name} is not finite")
