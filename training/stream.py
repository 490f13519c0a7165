"""What one worker reads in an epoch: samples of tars, joined with their archives, with prompts drawn for them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from webdataset import shuffle

from curation.archive import ConceptArchive, Sampler, ShardArchives, Source, join, read_tar, seeds
from curation.base.errors import CocuError
from training.negatives import NONE, concept_ids
from training.plan import Span


class Sample(NamedTuple):
    """An image-text pair before it is decoded."""

    where: str  # path of the tar and key, for messages
    seed: int  # decides its augmentation: from epoch and key
    image: bytes
    caption: str
    prompts: list[str]  # M
    drawn: np.ndarray | None = None  # (M,) int64: ids of the prompts' concepts, see training/negatives.py
    held: np.ndarray | None = None  # (A,) int64: ids of the archive's concepts, whatever the filter; both if asked for


class Shard(NamedTuple):
    """A tar, and the curation run that holds its archives, if any."""

    source: Source
    archive: ConceptArchive | None


@dataclass(frozen=True)
class Stream:
    """How samples are read.

    ``required``: a sample without an archive is an error, rather than trained on by its caption alone. ``outside``: samples
    say what their prompts are about and what their archives hold, so that only prompts outside an archive are negatives.
    """

    shards: tuple[Shard, ...]
    sampler: Sampler
    shuffled: int  # samples in the shuffle buffer; 0 to keep the order
    seed: int
    required: bool = True
    outside: bool = False

    def read(self, spans: list[Span], epoch: int, reader: int, counts: Counter[str]) -> Iterator[Sample]:
        """The samples of the spans, shuffled; the same for the same seed, epoch and reader (any number).

        ``counts``: where to count samples that were left out or have no archive.
        """
        samples = (sample for span in spans for sample in self._span(span, epoch, counts))
        if not self.shuffled:
            return samples
        rng = random.Random(f"{self.seed} {epoch} {reader}")
        return iter(shuffle(self.shuffled, initial=self.shuffled, rng=rng)(samples))

    def _span(self, span: Span, epoch: int, counts: Counter[str]) -> Iterator[Sample]:
        shard = self.shards[span.shard]
        keys, prompts, numbers, concepts = [], [], [], []
        if shard.archive:
            archives = shard.archive.read(shard.source.name, self.sampler.kind == "caption")
            keys, prompts = archives.keys, archives.prompts(self.sampler, self.seed, epoch)
            numbers = seeds(keys, self.seed, epoch).tolist()
            if self.outside:
                drawn = concept_ids(archives.names)[archives.drawn(self.sampler, self.seed, epoch)]  # (N, M)
                held = held_concepts(replace(shard.archive, filters=()).read(shard.source.name))
                concepts = list(zip(drawn, held, strict=True))
        nothing = np.full(self.sampler.concepts, NONE), np.zeros(0, np.int64)
        left_out: Counter[str] = Counter()
        for place, (sample, row) in enumerate(usable(shard, keys, self.required, left_out)):
            if place >= span.last:
                return
            if place >= span.first:
                counts.update(left_out)
                key, caption = sample["__key__"], sample["caption"]
                chosen = prompts[row] if row >= 0 else [caption] * self.sampler.concepts
                number = numbers[row] if row >= 0 else int(seeds([key], self.seed, epoch)[0])
                known = (concepts[row] if row >= 0 else nothing) if self.outside else ()
                yield Sample(f"{shard.source.path}: {key}", number, sample["image"], caption, chosen, *known)
            left_out.clear()  # those before the span are counted by the reader that has them
        counts.update(left_out)


def held_concepts(archives: ShardArchives) -> list[np.ndarray]:
    """The concepts of each archive, as ids (A,) that are the same in every vocabulary."""
    return np.split(concept_ids(archives.names)[archives.concepts], archives.offsets[1:-1])


def usable(shard: Shard, keys: list[str], required: bool, counts: Counter[str]) -> Iterator[tuple[dict, int]]:
    """The samples of a shard that can be trained on, each with the row of its archive (-1 for none), in order.

    Their ``image`` and ``caption`` are the first of the configured fields that are present. keys (N,): the keys of the
    shard's archives; ``counts``: where to count the samples that are left out or have no archive.
    """
    source, archive = shard
    images, captions = source.image.lower().split(";"), source.caption.lower().split(";")
    samples = read_tar(source.path, [*images, *captions])
    if archive is None:
        joined = ((sample, -1) for sample in samples)
    else:
        joined = join(samples, archive, source, keys, required, counts)
    for sample, row in joined:
        image = next((sample[name] for name in images if name in sample), None)
        caption = next((sample[name] for name in captions if name in sample), None)
        text = _text(caption)
        if image is not None and text:
            yield {"__key__": sample["__key__"], "image": image, "caption": text}, row
        elif row >= 0:
            raise CocuError(
                f"{source.path}: {sample['__key__']} has an archive but no {'caption' if image else 'image'}: the tar is "
                f"cut off or is not the one that was curated into {archive.folder}"
            )
        else:
            counts["unusable"] += 1


def _text(content: bytes | None) -> str:
    """A caption; empty where there is none or it is not UTF-8, which curation rejects too."""
    try:
        return (content or b"").decode("utf-8").strip()
    except UnicodeDecodeError:
        return ""


def count_rows(shards: tuple[Shard, ...], required: bool) -> list[int]:
    """Usable samples of each shard: from the archives where each sample must have one, else by reading the tars once."""
    if required:
        known = {
            (archive.folder, source.name): rows
            for archive in {shard.archive.folder: shard.archive for shard in shards}.values()
            for source, rows in zip(archive.sources, archive.rows, strict=True)
        }
        return [known[shard.archive.folder, shard.source.name] for shard in shards]
    keys = (shard.archive.read(shard.source.name).keys if shard.archive else [] for shard in shards)
    return [sum(1 for _ in usable(shard, known, False, Counter())) for shard, known in zip(shards, keys, strict=True)]
