"""One stage's work on one part, a shard or everything: is its output still good, how far is it, what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import read_metadata
from curation.run.progress import WHOLE, Progress
from curation.run.run import Run, changes, recorded
from curation.samples import Shard


class Forecast(Exception):
    """Raised in place of any work when only a forecast is asked for."""

    def __init__(self, fresh: bool, reason: str) -> None:
        super().__init__(reason)
        self.fresh, self.reason = fresh, reason


def nothing_to_do(run: Run) -> None:
    """Leave a stage that a part does not need. Raises Forecast where only that is asked for."""
    if run.forecast:
        raise Forecast(True, "")


class Work:
    """Compares what an output at ``path`` records under ``stage`` with what it would be now.

    ``whole``: files that belong to the output, beside ``path``, are there and undamaged.
    """

    def __init__(
        self,
        run: Run,
        stage: str,
        path: str,
        record: dict[str, Any],
        shard: Shard | None = None,
        whole: bool = True,
    ) -> None:
        self.record, self._stage, self._outputs, self._shard = record, stage, run, shard
        found = recorded(path, stage)
        self.fresh = whole and found.get("fingerprint") == record["fingerprint"]
        self._reason = changes(found, record) or ("" if whole or not found else "a file is missing or damaged")
        if run.forecast:
            raise Forecast(self.fresh, self._reason)
        self._progress = Progress(run, stage, shard.name if shard else WHOLE)
        if self.fresh:
            self._progress.finish("kept")

    def advance(self, samples: int) -> None:
        """``samples`` more are done."""
        self._progress.advance(samples)

    def done(self, **counts: int) -> None:
        """The output is written: note it, with counts for ``stats/<shard>.json``."""
        self._progress.finish("computed", self._reason)
        if self._shard:
            path = self._outputs.stats(self._shard)
            stats = files.read_note(path)
            seconds = stats.get("seconds", {}) | {self._stage: round(self._progress.seconds, 3)}
            files.write_json(path, stats | counts | {"seconds": seconds})


def fingerprint_of(path: str, stage: str, what: str = "fingerprint") -> str:
    """The fingerprint that ``stage`` left in a Parquet file. Raises CocuError when it is not there."""
    found = read_metadata(path).get(stage) or {}
    if what not in found:
        raise CocuError(f"{path}: says nothing of stage {stage}; delete it and run again")
    value: str = found[what]
    return value


def vocabulary_content(path: str) -> str:
    """Identifies the concepts and embeddings of ``vocabulary.parquet``, whatever they were chosen from."""
    return fingerprint_of(path, "vocabulary", "content")


def csr(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """Offsets (B + 1,) int64, from 0, and values (P,) of an Arrow list column."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten().to_numpy()
