"""What captions say and what archives hold, counted over many rows, and the vocabulary's table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.base.parquet import check_columns, open_parquet, read_columns, row_count
from curation.run.run import Run
from curation.samples import Shard
from curation.wordlists import is_kept, read_rows, unquoted

ENOUGH = 200_000  # rows whose concepts are counted


@dataclass(frozen=True)
class Candidate:
    """A row of the vocabulary's table."""

    concept: str
    count: int  # captions that mention it
    visualness: float  # NaN where it could not be measured
    kept: bool
    reason: str  # why it is not kept; empty for the concepts of a file
    written: int  # captions that hold its words, as a noun or not


@dataclass(frozen=True)
class Survey:
    """What captions say and what archives hold, for many rows."""

    before: np.ndarray  # (K,) int: images with 0, 1, 2, ... concepts in their captions
    after: np.ndarray  # (K,) int: the same of their archives
    mentioned: dict[str, int]  # concept: captions that mention it
    archived: dict[str, int]  # concept: archives that hold it

    @property
    def rows(self) -> int:
        """Images that were counted."""
        return int(self.before.sum())


def random_shards(run: Run, rng: np.random.Generator, least: int) -> dict[Shard, int]:
    """Random shards with their rows, none of them empty: as many as hold ``ENOUGH`` rows, and at least
    ``least`` where there are."""
    counts: dict[Shard, int] = {}
    for number in rng.permutation(len(run.shards)):
        rows = row_count(run.of_shard("archives", run.shards[number]))
        if rows:
            counts[run.shards[number]] = rows
        if sum(counts.values()) >= ENOUGH and len(counts) >= least:
            break
    return counts


def count_concepts(run: Run, shards: list[Shard]) -> Survey:
    """Count concepts in the captions and archives of these shards."""
    names = concept_names(run)
    width = 1
    lengths: dict[str, list[np.ndarray]] = {"embeddings": [], "archives": []}
    totals = {kind: np.zeros(len(names), np.int64) for kind in lengths}
    for shard in shards:
        for kind, total in totals.items():
            size, concepts = concept_lists(run.of_shard(kind, shard), names)
            lengths[kind].append(size)
            total += np.bincount(concepts, minlength=len(names))
            width = max(width, int(size.max(initial=0)) + 1)
    before, after = (
        sum((np.bincount(size, minlength=width) for size in lengths[kind]), np.zeros(width, np.int64))
        for kind in lengths
    )
    mentioned, archived = (dict(zip(names.to_pylist(), totals[kind].tolist(), strict=True)) for kind in lengths)
    return Survey(before, after, mentioned, archived)


def concept_names(run: Run) -> pa.Array:
    """The concepts of the vocabulary, by id."""
    return read_columns(run.vocabulary, {"concept": pa.string()})["concept"].combine_chunks()


def concept_lists(path: str, names: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (N,) of the lists in an embeddings or archives file, and ids (P,) of those concepts that have a name."""
    with open_parquet(path) as file:
        check_columns(file, ["concepts"], path)
        leaves = [column.path for column in (file.schema.column(i) for i in range(len(file.schema)))]
        ours = [leaf for leaf in leaves if leaf.startswith("concepts.")]
        leaf = next((leaf for leaf in ours if leaf.endswith(".concept")), ours[0])
        column = file.read([leaf])["concepts"].combine_chunks()
    lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.flatten()
    if pa.types.is_struct(values.type):
        concepts = values.field("concept")
        concepts = concepts.dictionary_decode() if pa.types.is_dictionary(concepts.type) else concepts
        values = pc.index_in(concepts.cast(pa.string()), value_set=names)
    ids = values.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths, ids[(ids >= 0) & (ids < len(names))]


def read_candidates(run: Run) -> list[Candidate]:
    """The rows of ``vocabulary.csv``, the most frequent first."""
    candidates = []
    for row in read_rows(run.path("vocabulary.csv")):  # which a person may have edited
        try:
            count, share = int(row.get("count") or 0), float(row.get("noun_share") or 1)
            visualness = float(row.get("visualness") or "nan")
        except ValueError:
            continue
        written = round(count / share) if share else count
        candidates.append(
            Candidate(unquoted(row["concept"]), count, visualness, is_kept(row), row.get("reason") or "", written)
        )
    return sorted(candidates, key=lambda candidate: (-candidate.count, candidate.concept))
