"""What the caption of every indexed image mentions (docs/method.md §3), as arrays and as a file that is mapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.errors import CocuError
from curation.base.ragged import Ragged


@dataclass(frozen=True)
class Mentions:
    """C(y_j) and t_c · f(x_j) for every indexed image j.

    The similarity of an image to its own caption's concepts does not depend on the anchor that retrieves it, so it is
    computed once here and not once for every anchor.
    """

    concepts: Ragged  # N lists of concept ids, int32
    similarities: np.ndarray  # (P,) float32, one for each of these concepts

    def __len__(self) -> int:
        """N, the number of indexed images."""
        return len(self.concepts)


def write_mentions(mentions: Mentions, path: str) -> None:
    """Write mentions as one Arrow IPC record batch, which :func:`open_mentions` maps without reading it."""
    offsets, concepts = mentions.concepts.offsets, mentions.concepts.values
    columns = {
        "concepts": pa.LargeListArray.from_arrays(offsets, pa.array(concepts, pa.int32())),
        "similarities": pa.LargeListArray.from_arrays(offsets, pa.array(mentions.similarities, pa.float32())),
    }
    batch = pa.record_batch(columns)
    with files.atomic_write(path) as stream, pa.ipc.new_file(stream, batch.schema) as writer:
        writer.write_batch(batch)


def open_mentions(path: str) -> Mentions:
    """Map a file of :func:`write_mentions` into memory, kept open for the life of the process."""
    return _open(path, str(files.version(path)))


@lru_cache(maxsize=2)
def _open(path: str, version: str) -> Mentions:
    try:
        batch = pa.ipc.open_file(pa.memory_map(files.local_path(path))).get_batch(0)
    except pa.ArrowInvalid as error:
        raise CocuError(f"{path}: not a complete Arrow file ({error}); delete it and run again") from None
    concepts, similarities = batch.column(0), batch.column(1)
    lists = Ragged(concepts.offsets.to_numpy(), concepts.values.to_numpy())
    return Mentions(lists, similarities.values.to_numpy())
