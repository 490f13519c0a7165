"""What a run would do, without doing it: which parts of which stages are kept, computed again, or new."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from curation.base.errors import CocuError
from curation.run.run import Run
from curation.run.stages import Stage, plan, run_stage
from curation.run.stages.work import Forecast
from curation.samples import Shard


class Step(NamedTuple):
    """One part of one stage: a shard's name, or "all" for a stage that runs once."""

    stage: str
    part: str
    kept: bool
    reason: str  # why it is computed; empty when it is kept or new


def forecast(run: Run) -> list[Step]:
    """What a run would do now, in its order; nothing is written.

    Where a stage before is computed again, what reads it counts as computed too. In one case that is too much: a
    vocabulary that is chosen again may come out the same.
    """
    asking = replace(run, forecast=True)
    steps: list[Step] = []
    pending: dict[str, set[str]] = {}  # stage -> parts that would be computed
    for stage in plan(asking)[:-1]:  # the manifest is always written
        parts = asking.shards if stage.per_shard else [None]
        found = [_step(stage, asking, shard, _pending_needs(stage, shard, pending)) for shard in parts]
        pending[stage.name] = {step.part for step in found if not step.kept}
        steps += found
    return steps


def _pending_needs(stage: Stage, shard: Shard | None, pending: dict[str, set[str]]) -> list[str]:
    """The stages that this part reads and that would be computed."""
    reads = {"all", shard.name} if shard else None  # a stage that runs once reads every part
    return [name for name in stage.needs if (pending.get(name, set()) & reads if reads else pending.get(name))]


def _step(stage: Stage, run: Run, shard: Shard | None, needs: list[str]) -> Step:
    part = shard.name if shard else "all"
    if needs:
        return Step(stage.name, part, False, f"{' and '.join(needs)} computed")
    try:
        run_stage(stage, run, shard)
    except Forecast as found:
        return Step(stage.name, part, found.fresh, found.reason)
    except CocuError as error:
        return Step(stage.name, part, False, str(error))
    raise AssertionError(f"stage {stage.name} did not compare its output with what it would be")
