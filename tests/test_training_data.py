"""Tars joined with their archives, and the batches of an epoch: on real files, with and without worker processes."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import COLOURS, ROWS, SHARDS, jpeg, write_tar

from curation.archive import (
    REJECTED,
    ConceptArchive,
    Sampler,
    join,
    read_archive,
    read_shard,
    read_tar,
    templates,
)
from curation.base.errors import CocuError
from segmenters.text import END_OF_TEXT, tokenize
from training.augmentation import Augmentation, plain_transform
from training.batches import Batches, Loader, UndecodableError, collate, grouped
from training.negatives import NEGATIVES, NONE, concept_id
from training.plan import Plan
from training.stream import LeftOut, Stream, TrainingSample, TrainingShard, count_pairs, read_pairs, shuffle

TOTAL = SHARDS * ROWS
CLUSTER = Sampler()


@pytest.fixture(scope="session")
def shards(archive):
    return tuple(TrainingShard(source, archive) for source in archive.sources)


@pytest.fixture
def copy(finished, world, tmp_path):
    """The data and the run, to be spoilt: (folder of the tars, output folder)."""
    shutil.copytree(world.parent, tmp_path / "data")
    shutil.copytree(finished, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["config"]["shards"] = ["../data/{00000..00002}.tar"]
    values["paths"] = [f"../data/{name}.tar" for name in values["shards"]]
    manifest.write_text(json.dumps(values))
    return tmp_path / "data", tmp_path / "out"


def batches(
    shards, *, epoch=0, done=0, rank=0, ranks=1, workers=1, batch_size=8, sampler=CLUSTER, shuffle=20, plain=True
):
    stream = Stream(shards, sampler, shuffle, 0)
    plan = Plan(tuple(count_pairs(shards, True)), batch_size, ranks, workers)
    transform = partial(plain_transform, 32) if plain else partial(Augmentation().transform, 32)
    return Batches(stream, plan, transform, 77, rank, epoch, done)


def keys_of(stream, spans, epoch=0, reader=0):
    return [sample.where.rpartition(": ")[2] for sample in samples_of(stream, spans, epoch, reader)]


def samples_of(stream, spans, epoch=0, reader=0):
    return [outcome for outcome in stream.read(spans, epoch, reader) if isinstance(outcome, TrainingSample)]


def same(one, other):
    tensors = [
        [x.pixels, *x.captions.matrices, x.captions.rows, *x.prompts.matrices, x.prompts.rows] for x in (one, other)
    ]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


# --- joining --------------------------------------------------------------------------------------------------------------


def test_every_usable_sample_meets_its_archive(archive, world):
    rejected = []
    for source, rows in zip(archive.sources, archive.rows, strict=True):
        archives = archive.read(source.name)
        assert len(archives) == rows == ROWS
        matched = []
        samples = read_tar(source.path, ["jpg", "txt"])
        for sample, row in join(samples, archive, source, archives.keys, with_rejected=True):
            (rejected if row == REJECTED else matched).append((sample, row))
        assert matched == list(join(read_tar(source.path, ["jpg", "txt"]), archive, source, archives.keys))
        for number, (sample, row) in enumerate(matched):
            assert row == number
            assert sample["__key__"] == archives.keys[row]
            assert sample["txt"].decode() == archives.captions[row]
    assert [sample["__key__"] for sample, _ in rejected] == ["bad0", "bad1", "bad2"]
    assert [Path(source.path).parent for source in archive.sources] == [world.parent] * SHARDS


def test_archives_as_arrays_are_those_of_the_file(finished):
    path = str(finished / "archives" / "00000.parquet")
    archives = read_shard(path)
    for row, written in enumerate(pq.read_table(path).to_pylist()):
        part = slice(archives.offsets[row], archives.offsets[row + 1])
        assert [archives.names[number] for number in archives.concepts[part]] == [
            c["concept"] for c in written["concepts"]
        ]
        assert archives.score[part].tolist() == [concept["score"] for concept in written["concepts"]]
        assert archives.cluster[part].tolist() == [concept["cluster"] for concept in written["concepts"]]


def test_caption_concepts_are_those_that_the_caption_mentions(archive):
    found = archive.read("00001", mentioned=True)
    for row, caption in enumerate(found.captions):
        names = {found.names[number] for number in found.concepts[found.offsets[row] : found.offsets[row + 1]]}
        assert names and all(name in caption for name in names), caption
        assert len(names & set(COLOURS)) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda members: members[3:], r"000000 is missing|out of order"),
        (lambda members: members[:-3], r"000023 is missing, 1 of 24 archives have no sample"),
        (lambda members: members[3:6] + members[:3] + members[6:], "000001 is out of order"),
        (
            lambda members: [*members, ("new.jpg", jpeg()), ("new.txt", b"an apple")],
            "new has no archive in .*00000.parquet",
        ),
        (lambda members: [*members, *members[:3]], "000000 is out of order"),
    ],
)
def test_a_tar_that_is_not_the_curated_one_is_refused(copy, spoil, message):
    import tarfile

    data, out = copy
    with tarfile.open(data / "00000.tar") as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar]
    write_tar(data / "00000.tar", spoil(members))
    archive = ConceptArchive.open(str(out))
    with pytest.raises(CocuError, match=message) as error:
        list(read_pairs(TrainingShard(archive.sources[0], archive), archive.read("00000").keys, True))
    assert "00000.tar" in str(error.value) and "\n" not in str(error.value)


def test_a_tar_that_was_cut_off_is_noticed(copy):
    data, out = copy
    content = (data / "00002.tar").read_bytes()
    (data / "00002.tar").write_bytes(content[: len(content) // 2 // 512 * 512])
    archive = ConceptArchive.open(str(out))
    with pytest.raises(CocuError, match=r"00002.tar: .* the tar is cut off"):
        list(read_pairs(TrainingShard(archive.sources[2], archive), archive.read("00002").keys, True))


def test_without_required_archives_captions_serve_and_are_counted(copy):
    data, out = copy
    write_tar(data / "00003.tar", [("new.jpg", jpeg()), ("new.txt", b"an apple"), ("none.jpg", jpeg()),
                                   ("latin.jpg", jpeg()), ("latin.txt", b"\xe9")])  # fmt: skip
    bare = ConceptArchive.open(str(out))
    shard = TrainingShard(bare.sources[0]._replace(name="00003", path=str(data / "00003.tar")), None)
    pair, *left_out = read_pairs(shard, [], False)
    assert (pair.caption, pair.row) == ("an apple", -1)
    assert left_out == ["unusable"] * 2
    assert count_pairs((shard,), False) == [1]
    (drawn,) = samples_of(Stream((shard,), Sampler(), 0, 0, False), Plan((1,), 1).spans(0, 0, 0))
    assert drawn.prompts == ["an apple"] * 3


def test_a_batch_counts_its_samples_that_lack_an_archive_and_an_unusable_one_only_as_that(copy):
    data, out = copy
    members = [("new.jpg", jpeg()), ("new.txt", b"an apple"), ("empty.jpg", jpeg()), ("empty.txt", b" ")]
    import tarfile

    with tarfile.open(data / "00000.tar") as tar:
        members += [(member.name, tar.extractfile(member).read()) for member in tar]
    write_tar(data / "00000.tar", members)
    archive = ConceptArchive.open(str(out))
    shards = tuple(TrainingShard(source, archive) for source in archive.sources)
    assert count_pairs(shards, False) == [ROWS + 1, ROWS, ROWS]
    plan = Plan(tuple(count_pairs(shards, False)), 1)
    stream = Stream(shards, CLUSTER, 20, 0, required=False)
    seen = Counter()
    for batch in Batches(stream, plan, partial(plain_transform, 32), 77):
        seen.update(batch.counts)
        is_new = torch.equal(*batch.captions.matrices, tokenize(["an apple"]))
        assert ("without archive" in batch.counts) == is_new
    assert seen == {"rejected": 3, "unusable": 1, "without archive": 1}


def test_missing_archives_and_runs_are_named(copy, tmp_path):
    _, out = copy
    with pytest.raises(CocuError, match=r"no manifest.json, so no finished curation; run cocu curate first"):
        ConceptArchive.open(str(tmp_path))
    (out / "archives" / "00001.parquet").unlink()
    archive = ConceptArchive.open(str(out))
    with pytest.raises(CocuError, match=r"00001.parquet: no such file"):
        _ = archive.rows
    shutil.rmtree(out / "embeddings")
    with pytest.raises(CocuError, match="sampler kind caption needs"):
        archive.read("00000", mentioned=True)


# --- batches --------------------------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_sample_once(shards):
    plan = Plan(tuple(count_pairs(shards, True)), 8)
    for sampler in (Sampler(), Sampler("caption"), Sampler("top", 1)):
        stream = Stream(shards, sampler, 30, 0)
        first, second = (keys_of(stream, plan.spans(epoch, 0, 0), epoch) for epoch in (0, 1))
        assert len(set(first)) == len(first) == TOTAL
        assert sorted(first) == sorted(second)
        assert first != second
        assert first != sorted(first)


@pytest.mark.parametrize("kind", ["cluster", "top", "weighted", "caption"])
def test_prompts_name_concepts_of_the_samples_own_archive(shards, archive, kind):
    rows = {row["key"]: row for source in archive.sources
            for row in read_archive(archive.path("archives", source.name)).to_pylist()}  # fmt: skip
    stream = Stream(shards, Sampler(kind, 2), 0, 0)
    for sample in samples_of(stream, Plan((ROWS,) * SHARDS, 8).spans(0, 0, 0)):
        row = rows[sample.where.rpartition(": ")[2]]
        named = [concept["concept"] for concept in row["concepts"]]
        if kind == "caption":
            named = [name for name in named if name in sample.caption]
        possible = {template.replace("{c}", name) for name in named for template in templates()}
        chosen = sample.prompts[: len(named)]
        assert chosen and set(chosen) <= possible
        assert sample.prompts[len(named) :] == [sample.caption] * (2 - len(chosen))
        if kind == "top":
            assert all(name in text for name, text in zip(named, chosen, strict=False))


@pytest.mark.parametrize("kind", ["cluster", "caption"])
def test_samples_say_what_their_prompts_are_about_and_what_their_whole_archive_holds(archive, kind):
    """Whatever the filter keeps: here one concept of each archive, so that the second prompt is the caption."""
    rows = {row["key"]: row for source in archive.sources
            for row in read_archive(archive.path("archives", source.name)).to_pylist()}  # fmt: skip
    filtered = tuple(TrainingShard(source, archive.filter(top=1)) for source in archive.sources)
    stream = Stream(filtered, Sampler(kind, 2, prompt="a {c}"), 0, 0, negatives=NEGATIVES["outside"])
    samples = samples_of(stream, Plan((ROWS,) * SHARDS, 8).spans(0, 0, 0))
    for sample in samples:
        drawn, held = sample.concepts
        named = {concept["concept"] for concept in rows[sample.where.rpartition(": ")[2]]["concepts"]}
        assert sorted(held) == sorted(map(concept_id, named))
        for prompt, number in zip(sample.prompts, drawn, strict=True):
            assert number == (NONE if prompt == sample.caption else concept_id(prompt.removeprefix("a ")))
    assert kind == "caption" or all(sample.concepts.drawn[1] == NONE for sample in samples)
    batch = collate(samples[:8], plain_transform(32), 77, True)
    assert batch.concepts.drawn.tolist() == [sample.concepts.drawn.tolist() for sample in samples[:8]]
    for sample, held in zip(samples, batch.concepts.held.tolist(), strict=False):
        assert set(held) - {NONE} == {*sample.concepts.held.tolist(), *sample.concepts.drawn.tolist()} - {NONE}


def test_draws_and_augmentation_do_not_depend_on_workers_or_order(shards):
    seen = []
    for workers, buffer in ((1, 20), (3, 0)):
        found = {}
        for part in range(workers):
            made = batches(shards, workers=workers, batch_size=1, shuffle=buffer, plain=False)
            for number, sample in enumerate(samples_of(made.stream, made.plan.spans(0, 0, part), 0, part)):
                if number % 7 == 0 or workers == 1:
                    pixels = collate([sample], made.transform(), 77, True).pixels
                    found[sample.where] = (sample.prompts, pixels)
        seen.append(found)
    assert len(seen[1]) > 8
    for where, (drawn, pixels) in seen[1].items():
        assert drawn == seen[0][where][0]
        assert torch.equal(pixels, seen[0][where][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_the_run_stopped(shards, workers):
    whole = batches(shards, workers=max(workers, 1), plain=False)
    steps = whole.plan.steps
    expected = [batch for epoch in (0, 1) for batch in Loader(whole, workers, lambda epoch=epoch: epoch * steps, steps)]
    assert len(expected) == 2 * steps
    assert not same(expected[0], expected[steps])
    for done in (0, 1, steps - 1, steps, steps + 2):
        rest = list(Loader(whole, workers, lambda done=done: done, steps))
        assert len(rest) == steps - done % steps
        assert all(same(one, other) for one, other in zip(rest, expected[done:], strict=False))


def test_ranks_see_different_samples_in_as_many_steps(shards):
    seen = []
    for rank in range(3):
        made = batches(shards, rank=rank, ranks=3, batch_size=4)
        seen.append(keys_of(made.stream, made.plan.spans(0, rank, 0)))
        assert len(list(made)) == made.plan.steps == 6
    assert len({key for keys in seen for key in keys}) == TOTAL


@pytest.mark.parametrize("workers", [1, 3])
def test_each_sample_that_is_left_out_is_counted_once(shards, workers):
    made = batches(shards, batch_size=1, workers=workers)
    total = Counter()
    for worker in range(workers):  # a shard that readers share is read by both
        *groups, rest = grouped(made.stream.read(made.plan.spans(0, 0, worker), 0, worker), 1)
        for samples, left_out in groups:
            total.update(collate(samples, plain_transform(32), 77, True, left_out).counts)
        assert not rest.samples
        total.update(rest.left_out)
    assert total == {"rejected": 3}


def test_a_batch_counts_what_was_left_out_since_the_one_before(shards):
    assert sum((Counter(batch.counts) for batch in batches(shards, batch_size=1)), Counter()) == {"rejected": 3}


def test_texts_are_as_long_as_the_longest_and_equal_clips_tokens(shards):
    batch = next(iter(batches(shards)))
    assert batch.pixels.shape == (8, 3, 32, 32)
    assert len(batch.captions.rows) == 8 and len(batch.prompts.rows) == 24
    for tokens in (*batch.captions.matrices, *batch.prompts.matrices):
        ends = (tokens == END_OF_TEXT).int().argmax(1)
        assert int(ends.max()) == tokens.shape[1] - 1 < 30


@dataclass
class Numbered:
    """A sample for the shuffle, which looks at nothing but its kind."""

    number: int


@given(outcomes=st.lists(st.one_of(st.none(), st.integers())), size=st.integers(1, 9), seed=st.integers(0, 9))
@settings(deadline=None)
def test_samples_are_shuffled_as_webdataset_does_and_what_is_left_out_passes_by(outcomes, size, seed):
    stream = [LeftOut.UNUSABLE if number is None else Numbered(number) for number in outcomes]
    found = list(shuffle(stream, size, random.Random(seed)))
    expected = webdataset.shuffle(size, initial=size, rng=random.Random(seed))(
        number for number in outcomes if number is not None
    )
    assert [outcome.number for outcome in found if isinstance(outcome, Numbered)] == list(expected)
    assert found.count(LeftOut.UNUSABLE) == outcomes.count(None)
    leading = list(itertools.takewhile(lambda number: number is None, outcomes))
    assert found[: len(leading)] == [LeftOut.UNUSABLE] * len(leading)


def test_an_image_that_cannot_be_decoded_is_an_error_or_replaced():
    good, bad = (
        TrainingSample("a.tar: good", 1, jpeg(), "an apple", ["x"]),
        TrainingSample("a.tar: bad", 2, b"no jpeg", "a boat", ["y"]),
    )
    with pytest.raises(UndecodableError, match=r"a.tar: bad: image cannot be decoded .not an image"):
        collate([good, bad], plain_transform(32), 77, True)
    batch = collate([bad, good, bad], plain_transform(32), 77, False)
    assert batch.counts == {"replaced": 2}
    assert torch.equal(*batch.captions.matrices, tokenize(["an apple"] * 3, 77))
    assert torch.equal(batch.pixels[0], batch.pixels[2])
    with pytest.raises(UndecodableError, match="neither this image nor any other"):
        collate([bad], plain_transform(32), 77, False)
