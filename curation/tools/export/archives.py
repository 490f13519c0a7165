"""A folder like a run's, with the archives that the filters keep, which may be given to others: with a data card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from curation.archive.identity import of_keys, read_identities
from curation.base import files
from curation.base.parquet import read_columns, write_table
from curation.tools.chosen import REJECTS, ChosenShard, begin, read_embeddings, write_manifest
from curation.tools.chosen import write_shard as write_files
from curation.tools.export.card import data_card

if TYPE_CHECKING:
    from curation.archive import ConceptArchive
    from curation.tools.export.export import Export

LEFT_OUT = "left out by the filter of an export"


class Written(NamedTuple):
    """A shard that was written."""

    name: str
    path: str
    counts: dict[str, int]


def prepare(export: Export) -> None:
    """Take away what an earlier export left. Raises CocuError where the folder is that of a run."""
    begin(export.folder, export.archive)


def write_shard(export: Export, name: str) -> Written:
    """Write the archives of a shard, and what lies beside them."""
    archive = export.archive
    table, rows = archive.table(name), pa.array(archive.rows_of(name))
    embeddings = read_embeddings(archive, name)
    path = archive.paths[archive.shards.index(name)]
    chosen = embeddings.take(rows) if embeddings is not None else None
    rejects = _rejects(archive, name) + [(key, LEFT_OUT) for key in sorted(archive.left_out(name))]
    counts = write_files(archive, export.folder, ChosenShard(name, path, table, chosen, rejects))

    if export.identities:
        source = next(source for source in archive.sources if source.name == name)
        known = of_keys(read_identities(source), table["key"].to_pylist(), source.path)
        write_table(files.join(export.folder, "identities", f"{name}.parquet"), known, {})
    return Written(name, path, counts)


def _rejects(archive: ConceptArchive, name: str) -> list[tuple[str, str]]:
    path = archive.path("rejects", name)
    if not files.exists(path):
        return []
    rows = read_columns(path, {field.name: field.type for field in REJECTS}).to_pylist()
    return [(row["key"], row["reason"]) for row in rows]


def finish(export: Export, shards: Iterator[Written]) -> int:
    """The vocabulary, the data card, and the manifest last; returns the number of archives."""
    written = [shard for shard in shards if shard.counts["rows"]]
    pairs = [(shard.name, shard.path) for shard in written]
    filters = [str(condition) for condition in export.archive.filters]
    manifest = write_manifest(
        export.archive, export.folder, pairs, [shard.counts for shard in written], {"filters": filters}
    )
    card = data_card(manifest, export.archive.schema, export.identities)
    with files.atomic_write(files.join(export.folder, "README.md")) as stream:
        stream.write(card.encode())
    return int(manifest["counts"]["rows"])
