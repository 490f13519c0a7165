"""What a curation run has written, found again: its shards, their archives and how many rows they have."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from curation import storage
from curation.archive.parquet import open_parquet
from curation.archive.shard import ShardArchives, read_caption_concepts, read_shard
from curation.errors import CurationError

READERS = 16  # Parquet footers read at once: remote ones take long one by one


class Source(NamedTuple):
    """A tar, and where to find what belongs to it."""

    name: str  # the file's stem
    path: str
    image: str  # webdataset fields, separated by semicolons; the first that is present wins
    caption: str


@dataclass(frozen=True)
class ConceptArchive:
    """The output folder of a finished curation run. Use :meth:`open`."""

    folder: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: str) -> ConceptArchive:
        """Open an output folder, local or remote. Raises CurationError when it holds no finished run."""
        manifest = storage.join(folder, "manifest.json")
        if not storage.exists(manifest):
            raise CurationError(f"{folder}: no manifest.json, so no finished curation; run make curate first")
        values = storage.read_json(manifest)
        if not isinstance(values.get("config"), dict):
            raise CurationError(f"{manifest}: has no config; run make curate again")
        return cls(folder, values)

    def path(self, kind: str, name: str) -> str:
        """The Parquet file of a shard: ``kind`` is archives, embeddings or rejects."""
        return storage.join(self.folder, kind, name + ".parquet")

    @cached_property
    def sources(self) -> list[Source]:
        """The tars that were curated, in order.

        Raises CurationError when there are none (embeddings were imported), or they are no longer there.
        """
        config = self.manifest["config"]
        if not config.get("shards"):
            raise CurationError(
                f"{self.folder}: was made from imported embeddings, not from tars; give the tars as shards"
            )
        base = self.folder if storage.is_remote(self.folder) else os.path.abspath(self.folder)
        patterns = [config["shards"]] if isinstance(config["shards"], str) else config["shards"]
        return list_sources([storage.resolve(item, base) for item in patterns], config["image"], config["caption"])

    @cached_property
    def rows(self) -> list[int]:
        """Archives of each shard, in the order of :attr:`sources`. Raises CurationError when a file is missing."""

        def count(source: Source) -> int:
            with open_parquet(self.path("archives", source.name)) as file:
                return file.metadata.num_rows

        with ThreadPoolExecutor(READERS) as pool:
            return list(pool.map(count, self.sources))

    def read(self, name: str, mentioned: bool = False) -> ShardArchives:
        """The archives of a shard; with ``mentioned``, the concepts that its captions mention in their place."""
        archives = read_shard(self.path("archives", name))
        if not mentioned:
            return archives
        vocabulary = storage.join(self.folder, "vocabulary.parquet")
        return read_caption_concepts(self.path("embeddings", name), vocabulary, archives)

    def rejected(self, name: str) -> set[str]:
        """Keys of the samples of a shard that could not be used."""
        path = self.path("rejects", name)
        if not storage.exists(path):
            return set()
        with open_parquet(path) as file:
            return set(file.read(["key"])["key"].to_pylist())


def list_sources(patterns: list[str], image: str, caption: str) -> list[Source]:
    """The tars that patterns name, in order. Raises CurationError when a pattern matches nothing."""
    found: list[Source] = []
    for pattern in patterns:
        paths = storage.expand(pattern)
        if not paths:
            raise CurationError(f"shards: {pattern} matches no file")
        for path in paths:
            name = re.sub(r"\.tar(\.\w+)?$", "", path.rstrip("/").rsplit("/", 1)[-1])
            found.append(Source(name, path, image, caption))
    return found
