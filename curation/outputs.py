"""The output folder: where every file of a run lies, what each depends on, and whether it is still good."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from curation import storage
from curation.archive import FORMAT, ConceptArchive, open_parquet, read_metadata
from curation.config import CurationConfig, from_mapping, resolve_paths
from curation.errors import CurationError
from curation.samples import Shard, list_imports, list_shards

SHARD_FOLDERS = ("archives", "captions", "embeddings", "image-codes", "nouns", "rejects", "text-codes", "visualness")


@dataclass(frozen=True)
class Outputs:
    """A run's configuration and the paths of its files. Small: it travels to the workers."""

    config: CurationConfig
    folder: str
    forecast: bool = False  # stages find out what they would do, and do nothing

    def path(self, *parts: str) -> str:
        """A file of the output folder."""
        return storage.join(self.folder, *parts)

    def of_shard(self, kind: str, shard: Shard) -> str:
        """The Parquet file of a shard: ``kind`` is one of SHARD_FOLDERS."""
        return self.path(kind, shard.name + ".parquet")

    def stats(self, shard: Shard) -> str:
        """``stats/<shard>.json``: counts and seconds of a shard."""
        return self.path("stats", shard.name + ".json")

    @property
    def manifest(self) -> str:
        """``manifest.json``: written last."""
        return self.path("manifest.json")

    @property
    def vocabulary(self) -> str:
        """``vocabulary.parquet``."""
        return self.path("vocabulary.parquet")

    @property
    def candidates(self) -> str:
        """Concepts that may enter the vocabulary, with their embeddings, before visualness is known."""
        return self.path("candidates.parquet")

    @property
    def calibration(self) -> str:
        """Mean and standard deviation of every concept over the random sample of images."""
        return self.path("calibration.parquet")

    @property
    def index_json(self) -> str:
        """``index/index.json``: what the indexes hold, in which order."""
        return self.path("index", "index.json")

    @property
    def mentions(self) -> str:
        """What the captions of the indexed images mention, in this run's vocabulary."""
        return self.path("index", "mentions.arrow")

    def index(self, kind: str) -> str:
        """The FAISS index of images (``image``, another run's with ``retrieval.data``) or of captions (``text``)."""
        return storage.join(self.config.retrieval.data or self.folder, "index", f"{kind}.faiss")

    @cached_property
    def shards(self) -> list[Shard]:
        """The input shards, in order."""
        return list_imports(self.config.embeddings) if self.config.embeddings else list_shards(self.config.shards)


def open_outputs(folder: str) -> Outputs:
    """A finished run. Raises CurationError when the folder holds none."""
    values = ConceptArchive.open(folder).manifest["config"]
    resolve_paths(values, storage.base(folder))
    return Outputs(from_mapping(values, storage.join(folder, "manifest.json")), folder)


def portable(config: CurationConfig, folder: str) -> dict[str, Any]:
    """The configuration as JSON, local input paths relative to the output folder: what :func:`open_outputs` reads back."""

    def relative(path: str) -> str:
        local = not storage.is_remote(path) and not storage.is_remote(folder)
        return os.path.relpath(path, storage.base(folder)) if local else path

    values = {key: value for key, value in dataclasses.asdict(config).items() if value and key != "output"}
    if config.shards:
        values["shards"] = [
            relative(item) for item in ([config.shards] if isinstance(config.shards, str) else config.shards)
        ]
    if config.embeddings:
        values["embeddings"] = relative(config.embeddings)
    if config.retrieval.data:
        values["retrieval"]["data"] = relative(config.retrieval.data)
    if config.encoder.model.startswith("local-dir:"):
        values["encoder"]["model"] = "local-dir:" + relative(config.encoder.model.removeprefix("local-dir:"))
    if config.encoder.pretrained and os.path.isfile(config.encoder.pretrained):
        values["encoder"]["pretrained"] = relative(config.encoder.pretrained)
    if not config.vocabulary.built:
        values["vocabulary"]["source"] = relative(config.vocabulary.source)
    return values


# --- what an output depends on -----------------------------------------------------------------------------------------


def record(parameters: dict[str, Any], inputs: Any) -> dict[str, Any]:
    """What an output carries about itself: its parameters, and a fingerprint of all that decides its content.

    ``inputs``: fingerprints or content hashes of what it was computed from.
    """
    return {"fingerprint": storage.digest(FORMAT, parameters, inputs), "parameters": parameters}


def recorded(path: str, stage: str) -> dict[str, Any]:
    """The record of ``stage`` in a Parquet file or in index.json; empty when there is none.

    A damaged file counts as absent, so that it is written again.
    """
    if not storage.exists(path):
        return {}
    try:
        found = (storage.read_note(path) if path.endswith(".json") else read_metadata(path)).get(stage)
    except CurationError:
        return {}
    return found if isinstance(found, dict) else {}


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Why an output with record ``old`` has to be computed again as ``new``, in one line; empty when it is still good."""
    if not old or old["fingerprint"] == new["fingerprint"]:
        return ""
    before, after = old["parameters"], new["parameters"]
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in after.items() if before.get(key) != value]
    return "; ".join(changed) or "its inputs changed"


def row_count(path: str) -> int:
    """Rows of a Parquet file, without reading them."""
    with open_parquet(path) as file:
        return int(file.metadata.num_rows)


def blocks(path: str, columns: list[str], size: int) -> Iterator[pa.RecordBatch]:
    """Row blocks of a Parquet file, in order, ``size`` rows each (the last may be shorter)."""
    with open_parquet(path) as file:
        yield from file.iter_batches(batch_size=size, columns=columns)
