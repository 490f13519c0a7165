"""Archives as one table for Lance and LanceDB: with embeddings and pictures, to search and to train from."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from curation.archive.parquet import entry_fields
from curation.base import files
from curation.base.errors import CocuError
from curation.tools.chosen import read_embeddings
from curation.tools.export.images import read_images

if TYPE_CHECKING:
    from curation.archive import ConceptArchive
    from curation.tools.export.export import Export

ROWS = 256  # of a batch: their pictures are in memory


def write_shard(export: Export, name: str) -> str:
    """Nothing yet: one process writes the table."""
    return name


def finish(export: Export, shards: Iterator[str]) -> int:
    """``archives.lance``; returns the number of rows. Raises CocuError where pylance is not installed."""
    try:
        lance = importlib.import_module("lance")
    except ModuleNotFoundError:
        raise CocuError("format lance: pylance is not installed; run pip install 'cocu[lance]'") from None

    schema = schema_of(export.archive)
    batches = (batch for name in shards for batch in shard_batches(export.archive, name, schema))
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    dataset = lance.write_dataset(reader, files.join(export.folder, "archives.lance"), schema=schema, mode="overwrite")
    return int(dataset.count_rows())


def schema_of(archive: ConceptArchive) -> pa.Schema:
    """key, shard, caption, concepts; captions where there are several; embedding where the run has them; image where it has
    tars."""
    plain = [field.with_type(_plain(field.type)) for field in entry_fields(archive.schema)]
    columns = [pa.field("key", pa.string()), pa.field("shard", pa.string())]
    columns += [field for field in archive.schema if field.name not in ("key", "concepts")]
    columns.append(pa.field("concepts", pa.list_(pa.struct(plain))))
    embeddings = read_embeddings(archive, archive.shards[0]) if archive.shards else None
    if embeddings is not None:
        columns.append(pa.field("embedding", embeddings.schema.field("embedding").type))
    if archive.manifest["config"].get("shards"):
        columns.append(pa.field("image", pa.large_binary()))
    return pa.schema(columns)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_dictionary(kind) else kind


def shard_batches(archive: ConceptArchive, name: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of a shard, ROWS at a time."""
    table = archive.table(name)
    table = table.append_column("shard", pa.array([name] * table.num_rows, pa.string()))
    if "embedding" in schema.names:
        embeddings = read_embeddings(archive, name)
        if embeddings is None:
            raise CocuError(f"{archive.path('embeddings', name)}: no such file, though other shards have theirs")
        table = table.append_column("embedding", embeddings["embedding"].take(pa.array(archive.rows_of(name))))
    text = schema.remove(schema.names.index("image")) if "image" in schema.names else schema
    table = table.select(text.names).cast(text)
    if "image" not in schema.names:
        yield from table.combine_chunks().to_batches(ROWS)
        return

    # A tar's images may come in another order than its rows only where it is not the one that was curated.
    images = read_images(archive, name, table["key"].to_pylist())
    for batch in table.combine_chunks().to_batches(ROWS):
        contents = [next(images).content for _ in range(batch.num_rows)]
        yield pa.record_batch([*batch.columns, pa.array(contents, pa.large_binary())], schema=schema)
