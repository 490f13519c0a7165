"""How well the archives of each folder agree with what is visible, for data whose sidecars say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curation.archive import ConceptArchive
from curation.base.ragged import Ragged
from curation.run.run import open_run
from curation.tools.quality import LabelledData, quality
from curation.tools.truth import NoTruthError, read_labelled

FIELDS = ["objects", "stuff"]  # of the sidecars


def read_truth(base: Path) -> LabelledData | None:
    """What is visible in the data of a finished run; None where its sidecars do not say."""
    try:
        return read_labelled(open_run(str(base)), FIELDS)
    except NoTruthError:
        return None


def quality_table(folders: Sequence[Path], truth: LabelledData) -> list[dict[str, Any]]:
    """One line a folder of archives: their size, recall and precision, all and among what captions omit, in 0..1."""
    lines = []
    for folder in folders:
        measured = quality(read_concepts(folder), truth.visible, truth.mentioned)
        line: dict[str, Any] = {"archives": folder.name, "concepts": measured.concepts, "recall": measured.recall}
        line |= {f"precision at {k}": value for k, value in measured.precision.items()}
        line |= {f"new, precision at {k}": value for k, value in measured.new_precision.items()}
        lines.append(line)
    return lines


def read_concepts(folder: Path) -> Ragged:
    """The concept ids of all archives of a folder."""
    archive = ConceptArchive.open(str(folder))
    return Ragged.concatenate(archive.read(name).lists for name in archive.shards)
