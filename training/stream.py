"""What one worker reads in an epoch: samples of tars, joined with their archives, with prompts drawn for them.

A stream yields, for each sample of a tar, a :class:`TrainingSample`, or a :class:`LeftOut` that says why there is none.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

from curation.archive import (
    NO_ARCHIVE,
    REJECTED,
    ConceptArchive,
    Draw,
    Filter,
    Sampler,
    ShardArchives,
    Source,
    choose,
    join,
    read_tar,
    seeds,
)
from curation.base.errors import CocuError
from training.negatives import NEGATIVES, NONE, Negatives, SampleConcepts, concept_ids
from training.plan import Span


class LeftOut(StrEnum):
    """Why a sample of a tar is not trained on."""

    REJECTED = "rejected"  # by curation, which could not use it
    UNUSABLE = "unusable"  # it has no image, or no caption in UTF-8
    DUPLICATE = "duplicate"  # it is near-identical to another one, and data.filter.distinct is set


class Pair(NamedTuple):
    """An image and its caption, as they are in a tar."""

    key: str
    image: bytes
    captions: list[str]  # at least one; of several one is drawn each time that the image is seen
    row: int  # of its archive in its shard, or NO_ARCHIVE

    @property
    def caption(self) -> str:
        """The first caption."""
        return self.captions[0]

    def drawn_caption(self, seed: int) -> str:
        """The caption that the image is seen with, by the random number of its key in an epoch."""
        if len(self.captions) == 1:
            return self.captions[0]
        return self.captions[int(choose(np.array([seed], np.uint64), np.array([len(self.captions)]))[0])]


class TrainingSample(NamedTuple):
    """An image-text pair before the image is decoded."""

    where: str  # path of the tar and key, for messages
    seed: int  # decides its augmentation: from epoch and key
    image: bytes
    caption: str
    prompts: list[str]  # M
    concepts: SampleConcepts | None = None  # where some prompts do not count against it, see training/negatives.py
    lacks_archive: bool = False  # its shard has archives, but none of this sample


class TrainingShard(NamedTuple):
    """A tar, and the curation run that holds its archives, if any."""

    source: Source
    archive: ConceptArchive | None


class DrawnShard(NamedTuple):
    """What is drawn for the samples of a shard in an epoch, by the row of their archive."""

    archives: ShardArchives
    draw: Draw
    concepts: list[SampleConcepts] | None  # where some prompts do not count against a sample


@dataclass(frozen=True)
class Stream:
    """How samples are read.

    ``required``: a sample without an archive is an error, rather than trained on by its caption alone. ``excused``: which
    concepts of an archive do not count against its image, where ``negatives`` has some that do not. ``sampler_epochs``: in
    how many epochs the sampler draws, after which captions serve; None for all.
    """

    shards: tuple[TrainingShard, ...]
    sampler: Sampler
    shuffled: int  # samples in the shuffle buffer; 0 to keep the order
    seed: int
    required: bool = True
    negatives: Negatives = NEGATIVES["all"]
    excused: Filter = Filter()
    sampler_epochs: int | None = None

    def sampler_in(self, epoch: int) -> Sampler:
        """What draws in an epoch, the first of which is 0."""
        ended = self.sampler_epochs is not None and epoch >= self.sampler_epochs
        return replace(self.sampler, kind="caption") if ended else self.sampler

    def read(self, spans: list[Span], epoch: int, reader: int) -> Iterator[TrainingSample | LeftOut]:
        """The samples of the spans, shuffled; the same for the same seed, epoch and reader (any number)."""
        outcomes = (outcome for span in spans for outcome in self._span(span, epoch))
        if not self.shuffled:
            return outcomes
        return shuffle(outcomes, self.shuffled, random.Random(f"{self.seed} {epoch} {reader}"))

    def _span(self, span: Span, epoch: int) -> Iterator[TrainingSample | LeftOut]:
        """Part of a shard. What is left out goes with the sample that follows it, so that one of two readers has it."""
        shard = self.shards[span.shard]
        drawn = self._draw(shard, epoch)
        position = 0  # of the next pair
        left_out: list[LeftOut] = []
        for outcome in read_pairs(shard, drawn.archives.keys if drawn else [], self.required):
            if isinstance(outcome, LeftOut):
                left_out.append(outcome)
                continue
            if position == span.last:
                return
            if position >= span.first:
                yield from left_out
                yield self._sample(shard, outcome, drawn, epoch)
            left_out.clear()
            position += 1
        yield from left_out

    def _draw(self, shard: TrainingShard, epoch: int) -> DrawnShard | None:
        """What is drawn for all samples of a shard; None where it has no archives."""
        if shard.archive is None:
            return None
        sampler = self.sampler_in(epoch)
        archives = shard.archive.read(shard.source.name, sampler.method.of_caption)
        draw = archives.draw(sampler, self.seed, epoch)
        if self.negatives.held is None:
            return DrawnShard(archives, draw, None)

        ids = concept_ids(archives.names)[draw.concepts]  # (N, M)
        likely = replace(shard.archive, filters=(self.excused,))
        held = held_concepts(self.negatives.held(likely, shard.source.name))
        return DrawnShard(archives, draw, [SampleConcepts(*row) for row in zip(ids, held, strict=True)])

    def _sample(self, shard: TrainingShard, pair: Pair, drawn: DrawnShard | None, epoch: int) -> TrainingSample:
        where = f"{shard.source.path}: {pair.key}"
        if drawn is not None and pair.row != NO_ARCHIVE:
            seed = int(drawn.draw.seeds[pair.row])
            concepts = drawn.concepts[pair.row] if drawn.concepts else None
            prompts = drawn.draw.prompts[pair.row]
            return TrainingSample(where, seed, pair.image, pair.drawn_caption(seed), prompts, concepts)

        seed = int(seeds([pair.key], self.seed, epoch)[0])
        caption = pair.drawn_caption(seed)
        prompts = [caption] * self.sampler.concepts
        nothing = SampleConcepts(np.full(self.sampler.concepts, NONE), np.zeros(0, np.int64))
        concepts = nothing if self.negatives.held else None
        return TrainingSample(where, seed, pair.image, caption, prompts, concepts, lacks_archive=drawn is not None)


def held_concepts(archives: ShardArchives) -> list[np.ndarray]:
    """The concepts of each archive, as ids (A,) that are the same in every vocabulary."""
    return np.split(concept_ids(archives.names)[archives.concepts], archives.offsets[1:-1])


def shuffle(
    outcomes: Iterable[TrainingSample | LeftOut], size: int, rng: random.Random
) -> Iterator[TrainingSample | LeftOut]:
    """Samples in a random order, by way of a buffer of ``size`` samples; what is left out passes by at once."""
    buffer: list[TrainingSample] = []
    for outcome in outcomes:
        if isinstance(outcome, LeftOut):
            yield outcome
            continue
        buffer.append(outcome)
        if len(buffer) >= size:
            yield _pick(buffer, rng)

    while buffer:
        yield _pick(buffer, rng)


def _pick(buffer: list[TrainingSample], rng: random.Random) -> TrainingSample:
    """Take a random sample out of the buffer; the last one gets its position."""
    position = rng.randint(0, len(buffer) - 1)
    buffer[position], buffer[-1] = buffer[-1], buffer[position]
    return buffer.pop()


def read_pairs(shard: TrainingShard, keys: list[str], required: bool) -> Iterator[Pair | LeftOut]:
    """Each sample of a shard in order: an image and a caption, the first of the configured fields that are present, or all
    captions where the source says so.

    keys (N,): the keys of the shard's archives. Raises CocuError, with shard and key, for a tar that is not the one that
    was curated, and, where archives are ``required``, for a sample without one.
    """
    source, archive = shard
    images = source.image.lower().split(";")
    samples = read_tar(source.path, [*images, *source.caption_members], source.max_member)

    joined: Iterable[tuple[dict[str, Any], int]]
    if archive is None:
        joined = ((sample, NO_ARCHIVE) for sample in samples)
    else:
        joined = join(samples, archive, source, keys, required, with_rejected=True)

    duplicates = None if archive is None else archive.duplicates_left_out(source.name)
    for sample, row in joined:
        image = next((sample[name] for name in images if name in sample), None)
        texts = source.read_captions(sample)
        if row == REJECTED:
            yield LeftOut.REJECTED
        elif row != NO_ARCHIVE and duplicates is not None and duplicates[row]:
            yield LeftOut.DUPLICATE
        elif image and texts:
            yield Pair(sample["__key__"], image, texts, row)
        elif archive is None or row == NO_ARCHIVE:
            yield LeftOut.UNUSABLE
        else:
            raise CocuError(
                f"{source.path}: {sample['__key__']} has an archive but no {'caption' if image else 'image'}: the tar is "
                f"truncated or is not the one that was curated into {archive.folder}"
            )


def _duplicates(archive: ConceptArchive, name: str) -> int:
    duplicates = archive.duplicates_left_out(name)
    return 0 if duplicates is None else int(duplicates.sum())


def count_pairs(shards: tuple[TrainingShard, ...], required: bool) -> list[int]:
    """Pairs of each shard: as many as archives where each must have one, else counted by reading the tars once."""
    if required:
        runs = {shard.archive.folder: shard.archive for shard in shards if shard.archive}
        rows = {
            (folder, source.name): count - _duplicates(archive, source.name)
            for folder, archive in runs.items()
            for source, count in zip(archive.sources, archive.rows, strict=True)
        }
        return [rows[shard.archive.folder, shard.source.name] for shard in shards if shard.archive]

    keys = (shard.archive.read(shard.source.name).keys if shard.archive else [] for shard in shards)
    return [
        sum(isinstance(outcome, Pair) for outcome in read_pairs(shard, rows, required=False))
        for shard, rows in zip(shards, keys, strict=True)
    ]
