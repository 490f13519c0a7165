"""Archives as a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import datasets
import pyarrow as pa

from curation.archive.reader import ArchiveReader

NUMBERS = {"score": "float32", "global": "float32", "local": "float32", "cluster": "int16", "support": "int16"}
TEXT = datasets.Value("string")
ENTRY = {"concept": TEXT} | {name: datasets.Value(kind) for name, kind in NUMBERS.items()}
FEATURES = datasets.Features({"key": TEXT, "caption": TEXT, "concepts": [ENTRY]})
SEVERAL = datasets.Features(
    {
        "key": TEXT,
        "caption": TEXT,
        "captions": [{"text": TEXT, "sources": [TEXT]}],
        "concepts": [ENTRY | {"sources": [TEXT]}],
    }
)


def features_of(archives: pa.Schema) -> datasets.Features:
    """The features of archives of these columns."""
    features = SEVERAL if "captions" in archives.names else FEATURES
    if "duplicate_of" not in archives.names:
        return features
    by_name = dict(features) | {"duplicate_of": {"shard": TEXT, "key": TEXT}}
    return datasets.Features({name: by_name[name] for name in archives.names})


def whole(archives: pa.Table) -> datasets.Dataset:
    """All archives, as a map-style data set in memory."""
    schema = features_of(archives.schema).arrow_schema
    plain = archives.cast(schema)  # concept names as plain strings
    return datasets.Dataset(datasets.table.InMemoryTable(pa.table(plain.columns, schema=schema)))


def stream(archive: ArchiveReader) -> datasets.IterableDataset:
    """The archives as a data set that reads shard by shard."""
    shards = {"archive": archive, "shards": archive.shards}  # datasets splits the list over workers
    return datasets.IterableDataset.from_generator(_rows, features=features_of(archive.schema), gen_kwargs=shards)


def _rows(archive: ArchiveReader, shards: list[str]) -> Iterator[dict[str, Any]]:
    for name in shards:
        yield from archive.table(name).to_pylist()
