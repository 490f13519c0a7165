"""Curation as one Apache Beam pipeline.

Elements are shards: (index, name, path), never samples. The pipeline is one line of transforms with no side inputs, no
tagged run and a single leaf, the shape that every Beam runner executes alike: a stage that runs once is a GroupByKey
on a constant key, and the shards are spread over the workers again by a GroupByKey on their index.
"""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam

from curation.run.part import Part, run_together
from curation.run.run import Run
from curation.run.stages import Stage, plan, run_stage
from curation.samples import Shard

Element = tuple[int, str, str]  # a Shard as a plain tuple, for Beam's coders


def build(pipeline: beam.Pipeline, run: Run, part: Part | None = None, reshuffles: bool = False) -> beam.PCollection:
    """Append all stages of a run to ``pipeline``; the result is what is left when the last one has ended.

    ``part``: the shards of this process, where others have the rest.
    ``reshuffles``: whether the engine has a Reshuffle, which deals shards out one by one. Not every engine has, but every
    one groups by key, and puts keys where their hashes say.
    """
    spread_out = beam.Reshuffle if reshuffles else Spread
    shards = pipeline | "shards" >> beam.Create([tuple(shard) for shard in (part or run).shards])
    spread = False
    for stage in plan(run):
        if not stage.per_shard:
            shards = shards | stage.name >> Once(stage, run, part.patience if part else None)
        else:
            if not spread:
                shards = shards | f"spread for {stage.name}" >> spread_out()
            shards = shards | stage.name >> beam.Map(on_shard, stage, run)
        spread = stage.per_shard
    if reshuffles:
        # When a machine is lost, Spark can repeat any step of a job but the last one, because reshuffled shards may come
        # in another order. So the last step is one without work.
        shards = shards | "done" >> beam.Map(lambda element: (0, element[0])) | "end" >> beam.GroupByKey()
    return shards


def on_shard(element: Element, stage: Stage, run: Run) -> Element:
    """Run a stage on one shard and hand the shard on."""
    run_stage(stage, run, Shard(*element))
    return element


class Once(beam.PTransform):
    """Waits for all shards, runs a stage once, and hands all shards on.

    ``patience``: seconds to wait for shards of other processes; None where there are none.
    """

    def __init__(self, stage: Stage, run: Run, patience: float | None = None) -> None:
        super().__init__()
        self._stage, self._run, self._patience = stage, run, patience

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Part of Beam's interface."""
        return (
            shards
            | "to one key" >> beam.Map(lambda element: (0, element))
            | "wait for all" >> beam.GroupByKey()
            | "run" >> beam.FlatMap(_run_once, self._stage, self._run, self._patience)
        )


def _run_once(group: tuple[int, Iterable[Element]], stage: Stage, run: Run, patience: float | None) -> list[Element]:
    if patience is None:
        run_stage(stage, run)
    else:
        run_together(stage, run, patience)
    return sorted(group[1])


class Spread(beam.PTransform):
    """Spreads the shards over the workers."""

    def expand(self, shards: beam.PCollection) -> beam.PCollection:
        """Part of Beam's interface."""
        return (
            shards
            | "by shard" >> beam.Map(lambda element: (element[0], element))
            | "group" >> beam.GroupByKey()
            | "ungroup" >> beam.FlatMap(lambda group: group[1])
        )
