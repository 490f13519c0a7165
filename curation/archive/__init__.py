"""Concept archives: how they lie on disk, and how to read, sample and join them. Light to import: no Beam, no torch.

parquet.py     the files: one Parquet file per shard, one row per sample
folder.py      what a curation run has written, found again: shards, counts, archives
shard.py       the archives of one shard as arrays
sampling.py    concepts and prompts drawn from archives, seeded by (epoch, key)
joining.py     samples of a tar beside their archives, matched by key
"""

from curation.archive.folder import ConceptArchive, Source, list_sources
from curation.archive.joining import join, read_tar
from curation.archive.parquet import (
    FORMAT,
    SCHEMA,
    archive_batch,
    open_parquet,
    parquet_writer,
    read_archive,
    read_metadata,
    write_table,
)
from curation.archive.sampling import Sampler, prompts, seeds, templates
from curation.archive.shard import ShardArchives, read_shard
from curation.errors import CurationError

__all__ = [
    "FORMAT",
    "SCHEMA",
    "ConceptArchive",
    "CurationError",
    "Sampler",
    "ShardArchives",
    "Source",
    "archive_batch",
    "join",
    "list_sources",
    "open_parquet",
    "parquet_writer",
    "prompts",
    "read_archive",
    "read_metadata",
    "read_shard",
    "read_tar",
    "seeds",
    "templates",
    "write_table",
]
