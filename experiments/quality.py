"""How well the archives of each folder agree with what is visible, for data whose sidecars say so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.archive import ConceptArchive
from curation.run.run import open_run
from curation.tools.measure import NoTruthError, Ragged, World, quality, read_world

FIELDS = ["objects", "stuff"]  # of the sidecars


def read_truth(base: Path) -> World | None:
    """What is visible in the data of a finished run; None where its sidecars do not say."""
    try:
        return read_world(open_run(str(base)), FIELDS)
    except NoTruthError:
        return None


def quality_table(folders: Sequence[Path], truth: World) -> list[dict[str, Any]]:
    """One line a folder of archives: their size, recall and precision, all and among what captions omit, in 0..1."""
    lines = []
    for folder in folders:
        measured = quality(read_ragged(folder), truth.visible, truth.said)
        line: dict[str, Any] = {"archives": folder.name, "concepts": measured.concepts, "recall": measured.recall}
        line |= {f"precision at {k}": value for k, value in measured.precision.items()}
        line |= {f"new, precision at {k}": value for k, value in measured.new_precision.items()}
        lines.append(line)
    return lines


def read_ragged(folder: Path) -> Ragged:
    """All archives of a folder."""
    archive = ConceptArchive.open(str(folder))
    shards = [archive.read(name) for name in archive.shards]
    lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Ragged(offsets, np.concatenate([shard.concepts for shard in shards]).astype(np.int64))
