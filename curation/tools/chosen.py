"""A folder of archives that were chosen from those of a run, as they are or under other keys: read like any run's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive import ConceptArchive, read_metadata
from curation.archive.entries import entries, one_chunk
from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import open_parquet, write_table
from curation.base.ragged import Ragged, is_in
from curation.run.run import open_run, portable, relative_paths

FOLDERS = ("archives", "embeddings", "identities", "rejects")
REJECTS = pa.schema([("key", pa.string()), ("reason", pa.string())])


@dataclass(frozen=True)
class ChosenShard:
    """What is written for a shard."""

    name: str
    path: str  # of its tar
    archives: pa.Table
    embeddings: pa.Table | None  # of the same rows, where the run has them
    rejects: list[tuple[str, str]]  # key and reason of the samples that have no archive here


def read_embeddings(archive: ConceptArchive, name: str) -> pa.Table | None:
    """The embeddings file of a shard, all of its rows; None where the run has none beside its archives."""
    path = archive.path("embeddings", name)
    if not files.exists(path):
        return None
    with open_parquet(path) as file:
        return file.read()


def write_shard(archive: ConceptArchive, folder: str, shard: ChosenShard) -> dict[str, int]:
    """Write the files of a shard; returns its counts, as a manifest has them."""
    source = {"chosen from": archive.manifest.get("fingerprint", "")}
    write_table(files.join(folder, "archives", f"{shard.name}.parquet"), shard.archives, source)
    if shard.embeddings is not None:
        plain = shard.embeddings.replace_schema_metadata(None)
        write_table(files.join(folder, "embeddings", f"{shard.name}.parquet"), plain, source)
    rejects = pa.Table.from_pylist([{"key": key, "reason": reason} for key, reason in shard.rejects], REJECTS)
    write_table(files.join(folder, "rejects", f"{shard.name}.parquet"), rejects, source)
    return {"rejects": len(shard.rejects), **_counts(archive, shard)}


def _counts(archive: ConceptArchive, shard: ChosenShard) -> dict[str, int]:
    rows = shard.archives.num_rows
    lists, structs = entries(shard.archives)
    counts = {
        "rows": rows,
        "samples": rows + len(shard.rejects),
        "archive_concepts": len(structs),
        "empty": int((lists.lengths == 0).sum()),
        "caption_concepts": 0,
        "gained": int((lists.lengths > 0).sum()),
    }
    if shard.embeddings is None or not rows:
        return counts

    said = Ragged.from_arrow(one_chunk(shard.embeddings["concepts"]))
    names = structs.field("concept")
    known = pc.index_in(names.dictionary, pa.array(archive.vocabulary, pa.string())).fill_null(-1).to_numpy()
    held = lists.with_values(known[names.indices.to_numpy()])
    return counts | {
        "caption_concepts": len(said.values),
        "gained": len(np.unique(held.owners[~is_in(held, said)])),
    }


def write_manifest(
    archive: ConceptArchive,
    folder: str,
    shards: list[tuple[str, str]],
    counts: list[dict[str, int]],
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the vocabulary, and the manifest last; returns that. ``shards``: names, and paths of their tars.

    Raises CocuError where nothing is left.
    """
    total = {name: sum(count[name] for count in counts) for name in (counts[0] if counts else {})}
    if not total.get("rows"):
        raise CocuError(f"{archive.folder}: no archive is left to write")

    vocabulary = files.join(archive.folder, "vocabulary.parquet")
    if files.exists(vocabulary):
        with open_parquet(vocabulary) as file:
            write_table(files.join(folder, "vocabulary.parquet"), file.read(), read_metadata(vocabulary))
        total["concepts"] = len(archive.vocabulary)

    paths = relative_paths([path for _, path in shards], folder)
    run = open_run(archive.folder, archive.allow_remote)
    if run.config.embeddings:
        config = portable(run.config, folder)
    else:
        tars = dataclasses.replace(run.config, shards=[path for _, path in shards])
        config = portable(tars, folder) | {"shards": paths}
    manifest = {
        "format": archive.manifest.get("format", 1),
        "config": config,
        "shards": [name for name, _ in shards],
        "paths": paths,
        "counts": {"concepts": 0, "shards": len(shards)} | total,
        "chosen": {"from": archive.manifest.get("fingerprint", ""), **more},
        "versions": archive.manifest.get("versions", {}),
    }
    files.write_json(files.join(folder, "manifest.json"), manifest)
    return manifest


def begin(folder: str, archive: ConceptArchive) -> None:
    """Take away what was chosen before and lies in the folder. Raises CocuError where a run of its own lies there."""
    manifest = files.join(folder, "manifest.json")
    is_run = files.exists(files.join(folder, "run.json"))
    if is_run or (files.exists(manifest) and "chosen" not in files.read_json(manifest)):
        raise CocuError(f"{folder}: holds a run; choose another folder for archives of {archive.folder}")
    files.remove(manifest)
    for kind in FOLDERS:
        for name in files.files_in(files.join(folder, kind)):
            if name.endswith(".parquet"):
                files.remove(files.join(folder, kind, name))
