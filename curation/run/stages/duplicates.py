"""From the graph of all neighbours, and thumbnails, to ``index/duplicates.arrow``: groups of near-identical images."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from curation.base import files
from curation.base.parquet import blocks, row_count
from curation.base.processors import usable_processors
from curation.base.scratch import scratch
from curation.index.duplicates import (
    COLUMNS,
    COSINE,
    LEAST_COSINE,
    close_pairs,
    representatives,
    write_duplicates,
)
from curation.index.graph import look_up, read_graph
from curation.run.indexes import INDEXES, has_duplicates
from curation.run.progress import Progress
from curation.run.records import Reader, Record, is_as_long_as_noted, note, record, recorded
from curation.run.run import Run
from curation.run.stages.stage import Stage
from curation.thumbnails import SAME, SIDE, profiles, similarity_of_rows

BLOCK = 1 << 14  # rows of the graph whose pairs are compared at once


def _has_thumbnails(run: Run) -> list[bool]:
    """Of each shard, whether there are thumbnails: not of imports, nor of what was embedded before there were any."""
    written = set(files.files_in(run.path("thumbnails")))
    return [f"{shard.name}.parquet" in written for shard in run.shards]


def _expected(run: Run, read: Reader) -> Record | None:
    """None where all images count, or those of another run."""
    if not has_duplicates(run):
        return None
    graph = read(run.index_json, "graph")["fingerprint"]
    seen = _has_thumbnails(run)
    parameters = {"cosine": COSINE, "pictures": {"cosine": LEAST_COSINE, "similarity": SAME} if any(seen) else None}
    return record(parameters, [graph, seen])


def _write(run: Run, expected: Record, progress: Progress) -> None:
    """Find the groups, and note for every image but the first of each which image represents it."""
    indexed, graph = (recorded(run.index_json, stage) for stage in (INDEXES["image"].stage(""), "graph"))
    rows = indexed["rows"]
    neighbours = read_graph(run.graph, graph["bytes"], rows, 1)
    with scratch() as folder:
        pictures = _Pictures(run, rows, Path(folder))

        def same_of(first: int) -> np.ndarray:
            block = np.arange(first, min(first + BLOCK, rows))
            ids, cosines = look_up(neighbours, block)
            one, other, near = close_pairs(ids, cosines, first, pictures.floor)
            pairs, position = np.unique((one << 32) + other, return_index=True)
            one, other = pairs >> 32, pairs & 0xFFFFFFFF
            same = pictures.are_same(one, other, near[position])
            return np.stack([one[same], other[same]], axis=1)

        known = [np.zeros((0, 2), np.int64)]
        # Threads by blocks, not within products: what is small would only wait for one another.
        with threadpool_limits(1), ThreadPoolExecutor(usable_processors()) as pool:
            for first, pairs in zip(range(0, rows, BLOCK), pool.map(same_of, range(0, rows, BLOCK)), strict=True):
                known.append(pairs)
                progress.advance(min(BLOCK, rows - first))
        one, other = np.concatenate(known).T
        chosen = representatives(rows, one, other, pictures.look_same)

    table = _table(run, chosen)
    write_duplicates(table, run.duplicates)
    facts = {
        "file": "duplicates.arrow",
        "rows": rows,
        "duplicates": len(table),
        "groups": len(np.unique(table["representative"].to_numpy())),
    }
    note(run, "duplicates", expected | facts | {"bytes": files.version(run.duplicates)["size"]})


class _Pictures:
    """The thumbnails of all rows, in files mapped into memory, with what there is to go by where some are missing."""

    def __init__(self, run: Run, rows: int, folder: Path) -> None:
        shape = (max(rows, 1), SIDE, SIDE)
        self._pixels = files.mapped_array(str(folder / "thumbnails.npy"), np.uint8, shape)
        self._profiles = files.mapped_array(str(folder / "profiles.npy"), np.float32, (shape[0], 2, SIDE))
        self._seen = np.zeros(rows, bool)
        start = 0
        for shard, seen in zip(run.shards, _has_thumbnails(run), strict=True):
            stop = start + row_count(run.of_shard("embeddings", shard))
            for pixels in _thumbnails(run.of_shard("thumbnails", shard)) if seen else ():
                self._pixels[start : start + len(pixels)] = pixels
                self._profiles[start : start + len(pixels)] = profiles(pixels)
                self._seen[start : start + len(pixels)] = True
                start += len(pixels)
            start = stop
        self.floor = LEAST_COSINE if self._seen.any() else COSINE

    def look_same(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether the pictures of rows (P,) each are near-identical: bool (P,); not where one has none."""
        same = self._seen[one] & self._seen[other]
        both = np.flatnonzero(same)
        same[both] = similarity_of_rows(self._pixels, self._profiles, one[both], other[both]) >= SAME
        return same

    def are_same(self, one: np.ndarray, other: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """The same of neighbours in the graph, by their cosines (P,) where there is no picture."""
        return np.where(self._seen[one] & self._seen[other], self.look_same(one, other), cosines >= COSINE)


def _thumbnails(path: str) -> Iterator[np.ndarray]:
    """The thumbnails of a shard, (n, SIDE, SIDE) uint8, block by block."""
    for block in blocks(path, ["thumbnail"]):
        content = np.frombuffer(block["thumbnail"].buffers()[1], np.uint8)
        first = block["thumbnail"].offset * SIDE * SIDE
        yield content[first : first + len(block) * SIDE * SIDE].reshape(len(block), SIDE, SIDE)


def _table(run: Run, chosen: np.ndarray) -> pa.Table:
    """What ``duplicates.arrow`` holds, from the representative of every row (N,)."""
    rows = np.flatnonzero(chosen != np.arange(len(chosen)))
    first, positions = np.unique(chosen[rows], return_inverse=True)
    keys: list[pa.Array] = [pa.array([], pa.string())]
    ends = []
    start = 0
    for shard in run.shards:
        for block in blocks(run.of_shard("embeddings", shard), ["key"]):
            inside = first[np.searchsorted(first, start) : np.searchsorted(first, start + len(block))]
            keys.append(block["key"].take(pa.array(inside - start)))
            start += len(block)
        ends.append(start)
    numbers = np.searchsorted(ends, first, side="right").astype(np.int32)
    names = pa.array([shard.name for shard in run.shards], pa.string())
    shards = pa.DictionaryArray.from_arrays(pa.array(numbers[positions]), names)
    columns = [rows, chosen[rows], shards, pa.concat_arrays(keys).take(pa.array(positions))]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=COLUMNS)


DUPLICATES = Stage(
    name="duplicates",
    per_shard=False,
    output=lambda run: run.index_json,
    expected=_expected,
    compute=_write,
    is_whole=lambda run: is_as_long_as_noted(run, "duplicates", run.duplicates),
)
