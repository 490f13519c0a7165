"""The output folder: where every file of a run lies, what each depends on, and whether it is still good."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from curation.archive import ConceptArchive
from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import FORMAT, read_metadata
from curation.config import CurationConfig, from_mapping, resolve_paths
from curation.samples import Shard, list_imports, list_shards

SHARD_FOLDERS = ("archives", "captions", "embeddings", "image-codes", "nouns", "rejects", "text-codes", "visualness")


@dataclass(frozen=True)
class Run:
    """A run's configuration and the paths of its files. Small: it travels to the workers."""

    config: CurationConfig
    folder: str
    forecast: bool = False  # stages find out what they would do, and do nothing

    def path(self, *parts: str) -> str:
        """A file of the output folder."""
        return files.join(self.folder, *parts)

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
        return files.join(self.config.retrieval.data or self.folder, "index", f"{kind}.faiss")

    @cached_property
    def shards(self) -> list[Shard]:
        """The input shards, in order."""
        return list_imports(self.config.embeddings) if self.config.embeddings else list_shards(self.config.shards)


def open_run(folder: str) -> Run:
    """A finished run. Raises CocuError when the folder holds none."""
    values = ConceptArchive.open(folder).manifest["config"]
    resolve_paths(values, files.base(folder))
    return Run(from_mapping(values, files.join(folder, "manifest.json")), folder)


def portable(config: CurationConfig, folder: str) -> dict[str, Any]:
    """The configuration as JSON, local input paths relative to the output folder: what :func:`open_run` reads back."""

    def relative(path: str) -> str:
        local = not files.is_remote(path) and not files.is_remote(folder)
        return os.path.relpath(path, files.base(folder)) if local else path

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
    return {"fingerprint": files.digest(FORMAT, parameters, inputs), "parameters": parameters}


def recorded(path: str, stage: str) -> dict[str, Any]:
    """The record of ``stage`` in a Parquet file or in index.json; empty when there is none.

    A damaged file counts as absent, so that it is written again.
    """
    if not files.exists(path):
        return {}
    try:
        found = (files.read_note(path) if path.endswith(".json") else read_metadata(path)).get(stage)
    except CocuError:
        return {}
    return found if isinstance(found, dict) else {}


def changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Why an output with record ``old`` has to be computed again as ``new``, in one line; empty when it is still good."""
    if not old or old["fingerprint"] == new["fingerprint"]:
        return ""
    before, after = old["parameters"], new["parameters"]
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in after.items() if before.get(key) != value]
    return "; ".join(changed) or "its inputs changed"
