"""results.json over several runs: one result for each checkpoint, benchmark and setting; none of them is lost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from curation.base import files


def merge(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a run, with what an earlier document holds and this run has not measured again.

    Under ``benchmarks`` is the newest result of each benchmark for the checkpoint of ``now``; ``earlier`` lists those of
    other checkpoints and settings. Every result says with which options and versions it was measured.
    """
    measured = results(now)
    again = {_key(result) for result in measured}
    kept = [result for result in results(before) if _key(result) not in again]

    sha256 = now["checkpoint"]["sha256"]
    benchmarks = {**now["benchmarks"], **{result["benchmark"]: _entry(result) for result in measured}}
    earlier = []
    for result in kept:
        name = result["benchmark"]
        if result["checkpoint"]["sha256"] == sha256 and benchmarks.get(name, {}).get("status") != "done":
            benchmarks[name] = _entry(result)
        else:
            earlier.append(result)
    return {**now, "benchmarks": benchmarks} | ({"earlier": earlier} if earlier else {})


def results(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results in a document, newest first; none in a file that is not one of ours."""
    try:
        shared = {key: document[key] for key in ("checkpoint", "options", "versions")}
        current = [
            {"benchmark": name, **shared, **entry}
            for name, entry in document["benchmarks"].items()
            if entry["status"] == "done"
        ]
        listed = [*current, *document.get("earlier", [])]
        for result in listed:
            _key(result)
    except (KeyError, TypeError, AttributeError):
        return []
    return listed


def _key(result: Mapping[str, Any]) -> str:
    """What a result is the result of."""
    return files.digest(
        result["checkpoint"]["sha256"], result["benchmark"], result.get("config"), result["images"]["evaluated"]
    )


def _entry(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as it is kept under its benchmark."""
    return {key: value for key, value in result.items() if key not in ("benchmark", "checkpoint")}


def own_pictures(folder: str, sha256: str) -> None:
    """Make a folder of pictures that of a checkpoint; pictures of another checkpoint are moved beside it, not replaced.

    ``folder.json`` notes whose they are.
    """
    note = f"{folder}.json"
    owner = files.read_note(note).get("sha256", "earlier")
    if owner != sha256 and files.files_in(folder):
        aside = f"{folder}-{str(owner)[:8]}"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
    files.write_json(note, {"sha256": sha256}, durable=False)
