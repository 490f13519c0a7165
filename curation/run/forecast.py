"""What a run would do, without doing it: which parts of which stages are kept, computed again, or new."""

from __future__ import annotations

from typing import NamedTuple

from curation.base.errors import CocuError
from curation.run.progress import WHOLE
from curation.run.records import Record, read_record
from curation.run.run import Run
from curation.run.stages import Stage, compare, plan
from curation.samples import Shard


class Step(NamedTuple):
    """One part of one stage: a shard's name, or "all" for a stage that runs once."""

    stage: str
    part: str
    kept: bool
    reason: str  # why it is computed; empty when it is kept or new


def forecast(run: Run) -> list[Step]:
    """What a run would do now, in its order; nothing is written.

    Where a stage before is computed again, what reads its record counts as computed too. In one case that is too much: a
    vocabulary that is chosen again may come out the same.
    """
    steps: list[Step] = []
    pending: set[tuple[str, str]] = set()  # files and stages whose record there would change
    for stage in plan(run):
        for shard in run.shards if stage.per_shard else [None]:
            step = _step(stage, run, shard, pending)
            steps.append(step)
            if not step.kept:
                where = (run, shard) if shard else (run,)
                pending.add((stage.output(*where), stage.name))
    return steps


def _step(stage: Stage, run: Run, shard: Shard | None, pending: set[tuple[str, str]]) -> Step:
    """What happens to one part, where the ``pending`` records would change before."""
    part = shard.name if shard else WHOLE
    needs: dict[str, None] = {}  # pending stages whose records were read, in order

    def read(path: str, name: str) -> Record:
        if (path, name) in pending:
            needs[name] = None
            return _PENDING
        return read_record(path, name)

    try:
        comparison = compare(stage, run, shard, read)
    except (CocuError, KeyError) as error:
        return Step(stage.name, part, False, _computed(needs) or str(error))
    if needs:
        return Step(stage.name, part, False, _computed(needs))
    return Step(stage.name, part, comparison.is_fresh, comparison.reason)


_PENDING: Record = {"fingerprint": "pending", "content": "pending", "search": None}


def _computed(needs: dict[str, None]) -> str:
    return f"{' and '.join(needs)} computed" if needs else ""
