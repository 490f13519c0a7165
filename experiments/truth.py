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


def write_truth(truth: World, base: Path, folder: Path) -> None:
    """Replace the archives of ``folder``, a copy of the finished run ``base``, by the truth.

    Every visible concept of the vocabulary has the same score and a cluster of its own.
    """
    run = open_run(str(base))
    names = pa.array(read_vocabulary(run.vocabulary).concepts, pa.string())
    start = 0
    for shard in run.shards:
        keys = read_archive(run.of_shard("archives", shard))["key"].combine_chunks()
        batch = truth_batch(truth, names, start, keys)
        write_table(str(folder / "archives" / f"{shard.name}.parquet"), pa.Table.from_batches([batch], SCHEMA), {})
        start += len(batch)


def truth_batch(truth: World, names: pa.Array, start: int, keys: pa.Array) -> pa.RecordBatch:
    """The archives of the scenes from number ``start`` on, one for each key."""
    offsets = truth.visible.offsets[start : start + len(keys) + 1]
    concepts = truth.visible.concepts[offsets[0] : offsets[-1]]
    in_vocabulary = concepts < len(names)
    lengths = np.bincount(row_numbers(offsets)[in_vocabulary], minlength=len(keys))
    starts = np.concatenate([[0], np.cumsum(lengths)])

    concepts = concepts[in_vocabulary]
    ones = np.ones(len(concepts), np.float32)
    position = np.arange(len(concepts)) - np.repeat(starts[:-1], lengths)  # in its archive
    captions = pa.array(truth.captions[start : start + len(keys)], pa.string())
    columns = {"score": ones, "global": ones, "local": ones, "cluster": position, "support": np.zeros_like(position)}
    return archive_batch(keys, captions, names, starts, concepts, **columns)
