"""A stage: the record that its output should carry, and the computation. One function compares, computes or keeps."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from curation.base import files
from curation.base.errors import CocuError, one_line
from curation.base.processors import usable_processors
from curation.run.progress import WHOLE, Progress
from curation.run.records import Record, changes, read_record, recorded
from curation.run.run import Run
from curation.samples import Shard


def _nothing_else(*where: Any) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One step of a run, on every shard (``where`` is run and shard) or once (``where`` is the run).

    Attributes:
        name: of its record, its progress and its line in tables.
        per_shard: whether it works on shards, in parallel, or once.
        output: ``output(*where)``, the file that carries the record.
        expected: ``expected(*where, read)``, the record that the output should carry now, or None where this part has
            nothing to do. ``read(path, stage)`` is its only way to the records that it depends on, so that a forecast
            learns from it what the stage needs.
        compute: ``compute(*where, record, progress)`` writes the output with its record, tells ``progress`` how many
            samples are done, and returns counts for the shard's statistics, or None.
        is_whole: ``is_whole(*where)``, whether the files that belong to the output are there and undamaged.
    """

    name: str
    per_shard: bool
    output: Callable[..., str]
    expected: Callable[..., Record | None]
    compute: Callable[..., dict[str, int] | None]
    is_whole: Callable[..., bool] = _nothing_else


class Overtaken(Exception):
    """Another attempt at the same part has finished first: its output stays."""


@dataclass(frozen=True)
class Comparison:
    """An output beside what it should be now."""

    expected: Record | None  # None: there is nothing to do
    is_fresh: bool
    reason: str  # why it is computed again; empty when it is fresh or new


def compare(
    stage: Stage, run: Run, shard: Shard | None, read: Callable[[str, str], Record] = read_record
) -> Comparison:
    """Whether the output of a stage, for one shard where it works on shards, is still good; nothing is written."""
    where = (run, shard) if shard else (run,)
    expected = stage.expected(*where, read)
    if expected is None:
        return Comparison(None, True, "")

    written = recorded(stage.output(*where), stage.name)
    whole = stage.is_whole(*where)
    reason = changes(written, expected) or ("" if whole or not written else "a file is missing or damaged")
    return Comparison(expected, whole and written.get("fingerprint") == expected["fingerprint"], reason)


def require_ahead(stage: Stage, run: Run, shard: Shard) -> None:
    """Raises Overtaken when the output has come to be good: for a stage to call just before it writes its own.

    An engine that lost a machine may try a shard again while the first attempt at it still works. The slower one must not
    put its file in the place of one into which later stages may have written.
    """
    if compare(stage, run, shard).is_fresh:
        raise Overtaken


def run_stage(stage: Stage, run: Run, shard: Shard | None = None) -> None:
    """Keep the output of a stage or compute it. Any error becomes one line that names the shard.

    A shard is worked on in one thread: the engine runs many shards at once, and results must not depend on how many.
    What runs once has the machine to itself; FAISS' k-means, its long part, gives the same bits with any number of threads.
    """
    import faiss
    import torch

    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1 if stage.per_shard else usable_processors())
    try:
        # numpy's BLAS has threads of its own
        with threadpool_limits(1) if stage.per_shard else contextlib.nullcontext():
            _keep_or_compute(stage, run, shard)
    except CocuError:
        raise
    except Exception as error:
        where = shard.path if shard else run.folder
        reason = f"{type(error).__name__}: {one_line(error, 500)}"
        raise CocuError(f"{where}: stage {stage.name} failed: {reason}") from error


def _keep_or_compute(stage: Stage, run: Run, shard: Shard | None) -> None:
    comparison = compare(stage, run, shard)
    if comparison.expected is None:
        return
    progress = Progress(run, stage.name, shard.name if shard else WHOLE)
    if comparison.is_fresh:
        progress.finish("kept")
        return

    where = (run, shard) if shard else (run,)
    try:
        counts = stage.compute(*where, comparison.expected, progress)
    except Overtaken:
        progress.finish("kept")
        return
    _check_still_fresh(stage, run, shard, counts or {})
    progress.finish("computed", comparison.reason)
    if shard:
        stats = files.read_note(run.stats(shard))
        seconds = stats.get("seconds", {}) | {stage.name: round(progress.seconds, 3)}
        files.write_json(run.stats(shard), stats | (counts or {}) | {"seconds": seconds})


def _check_still_fresh(stage: Stage, run: Run, shard: Shard | None, counts: dict[str, int]) -> None:
    """Raises CocuError where what was just computed would be computed again: its input changed in the meantime."""
    if counts.get("unreadable"):  # never fresh, so that the next run tries again
        return
    comparison = compare(stage, run, shard)
    written = recorded(stage.output(*((run, shard) if shard else (run,))), stage.name)
    if comparison.expected is not None and written.get("fingerprint") != comparison.expected["fingerprint"]:
        where = shard.path if shard else run.folder
        raise CocuError(
            f"{where}: changed while stage {stage.name} worked on it ({comparison.reason}); run the same command again"
        )
