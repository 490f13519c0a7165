"""What an output records about itself, and whether that is still what would be computed now.

An output, a Parquet file or an entry of ``index.json``, carries the record of its stage: its parameters, and a fingerprint
of all that decides its content. A stage is computed again when the record that it would write now has another fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import FORMAT, read_metadata
from curation.run.run import Run

Record = dict[str, Any]  # fingerprint, parameters, and what else a stage notes
Reader = Callable[[str, str], Record]  # the record of a stage (second) in a file (first); see read_record


def record(parameters: dict[str, Any], inputs: Any) -> Record:
    """What an output carries about itself. ``inputs``: fingerprints or content hashes of what it was computed from."""
    return {"fingerprint": files.digest(FORMAT, parameters, inputs), "parameters": parameters}


def recorded(path: str, stage: str) -> Record:
    """The record of ``stage`` in a Parquet file or in index.json; empty when there is none.

    A damaged file counts as absent, so that it is written again.
    """
    if not files.exists(path):
        return {}
    try:
        written = (files.read_note(path) if path.endswith(".json") else read_metadata(path)).get(stage)
    except CocuError:
        return {}
    return written if _is_record(written) else {}


def read_record(path: str, stage: str) -> Record:
    """The record of ``stage``, which later stages depend on. Raises CocuError when it is not there."""
    written = (files.read_json(path) if path.endswith(".json") else read_metadata(path)).get(stage)
    if not _is_record(written) or "fingerprint" not in written:
        raise CocuError(f"{path}: has no record of stage {stage}; delete it and run again")
    return written


def _is_record(written: Any) -> TypeGuard[Record]:
    return isinstance(written, dict) and isinstance(written.get("parameters", {}), dict)


def fingerprints(paths: list[str], stage: str, read: Reader) -> list[str]:
    """The fingerprints that ``stage`` left in many files."""
    return [read(path, stage)["fingerprint"] for path in paths]


def vocabulary_content(run: Run, read: Reader) -> str:
    """Identifies the concepts and embeddings of ``vocabulary.parquet``, whatever they were chosen from."""
    return read(run.vocabulary, "vocabulary")["content"]


def changes(old: Record, new: Record) -> str:
    """Why an output with record ``old`` has to be computed again as ``new``, in one line; empty when it is still good."""
    if not old or old.get("fingerprint") == new["fingerprint"]:
        return ""
    before, after = old.get("parameters", {}), new["parameters"]
    changed = [f"{key}: {before.get(key)} -> {value}" for key, value in after.items() if before.get(key) != value]
    return "; ".join(changed) or "its inputs changed"


# --- entries of index.json ----------------------------------------------------------------------------------------------


def note(run: Run, stage: str, entry: Record) -> None:
    """Set one entry of index.json."""
    files.write_json(run.index_json, files.read_note(run.index_json) | {stage: entry})


def is_as_long_as_noted(run: Run, stage: str, path: str) -> bool:
    """Whether a file is as long as index.json says that it was written."""
    return files.exists(path) and files.version(path)["size"] == recorded(run.index_json, stage).get("bytes")
