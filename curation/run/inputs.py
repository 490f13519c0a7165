"""What a run is made of: recorded in ``run.json`` when it starts, and looked at again when it ends."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curation import encoder
from curation.base import files
from curation.base.errors import CocuError, InputError
from curation.base.parquet import FORMAT
from curation.base.recorded import check_openable
from curation.run.run import Run, open_run, portable, relative_paths
from curation.run.texts import caption_parts
from curation.samples import metadata_path

Version = dict[str, Any]  # size, and modification time or ETag


def shard_files(run: Run) -> list[str]:
    """The files of all shards."""
    paths = [shard.path for shard in run.shards]
    if not run.config.embeddings:
        return paths
    return [*paths, *map(metadata_path, paths), *caption_parts(run)]


def other_files(run: Run) -> list[str]:
    """The files beside the shards that decide what a run computes: vocabulary, local weights, another run's manifest."""
    config = run.config
    paths = [] if config.vocabulary.built else [config.vocabulary.source]
    if config.vocabulary.embeddings and config.vocabulary.embeddings not in paths:
        paths.append(config.vocabulary.embeddings)
    if config.encoder.model.startswith("local-dir:"):
        folder = config.encoder.model.removeprefix("local-dir:")
        check_openable(folder, run.folder, run.allow_remote)
        paths += [files.join(folder, name) for name in files.files_in(folder)]
    elif config.encoder.pretrained and os.path.isfile(config.encoder.pretrained):
        paths.append(config.encoder.pretrained)
    if config.retrieval.data:
        paths.append(open_run(config.retrieval.data, run.allow_remote).manifest)
    return paths


def versions_of(run: Run) -> dict[str, Version | None]:
    """Size and date of every input file, by path; None for a shard that is missing where ``on_error`` is skip.

    Raises InputError naming the first input file that is missing.
    """
    others, shards = other_files(run), shard_files(run)
    for path in others + shards:
        check_openable(path, run.folder, run.allow_remote)
    with ThreadPoolExecutor(16) as pool:  # thousands of remote files would take minutes one by one
        versions: list[Version | None] = list(pool.map(files.version, others))
        versions += pool.map(_version_if_there if run.config.on_error == "skip" else files.version, shards)
    return dict(zip(others + shards, versions, strict=True))


def _version_if_there(path: str) -> Version | None:
    try:
        return files.version(path)
    except InputError:
        return None


def request(run: Run, versions: dict[str, Version | None] | None = None) -> str:
    """Identifies what a run is asked for: its configuration, and size and date of every input file.

    Raises CocuError naming the first input file that is missing, unless it is a shard and ``on_error`` is skip.
    """
    versions = versions_of(run) if versions is None else versions
    config = portable(run.config, run.folder)
    config.pop("max_rejects", None)  # it stops runs, and changes no archive
    config.get("encoder", {}).pop("decoders", None)  # who decodes changes none either
    return files.digest(FORMAT, config, list(versions.values()))


def record_inputs(run: Run) -> None:
    """Write ``run.json``: what this run is asked for, the shards that it found, and the versions of all that it reads."""
    versions = versions_of(run)
    names = relative_paths(versions, run.folder)
    inputs = dict(zip(names, versions.values(), strict=True))
    content = {
        "format": FORMAT,
        "fingerprint": request(run, versions),
        "config": portable(run.config, run.folder),
        "encoder": encoder.identity(run.config.encoder),
        "shards": [shard.name for shard in run.shards],
        "paths": relative_paths((shard.path for shard in run.shards), run.folder),
        "inputs": inputs,
    }
    if not run.config.vocabulary.built:
        content["vocabulary"] = files.file_digest(run.config.vocabulary.source)
    files.write_json(run.path("run.json"), content)


def check_unchanged(run: Run) -> str:
    """The request of this run, where its inputs are still what they were when it started.

    Raises CocuError naming the first file that changed, was replaced or has gone since, and where ``run.json`` is missing.
    """
    recorded = files.read_json(run.path("run.json"))
    versions = versions_of(run)
    before = recorded.get("inputs", {})
    for name, path in zip(relative_paths(versions, run.folder), versions, strict=True):
        if name not in before or before[name] != versions[path]:
            raise _changed(path)
    if not run.config.vocabulary.built and recorded.get("vocabulary") != files.file_digest(
        run.config.vocabulary.source
    ):
        raise _changed(run.config.vocabulary.source)
    if recorded.get("encoder") != encoder.identity(run.config.encoder):
        raise _changed(run.config.encoder.model)

    asked = request(run, versions)
    if recorded.get("fingerprint") != asked:
        raise _changed(run.path("run.json"))
    return asked


def _changed(path: str) -> CocuError:
    return CocuError(
        f"{path}: changed while the run was working, which is not finished; run the same command again: "
        "it keeps what still holds"
    )
