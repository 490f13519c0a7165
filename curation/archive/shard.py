"""The archives of one shard as arrays, ready to be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from curation.archive.entries import entries, one_chunk
from curation.archive.parquet import read_archive
from curation.archive.sampling import Sampler, choose, prompts, seeds
from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import read_columns
from curation.base.ragged import Ragged


class Draw(NamedTuple):
    """What a sampler draws for N samples in one epoch."""

    seeds: np.ndarray  # (N,) uint64: each sample's random number in this epoch
    concepts: np.ndarray  # (N, M) int64: concept ids, -1 where an archive has too few
    prompts: list[list[str]]  # N x M


@dataclass(frozen=True)
class ShardArchives:
    """N archives in the order of the tar. ``names``: concept names, by concept id."""

    keys: list[str]
    captions: list[str]
    names: list[str]
    lists: Ragged  # N lists of concept ids, int32, in descending score; P in all
    score: np.ndarray  # (P,) float32
    cluster: np.ndarray  # (P,) int16
    support: np.ndarray  # (P,) int16
    texts: Ragged | None = None  # N lists of all captions, where images may have several

    def __len__(self) -> int:
        """N."""
        return len(self.keys)

    @property
    def offsets(self) -> np.ndarray:
        """Where each archive begins in :attr:`concepts`, (N + 1,) int64."""
        return self.lists.offsets

    @property
    def concepts(self) -> np.ndarray:
        """The concept ids of all archives, one after another, (P,) int32."""
        return self.lists.values

    def take(self, rows: np.ndarray) -> ShardArchives:
        """The archives of these rows (B,), in their order; a row may come twice."""
        indices, _ = self.lists.gather(rows)
        return ShardArchives(
            [self.keys[row] for row in rows],
            [self.captions[row] for row in rows],
            self.names,
            self.lists.take(rows),
            self.score[indices],
            self.cluster[indices],
            self.support[indices],
            None if self.texts is None else self.texts.take(rows),
        )

    def seen_captions(self, numbers: np.ndarray) -> list[str]:
        """The caption that each row is seen with, by the random numbers (N,) uint64 of an epoch."""
        if self.texts is None:
            return self.captions
        chosen: list[str] = self.texts.values[self.texts.offsets[:-1] + choose(numbers, self.texts.lengths)].tolist()
        return chosen

    def draw(self, sampler: Sampler, seed: int, epoch: int) -> Draw:
        """What the sampler draws for every row in this epoch; a caption in place of a prompt where that is too little."""
        if not self.keys:
            return Draw(np.zeros(0, np.uint64), np.zeros((0, sampler.concepts), np.int64), [])

        numbers = seeds(self.keys, seed, epoch)  # (N,)
        concepts = sampler.draw(numbers, self.lists.with_values(self.score), self.cluster)  # (N, M): entries
        if len(self.concepts):
            concepts = np.where(concepts < 0, -1, self.concepts[concepts])
        return Draw(numbers, concepts, prompts(sampler, numbers, concepts, self.names, self.seen_captions(numbers)))

    def drawn(self, sampler: Sampler, seed: int, epoch: int) -> np.ndarray:
        """Concept ids (N, M) int64 that the sampler draws in this epoch, -1 where an archive has too few."""
        return self.draw(sampler, seed, epoch).concepts

    def prompts(self, sampler: Sampler, seed: int, epoch: int) -> list[list[str]]:
        """M prompts for every row, about what the sampler draws in this epoch; the caption where that is too little."""
        return self.draw(sampler, seed, epoch).prompts


def shard_archives(table: pa.Table) -> ShardArchives:
    """A table of archives as arrays."""
    archives, structs = entries(table)
    names = structs.field("concept")
    return ShardArchives(
        table["key"].to_pylist(),
        table["caption"].to_pylist(),
        names.dictionary.to_pylist(),
        archives.with_values(names.indices.to_numpy()),
        structs.field("score").to_numpy(),
        structs.field("cluster").to_numpy(),
        structs.field("support").to_numpy(),
        _texts(table),
    )


def _texts(table: pa.Table) -> Ragged | None:
    """All captions of each row, where images may have several."""
    if "captions" not in table.column_names:
        return None
    column = one_chunk(table["captions"])
    texts = np.array(column.flatten().field("text").to_pylist(), object)
    return Ragged.from_lengths(column.value_lengths().to_numpy(zero_copy_only=False), texts)


def read_shard(path: str) -> ShardArchives:
    """The archives of one shard. Raises CocuError when the file is missing or damaged, or holds anything else."""
    return shard_archives(read_archive(path))


def read_caption_concepts(embeddings: str, vocabulary: str, archives: ShardArchives) -> ShardArchives:
    """The concepts that each caption mentions, in place of the archives: C(y), from a shard's embeddings file.

    Raises CocuError when the file is missing or its rows are not those of the archives.
    """
    if not files.exists(embeddings):
        raise CocuError(
            f"{embeddings}: missing, but sampler kind caption needs the concepts that captions mention; copy embeddings/ "
            "and vocabulary.parquet beside archives/, or curate with archive.expansion: caption"
        )
    names = read_columns(vocabulary, {"concept": pa.string()})["concept"].to_pylist()
    table = read_columns(embeddings, {"key": pa.string(), "concepts": pa.list_(pa.int32())})
    if table["key"].to_pylist() != archives.keys:
        raise CocuError(f"{embeddings}: its keys are not those of the archives; run cocu curate again")

    concepts = Ragged.from_arrow(one_chunk(table["concepts"]))
    if len(concepts.values) and not 0 <= concepts.values.min() <= concepts.values.max() < len(names):
        raise CocuError(f"{embeddings}: names concepts that {vocabulary} lacks; run cocu curate again")
    nothing = np.zeros(len(concepts.values), np.int16)
    return ShardArchives(
        archives.keys, archives.captions, names, concepts, nothing.astype(np.float32), nothing, nothing, archives.texts
    )
