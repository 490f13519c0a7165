"""What changes with epoch, seed and rank, and what does not; and readers that meet in the middle of a shard."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_world import jpeg, write_tar

from curation.archive import Sampler, ShardArchives, list_sources
from curation.base.ragged import Ragged
from training.augmentation import Augmentation
from training.batches import Batches, collate
from training.negatives import concept_id
from training.plan import Plan, Span
from training.stream import LeftOut, Stream, TrainingSample, TrainingShard

ROWS = 14
NAMES = ["apple", "leaf", "boat", "banana", "grape"]
REJECTS = {0: 1, 3: 2, 8: 1, 14: 2}  # rejected samples in front of this one; 14: at the end


@dataclass
class Run:
    """In place of the archives of a curated run: five concepts for every sample, one score, three clusters."""

    keys: list[str]
    folder: str = "run"

    def read(self, name: str, of_caption: bool = False) -> ShardArchives:
        size = len(self.keys) * len(NAMES)
        lists = Ragged.from_lists([list(range(len(NAMES)))] * len(self.keys), np.int32)
        cluster = np.tile([0, 0, 1, 2, 2], len(self.keys)).astype(np.int16)
        captions = [f"caption {key}" for key in self.keys]
        return ShardArchives(self.keys, captions, NAMES, lists, np.ones(size, np.float32), cluster, cluster)

    def rejected(self, name: str) -> set[str]:
        return {f"r{number}" for number in range(20)}

    def left_out(self, name: str) -> set[str]:
        return set()

    def duplicates_left_out(self, name: str) -> None:
        return None

    def path(self, *parts: str) -> str:
        return "/".join(parts)


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> TrainingShard:
    """A tar of 14 samples with rejected ones between them."""
    members, rejected = [], 0
    for row in range(ROWS + 1):
        names = []
        for _ in range(REJECTS.get(row, 0)):
            names.append(f"r{rejected}")
            rejected += 1
        names += [f"s{row:02d}"] if row < ROWS else []
        for name in names:
            members += [(f"{name}.jpg", jpeg(48, a="red")), (f"{name}.txt", b"a " + name.encode())]
    path = write_tar(tmp_path_factory.mktemp("epochs") / "00000.tar", members)
    (source,) = list_sources([str(path)], "jpg", "txt")
    return TrainingShard(source, Run([f"s{row:02d}" for row in range(ROWS)]))


def expected(first: int, last: int) -> list[str | LeftOut]:
    """What a reader of a span has: its samples, and what was rejected in front of each; the end's where it reaches it."""
    outcomes = []
    for row in range(first, last):
        outcomes += [LeftOut.REJECTED] * REJECTS.get(row, 0) + [f"s{row:02d}"]
    return outcomes + [LeftOut.REJECTED] * (REJECTS[ROWS] if last == ROWS else 0)


def test_readers_that_meet_inside_a_shard_share_its_samples_and_its_rejects(shard):
    stream = Stream((shard,), Sampler(), 0, 0)
    bounds = [(first, last) for first in range(ROWS) for last in range(first + 1, ROWS + 1)]
    for first, last in bounds:
        outcomes = stream.read([Span(0, first, last)], 0, 0)
        named = [x if isinstance(x, LeftOut) else x.where.rpartition(": ")[2] for x in outcomes]
        assert named == expected(first, last), (first, last)
    rows = {
        sample.where: sample for sample in stream.read([Span(0, 0, ROWS)], 0, 0) if isinstance(sample, TrainingSample)
    }
    for sample in stream.read([Span(0, 4, 9)], 0, 0):  # with the draws of their own rows
        if isinstance(sample, TrainingSample):
            assert (sample.prompts, sample.caption) == (rows[sample.where].prompts, "a " + sample.where[-3:])


def samples(shard, seed=0, epoch=0, reader=0, shuffled=6) -> dict[str, TrainingSample]:
    stream = Stream((shard,), Sampler(), shuffled, seed)
    read = stream.read([Span(0, 0, ROWS)], epoch, reader)
    return {sample.where[-3:]: sample for sample in read if isinstance(sample, TrainingSample)}


def test_prompts_and_augmentation_change_with_epoch_and_seed_and_not_with_the_reader(shard):
    base = samples(shard)
    for changed in ({"epoch": 1}, {"seed": 1}, {"epoch": 2}, {"seed": 2}):
        other = samples(shard, **changed)
        assert sorted(other) == sorted(base)
        assert all(other[key].seed != base[key].seed for key in base)
        assert sum(other[key].prompts != base[key].prompts for key in base) > ROWS - 3
        again = samples(shard, **changed)
        assert {key: (s.seed, s.prompts) for key, s in other.items()} == {
            key: (s.seed, s.prompts) for key, s in again.items()
        }
    reader = samples(shard, reader=1)
    assert {key: (s.seed, s.prompts) for key, s in reader.items()} == {
        key: (s.seed, s.prompts) for key, s in base.items()
    }


def test_samples_without_archives_are_augmented_otherwise_in_every_epoch_too(shard):
    bare = TrainingShard(shard.source, None)
    seen = [
        {key: sample.seed for key, sample in samples(bare, seed, epoch).items()}
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(len({one[key] for one in seen}) == 3 for key in seen[0])
    assert len(set(seen[0].values())) == len(seen[0])
    assert {sample.prompts[2] for sample in samples(bare).values()} == {f"a {key.strip()}" for key in seen[0]}


def test_the_order_changes_with_epoch_seed_and_reader(shard):
    orders = [
        tuple(samples(shard, **changed))
        for changed in ({}, {"epoch": 1}, {"seed": 1}, {"reader": 1}, {"reader": 10}, {"epoch": 10})
    ]
    assert len({*orders, tuple(sorted(orders[0]))}) == 7
    assert tuple(samples(shard)) == orders[0]
    assert tuple(samples(shard, epoch=1, shuffled=0)) == tuple(sorted(orders[0]))


def test_every_worker_of_every_rank_is_a_reader_of_its_own():
    read = []

    class Recording(Stream):
        def read(self, spans, epoch, reader):
            read.append((tuple(spans), epoch, reader))
            return iter(())

    stream = Recording((), Sampler(), 0, 0)
    plan = Plan((20, 20, 20, 20), 2, ranks=2, workers=2)
    for rank in range(2):
        for done in range(2):  # the worker whose turn it is
            with pytest.raises(Exception, match="samples have vanished"):
                list(Batches(stream, plan, lambda: None, 77, rank, epoch=3, done=done))
    assert [reader for _, _, reader in read] == [0, 1, 2, 3]
    assert {epoch for _, epoch, _ in read} == {3}
    assert [spans for spans, _, _ in read] == [tuple(plan.spans(3, rank, part)) for rank in (0, 1) for part in (0, 1)]


def test_shards_stand_in_another_order_in_every_epoch_and_for_every_seed():
    orders = {
        tuple(span.shard for span in Plan((4,) * 30, 4, seed=seed).spans(epoch, 0, 0))
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    }
    assert len(orders) == 4


def test_pixels_follow_from_the_samples_seed_alone(shard):
    """Whatever other code has drawn from the generators of Python, numpy and torch."""
    transform = Augmentation(erasing=1.0).transform(32)
    (first, *_), (second, *_) = samples(shard, shuffled=0).values(), samples(shard, epoch=1, shuffled=0).values()

    def pixels(sample: TrainingSample) -> torch.Tensor:
        return collate([sample], transform, 77, True).pixels

    whole = pixels(first)
    assert not torch.equal(whole, pixels(second))
    for disturb in (lambda: random.seed(5), lambda: np.random.seed(5), lambda: torch.manual_seed(5)):
        for _ in range(3):
            disturb()
            assert torch.equal(pixels(first), whole)


def test_what_cannot_be_decoded_is_replaced_by_the_next_or_else_the_last_good_one():
    """With its caption, prompts and concepts: whatever belongs to an image goes with it."""
    from training.negatives import SampleConcepts

    def sample(name: str, image: bytes) -> TrainingSample:
        drawn = np.array([concept_id(name)])
        return TrainingSample(name, 0, image, f"a {name}", [f"the {name}"], SampleConcepts(drawn, drawn))

    bad = [sample(name, b"no image") for name in ("x", "y", "z")]
    red, blue = sample("red", jpeg(ground="red")), sample("blue", jpeg(ground="blue"))
    mean = lambda image: torch.from_numpy(np.array(image)).float().mean((0, 1))  # noqa: E731
    batch = collate([bad[0], red, bad[1], blue, bad[2]], mean, 77, required=False)
    assert [pixels.argmax().item() for pixels in batch.pixels] == [0, 0, 2, 2, 2]
    names = ["red", "red", "blue", "blue", "blue"]
    straight = collate([{"red": red, "blue": blue}[name] for name in names], mean, 77, required=True)
    for found, wanted in ((batch.captions, straight.captions), (batch.prompts, straight.prompts)):
        assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    assert batch.concepts.drawn.flatten().tolist() == [concept_id(name) for name in names]
    assert batch.counts == {"replaced": 3}
