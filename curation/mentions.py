"""What the caption of every indexed image mentions (docs/method.md §3), as arrays and as a file that is mapped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.errors import CocuError, one_line
from curation.base.ragged import Ragged


@dataclass(frozen=True)
class Mentions:
    """C(y_j) and t_c · f(x_j) for every indexed image j.

    The similarity of an image to its own caption's concepts does not depend on the anchor that retrieves it, so it is
    computed once here and not once for every anchor.
    """

    concepts: Ragged  # N lists of concept ids, int32
    similarities: np.ndarray  # (P,) float32, one for each of these concepts
    sources: np.ndarray | None = None  # (P,) int32: the fields whose captions mention it, as bits, where these are kept

    def __len__(self) -> int:
        """N, the number of indexed images."""
        return len(self.concepts)

    @cached_property
    def width(self) -> int:
        """One more than the largest concept id."""
        return int(self.concepts.values.max(initial=-1)) + 1


def write_mentions(mentions: Mentions, path: str) -> None:
    """Write mentions as one Arrow IPC record batch, which :func:`open_mentions` maps without reading it."""
    offsets, concepts = mentions.concepts.offsets, mentions.concepts.values
    columns = {
        "concepts": pa.LargeListArray.from_arrays(offsets, pa.array(concepts, pa.int32())),
        "similarities": pa.LargeListArray.from_arrays(offsets, pa.array(mentions.similarities, pa.float32())),
    }
    if mentions.sources is not None:
        columns["sources"] = pa.LargeListArray.from_arrays(offsets, pa.array(mentions.sources, pa.int32()))
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
        batch.validate()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CocuError(f"{path}: not a complete Arrow file ({one_line(error)}); delete it and run again") from None

    expected = [pa.large_list(pa.int32()), pa.large_list(pa.float32()), pa.large_list(pa.int32())]
    if batch.num_columns not in (2, 3) or [column.type for column in batch.columns] != expected[: batch.num_columns]:
        raise CocuError(f"{path}: not what a curation run notes of captions; delete it and run again")
    concepts, similarities, *more = batch.columns
    lists = Ragged(concepts.offsets.to_numpy(), concepts.values.to_numpy(zero_copy_only=False))
    values = similarities.values.to_numpy(zero_copy_only=False)
    if not _are_sound(lists, similarities.offsets.to_numpy(), values) or any(
        column.null_count for column in batch.columns
    ):
        raise CocuError(f"{path}: its lists do not fit its values; delete it and run again")
    if not more:
        return Mentions(lists, values)
    sources = more[0].values.to_numpy(zero_copy_only=False)
    if not np.array_equal(more[0].offsets.to_numpy(), lists.offsets) or len(sources) != len(values):
        raise CocuError(f"{path}: its lists do not fit its values; delete it and run again")
    return Mentions(lists, values, sources)


def _are_sound(lists: Ragged, offsets: np.ndarray, values: np.ndarray) -> bool:
    """Whether every list lies within the values, concepts are numbers from 0, and similarities are one for each."""
    if len(lists.offsets) < 1 or lists.offsets[0] != 0 or lists.offsets[-1] > len(lists.values):
        return False
    if (
        (np.diff(lists.offsets) < 0).any()
        or not np.array_equal(lists.offsets, offsets)
        or len(values) != len(lists.values)
    ):
        return False
    are_ids = lists.values.dtype == np.int32 and lists.values.min(initial=0) >= 0
    return bool(are_ids and values.dtype == np.float32 and np.isfinite(values).all())
