"""A part of a run: a range of its shards, for one of many processes that fill one output folder together.

Every process computes its shards. What runs once is computed by whichever process first finds all shards there, while the
others wait for it and then keep what it wrote, as a run that is started again does. One of them writes the manifest.
"""

from __future__ import annotations

import re
import time
from typing import NamedTuple

from curation.base.errors import CocuError
from curation.run.manifest import finish, finished
from curation.run.progress import read_progress
from curation.run.records import recorded
from curation.run.run import Run
from curation.run.sharing import one_at_a_time
from curation.run.stages import Stage, compare, plan, run_stage
from curation.samples import Shard

POLL = 1.0  # seconds
NAMED = 3  # shards in a message


class Part(NamedTuple):
    """The shards of one process, and how long it waits for the others."""

    shards: tuple[Shard, ...]
    patience: float  # seconds without a sign of the others


def part_of(run: Run, shards: str, patience: float) -> Part:
    """The part of a run that ``shards`` names: a range "A:B" of its list of shards, from A up to B without B.

    Like a slice, it ends where the list ends. Raises CocuError when it is not a range, or holds no shard.
    """
    match = re.fullmatch(r"(\d*):(\d*)", shards)
    if not match:
        raise CocuError(f"only-shards: {shards!r} is not a range; write A:B, for the shards from A up to B without B")
    first, end = int(match[1] or 0), int(match[2] or len(run.shards))
    if not first < min(end, len(run.shards)):
        raise CocuError(f"only-shards: {shards} holds no shard; there are {len(run.shards)}, from 0")
    return Part(run.shards[first:end], patience)


def run_together(stage: Stage, run: Run, patience: float) -> None:
    """Run a stage that runs once, when all shards are ready for it, unless another process has done so.

    Raises CocuError when the others' shards do not come.
    """
    stages = plan(run)
    names = [other.name for other in stages]
    wait_for_shards(stages[: names.index(stage.name)], run, patience)
    with one_at_a_time(run):
        if not (compare(stage, run, None).is_fresh and read_progress(run, stage.name)):
            run_stage(stage, run)


def finish_together(run: Run, patience: float) -> bool:
    """Write the manifest when all archives are there, unless another process has; returns whether it was this one."""
    wait_for_shards(plan(run), run, patience)
    with one_at_a_time(run):
        if finished(run):
            return False
        finish(run)
        return True


def wait_for_shards(stages: list[Stage], run: Run, patience: float) -> None:
    """Wait until those of ``stages`` that work on shards have done so with all shards.

    Raises CocuError when nothing has happened to the missing ones for ``patience`` seconds.
    """
    missing = [(stage, shard) for stage in stages if stage.per_shard for shard in run.shards]
    sign, since = 0.0, time.monotonic()
    while missing := [item for item in missing if not _is_there(*item, run)]:
        latest = _sign_of_life(missing, run)
        if latest != sign:
            sign, since = latest, time.monotonic()
        if time.monotonic() - since > patience:
            stage = missing[0][0]
            names = [shard.name for other, shard in missing if other is stage]
            some = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
            raise CocuError(
                f"stage {stage.name}: {len(names)} of {len(run.shards)} shards are missing ({some}), and nobody has worked "
                f"on them for {patience:.0f} seconds; start their processes, and then this command again"
            )
        time.sleep(POLL)


def _is_there(stage: Stage, shard: Shard, run: Run) -> bool:
    try:
        # A shard that cannot be read is tried again by every run, but not waited for.
        is_unreadable = recorded(stage.output(run, shard), stage.name).get("counts", {}).get("unreadable")
        return bool(is_unreadable) or compare(stage, run, shard).is_fresh
    except (CocuError, KeyError):  # what it depends on is not there yet
        return False


def _sign_of_life(missing: list[tuple[Stage, Shard]], run: Run) -> float:
    """A number that changes when anything happens to missing shards: one is done, or its worker has noted how far it is."""
    names = {shard.name for _, shard in missing}
    latest = 0.0
    for stage in {stage.name for stage, _ in missing}:
        try:
            latest += sum(note.at for note in read_progress(run, stage) if note.part in names)
        except CocuError:  # the notes are being cleared
            continue
    return latest - len(missing)
