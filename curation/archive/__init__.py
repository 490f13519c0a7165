"""Concept archives: how they lie on disk, and how to read, sample and join them. Light to import: no Beam, no torch.

folder.py      ConceptArchive: what is read, handed to other tools
reader.py      the archives of a run by shard and by key, filtered, selected, as prompts
parquet.py     the files: one Parquet file per shard, one row per sample
captions.py    the captions of a sample, in fields of a tar or within json
source.py      the tars that archives were made from
keys.py        where the archive of a key lies
entries.py     the concepts of many archives as one flat list: filtered, or one row each
shard.py       the archives of one shard as arrays
sampling.py    concepts and prompts drawn from archives, seeded by (epoch, key)
joining.py     samples of a tar beside their archives, matched by key
huggingface.py archives as a Hugging Face data set
thumbnails.py  pictures of a few samples, from their tars
display.py     archives in a terminal and in a notebook
"""

from curation.archive.entries import Filter, flatten
from curation.archive.folder import ConceptArchive
from curation.archive.joining import NO_ARCHIVE, REJECTED, join, read_tar
from curation.archive.parquet import SCHEMA, SEVERAL, archive_batch, archive_schema, read_archive
from curation.archive.sampling import Sampler, choose, prompts, seeds, templates
from curation.archive.shard import Draw, ShardArchives, read_shard
from curation.archive.source import Source, list_sources
from curation.base.errors import AmbiguousKey, CocuError, UnknownKey
from curation.base.parquet import FORMAT, open_parquet, parquet_writer, read_metadata, write_table

CurationError = CocuError  # the name by which users of archives know the root of our errors

__all__ = [
    "FORMAT",
    "NO_ARCHIVE",
    "REJECTED",
    "SCHEMA",
    "SEVERAL",
    "AmbiguousKey",
    "ConceptArchive",
    "CurationError",
    "Draw",
    "Filter",
    "Sampler",
    "ShardArchives",
    "Source",
    "UnknownKey",
    "archive_batch",
    "archive_schema",
    "choose",
    "flatten",
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
