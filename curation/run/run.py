"""A run: its configuration, its shards, and where every one of its files lies."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from curation.archive import ConceptArchive
from curation.base import files
from curation.base.addresses import redacted
from curation.base.errors import CocuError, listed
from curation.base.patterns import split
from curation.base.recorded import check_openable, resolve_recorded
from curation.config import CurationConfig, EncoderConfig, VocabularyConfig, from_mapping, resolve_paths
from curation.samples import Shard, list_imports, list_shards

COUNTS = {
    *("archive_concepts", "caption_concepts", "concepts", "empty", "gained"),
    *("rejects", "rows", "samples", "shards"),
}  # of a manifest, at least
LATER = {"head_share", "keep", "kinds", "noun_share"}  # of the vocabulary: unknown to runs that finished before
SHARD_FOLDERS = (
    "archives",
    "captions",
    "embeddings",
    "image-codes",
    "neighbours",
    "nouns",
    "rejects",
    "tags",
    "text-codes",
    "thumbnails",
    "visualness",
)


@dataclass(frozen=True)
class Run:
    """What a run is made of, decided once, by :func:`plan_run` or :func:`open_run`. Small: it travels to the workers."""

    config: CurationConfig
    folder: str
    shards: tuple[Shard, ...]
    allow_remote: bool = True  # whether addresses elsewhere may be opened; those of one's own configuration may

    def path(self, *parts: str) -> str:
        """A file of the output folder."""
        return files.join(self.folder, *parts)

    def of_shard(self, kind: str, shard: Shard) -> str:
        """The Parquet file of a shard: ``kind`` is one of SHARD_FOLDERS."""
        return self.path(kind, shard.name + ".parquet")

    def of_shards(self, kind: str) -> list[str]:
        """The Parquet files of all shards, in order."""
        return [self.of_shard(kind, shard) for shard in self.shards]

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

    @property
    def graph(self) -> str:
        """The graph of all neighbours, where there is one."""
        return self.path("index", "graph.npy")

    @property
    def duplicates(self) -> str:
        """The groups of near-identical images, where these count once."""
        return self.path("index", "duplicates.arrow")

    @property
    def indexed(self) -> str:
        """The folder of the run whose images are retrieved: another one's with ``retrieval.data``."""
        return self.config.retrieval.data or self.folder

    def index(self, kind: str) -> str:
        """The FAISS index of images (``image``) or of captions (``text``)."""
        return files.join(self.indexed, "index", f"{kind}.faiss")


def plan_run(config: CurationConfig, folder: str) -> Run:
    """The run that a configuration asks for, over the shards that are there now.

    Raises CocuError when a pattern of shards matches nothing.
    """
    shards = list_imports(config.embeddings) if config.embeddings else list_shards(config.shards)
    return Run(config, folder, tuple(shards))


def open_run(folder: str, allow_remote: bool = False) -> Run:
    """A finished run, with the shards that it recorded, whatever lies at their paths by now.

    ``allow_remote``: whether tars, and the run of ``retrieval.data``, may be read at addresses that the folder names.
    Raises CocuError when the folder holds no finished run.
    """
    archive = ConceptArchive.open(folder, allow_remote)
    manifest = files.join(folder, "manifest.json")
    values = archive.manifest["config"]
    if not isinstance(archive.manifest.get("counts"), dict) or not archive.manifest["counts"].keys() >= COUNTS:
        raise CocuError(f"{manifest}: counts lacks one of {listed(sorted(COUNTS), 20)}; run cocu curate again")

    retrieval = values.get("retrieval")
    if isinstance(retrieval, dict):
        retrieval.setdefault("duplicates", "keep")  # runs that finished before there was a choice
    resolve_paths(values, files.base(folder), resolve_recorded)
    config = from_mapping(values, manifest)
    if config.retrieval.data:
        check_openable(config.retrieval.data, folder, allow_remote)
    shards = zip(range(len(archive.shards)), archive.shards, archive.paths, strict=True)
    return Run(config, folder, tuple(Shard(*item) for item in shards), allow_remote)


def indexed_run(run: Run) -> Run:
    """The run whose images are retrieved: ``run`` itself, or the one that ``retrieval.data`` names."""
    return open_run(run.config.retrieval.data, run.allow_remote) if run.config.retrieval.data else run


def tar_of(run: Run, shard: Shard) -> str:
    """The address of a shard's tar, or part of an import, to be read.

    Raises InputError for one that must not be opened unasked.
    """
    check_openable(shard.path, run.folder, run.allow_remote)
    return shard.path


def encoder_of(run: Run) -> EncoderConfig:
    """The encoder that a run recorded, to be loaded. Raises InputError for weights that must not be fetched unasked."""
    repository = run.config.encoder.model
    if repository.startswith("hf-hub:"):
        check_openable(repository.replace("hf-hub:", "hf://", 1), run.folder, run.allow_remote)
    return run.config.encoder


# --- the configuration as a run records it ------------------------------------------------------------------------------


def portable(config: CurationConfig, folder: str) -> dict[str, Any]:
    """The configuration as JSON, local input paths relative to the output folder: what :func:`open_run` reads back."""

    def relative(path: str) -> str:
        return relative_paths([path], folder)[0]

    values = {key: value for key, value in dataclasses.asdict(config).items() if value and key != "output"}
    defaults = dataclasses.asdict(VocabularyConfig())
    values["vocabulary"] = {
        key: value for key, value in values["vocabulary"].items() if key not in LATER or value != defaults[key]
    }
    if config.shards:
        joined = [config.shards] if isinstance(config.shards, str) else config.shards
        values["shards"] = relative_paths([part for pattern in joined for part in split(pattern)], folder)
    if config.embeddings:
        values["embeddings"] = relative(config.embeddings)
    values["retrieval"]["duplicates"] = "once"
    if not config.retrieval.counts_once:  # runs of before know no such key
        del values["retrieval"]["duplicates"]
    if config.retrieval.data:
        values["retrieval"]["data"] = relative(config.retrieval.data)
    if config.encoder.model.startswith("local-dir:"):
        values["encoder"]["model"] = "local-dir:" + relative(config.encoder.model.removeprefix("local-dir:"))
    if config.encoder.pretrained and os.path.isfile(config.encoder.pretrained):
        values["encoder"]["pretrained"] = relative(config.encoder.pretrained)
    if not config.vocabulary.built:
        values["vocabulary"]["source"] = relative(config.vocabulary.source)
    if config.vocabulary.embeddings:
        values["vocabulary"]["embeddings"] = relative(config.vocabulary.embeddings)
    else:  # runs of before know no such key
        del values["vocabulary"]["embeddings"]
    if not config.encoder.is_named:
        del values["encoder"]
    return values


def relative_paths(paths: Iterable[str], folder: str) -> list[str]:
    """Paths as they are recorded: local ones relative to an output folder, so that both can move together; URLs stay, but
    for what may be a secret."""
    start = files.base(folder)
    local = not files.is_remote(folder)
    return [os.path.relpath(path, start) if local and not files.is_remote(path) else redacted(path) for path in paths]
