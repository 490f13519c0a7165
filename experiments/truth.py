"""Archives of what is really visible, from the json sidecars: the ceiling of every curation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from curation.archive import SCHEMA, archive_batch, read_archive
from curation.base.parquet import write_table
from curation.base.ragged import row_numbers
from curation.run.run import open_run
from curation.tools.measure import World
from curation.vocabulary import read_vocabulary


def write_truth(world: World, base: Path, folder: Path) -> None:
    """Replace the archives of ``folder``, a copy of the finished run ``base``, by the truth.

    Every visible concept of the vocabulary has the same score and a cluster of its own.
    """
    run = open_run(str(base))
    names = pa.array(read_vocabulary(run.vocabulary).concepts, pa.string())
    start = 0
    for shard in run.shards:
        batch = truth_batch(world, names, start, read_archive(run.of_shard("archives", shard))["key"].combine_chunks())
        write_table(str(folder / "archives" / f"{shard.name}.parquet"), pa.Table.from_batches([batch], SCHEMA), {})
        start += len(batch)


def truth_batch(world: World, names: pa.Array, start: int, keys: pa.Array) -> pa.RecordBatch:
    """The archives of the scenes from number ``start`` on, one for each key."""
    offsets = world.visible.offsets[start : start + len(keys) + 1]
    concepts = world.visible.concepts[offsets[0] : offsets[-1]]
    owner = row_numbers(offsets)
    known = concepts < len(names)  # others are not in the vocabulary
    lengths = np.bincount(owner[known], minlength=len(keys))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    concepts = concepts[known]
    ones = np.ones(len(concepts), np.float32)
    place = np.arange(len(concepts)) - np.repeat(starts[:-1], lengths)  # in its archive
    captions = pa.array(world.captions[start : start + len(keys)], pa.string())
    columns = {"score": ones, "global": ones, "local": ones, "cluster": place, "support": np.zeros_like(place)}
    return archive_batch(keys, captions, names, starts, concepts, **columns)
