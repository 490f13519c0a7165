"""Archives of what is really visible, from the json sidecars: the ceiling of every curation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from curation.archive import archive_batch, read_archive
from curation.base.parquet import write_table
from curation.run.run import open_run
from curation.tools.quality import LabelledData
from curation.vocabulary import read_vocabulary


def write_truth(truth: LabelledData, base: Path, folder: Path) -> None:
    """Replace the archives of ``folder``, a copy of the finished run ``base``, by the truth.

    Every visible concept of the vocabulary has the same score and a cluster of its own.
    """
    run = open_run(str(base))
    names = pa.array(read_vocabulary(run.vocabulary).concepts, pa.string())
    start = 0
    for shard in run.shards:
        archives = read_archive(run.of_shard("archives", shard)).combine_chunks()
        duplicates = archives["duplicate_of"].combine_chunks() if "duplicate_of" in archives.column_names else None
        batch = truth_batch(truth, names, start, archives["key"].combine_chunks(), duplicates)
        write_table(str(folder / "archives" / f"{shard.name}.parquet"), pa.Table.from_batches([batch]), {})
        start += len(batch)


def truth_batch(
    truth: LabelledData, names: pa.Array, start: int, keys: pa.Array, duplicates: pa.Array | None = None
) -> pa.RecordBatch:
    """The archives of the images from number ``start`` on, one for each key; ``duplicates``: their ``duplicate_of``."""
    stop = start + len(keys)
    visible = truth.visible.slice(start, stop)
    visible = visible.where(visible.values < len(names))  # others are not in the vocabulary
    captions = pa.array(truth.captions[start:stop], pa.string())
    ones = np.ones(len(visible.values), np.float32)
    columns: dict[str, np.ndarray | pa.Array | None] = {
        "duplicate_of": duplicates,
        "score": ones,
        "global": ones,
        "local": ones,
        "cluster": visible.positions,
        "support": np.zeros(len(visible.values), np.int64),
    }
    return archive_batch(keys, captions, names, visible.offsets, visible.values, **columns)
