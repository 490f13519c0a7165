"""Which process reads which samples in an epoch: pure arithmetic, so that it can be tested as such.

The shards of an epoch stand in a random order, and their samples form one long row. It is cut into as many equal parts as
there are readers (ranks x workers), so that no sample is read twice, every rank takes the same known number of steps, and
a run with fewer or larger shards loses next to nothing. A part may begin in the middle of a shard.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curation.base.errors import CocuError


class PlanError(CocuError):
    """A data set that cannot be split as asked. The message is one line with the remedy."""


class Span(NamedTuple):
    """Samples ``first`` to ``last`` (exclusive) of a shard."""

    shard: int
    first: int
    last: int


@dataclass(frozen=True)
class Plan:
    """How the samples of all shards are split.

    rows: samples of each shard; batch_size: of one rank. Raises PlanError when there are too few shards or samples.
    """

    rows: tuple[int, ...]
    batch_size: int
    ranks: int = 1
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that every reader gets a shard and a batch."""
        shards = sum(count > 0 for count in self.rows)
        if shards < self.readers:
            raise PlanError(
                f"data: {shards} shards are too few for {self.ranks} ranks x {self.workers} workers; set data.workers to "
                f"{shards // self.ranks}"
                if shards >= self.ranks
                else f"data: {shards} shards are too few for {self.ranks} ranks; use fewer devices, or split the data into "
                "more shards"
            )
        if not self.batches_each:
            raise PlanError(
                f"data.batch_size: {self.batch_size} is more than the {sum(self.rows) // self.readers} samples that each "
                f"of {self.ranks} ranks x {self.workers} workers gets; lower it, or data.workers"
            )

    @property
    def readers(self) -> int:
        """Processes that read: ranks x workers."""
        return self.ranks * self.workers

    @property
    def batches_each(self) -> int:
        """Batches that each worker makes in an epoch; an incomplete last one is left out."""
        return sum(self.rows) // self.readers // self.batch_size

    @property
    def steps(self) -> int:
        """Batches of an epoch on each rank."""
        return self.batches_each * self.workers

    def spans(self, epoch: int, rank: int, worker: int) -> list[Span]:
        """What one worker reads in an epoch, in order."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        ends = np.cumsum(np.array(self.rows)[order])
        part = int(ends[-1]) // self.readers
        first = (rank * self.workers + worker) * part
        last = first + part

        spans = []
        for shard, end in zip(order.tolist(), ends.tolist(), strict=True):
            start = end - self.rows[shard]
            if max(start, first) < min(end, last):
                spans.append(Span(shard, max(start, first) - start, min(end, last) - start))
        return spans

    def resumed(self, worker: int, done: int) -> tuple[int, int]:
        """Which part a worker takes, and how many of its batches are done, after ``done`` steps of an epoch.

        A loader takes batches from its workers in turn, from worker 0 on; the next part in turn therefore goes to it.
        """
        part = (worker + done) % self.workers
        return part, done // self.workers + (part < done % self.workers)


def limited(steps: int, limit: int | float) -> int:
    """Batches of an epoch under Lightning's limit_train_batches: a number of batches, or a share of ``steps``.

    >>> limited(9, 3), limited(9, 0.5), limited(9, 1.0), limited(9, 20)
    (3, 4, 9, 9)
    """
    return max(1, min(steps, limit) if isinstance(limit, int) else int(steps * limit))
