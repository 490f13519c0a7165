"""Tars joined with their archives, and the batches of an epoch: on real files, with and without worker processes."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_world import COLOURS, ROWS, SHARDS, jpeg, write_tar

from curation.archive import ConceptArchive, Filter, Sampler, join, read_archive, read_shard, read_tar, templates
from curation.base.errors import CocuError
from segmenters.groupvit import END_OF_TEXT, tokenize
from segmenters.text import arrange, part_ends
from training.augmentation import Augmentation, plain_transform
from training.batches import Batches, Loader, UndecodableError, collate
from training.datamodule import ArchiveDataModule
from training.negatives import NONE, concept_id
from training.plan import Plan
from training.stream import Sample, Shard, Stream, count_rows, usable

TOTAL = SHARDS * ROWS
CLUSTER = Sampler()


@pytest.fixture(scope="session")
def archive(finished):
    return ConceptArchive.open(str(finished))


@pytest.fixture(scope="session")
def shards(archive):
    return tuple(Shard(source, archive) for source in archive.sources)


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
    plan = Plan(tuple(count_rows(shards, True)), batch_size, ranks, workers)
    transform = partial(plain_transform, 32) if plain else partial(Augmentation().transform, 32)
    return Batches(stream, plan, transform, 77, rank, epoch, done)


def keys_of(stream, spans, epoch=0, reader=0):
    return [sample.where.rpartition(": ")[2] for sample in stream.read(spans, epoch, reader, Counter())]


def same(one, other):
    tensors = [
        [x.pixels, *x.captions.matrices, x.captions.places, *x.prompts.matrices, x.prompts.places] for x in (one, other)
    ]
    return all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))


# --- joining --------------------------------------------------------------------------------------------------------------


def test_every_usable_sample_meets_its_archive(archive, world):
    counts = Counter()
    for source, rows in zip(archive.sources, archive.rows, strict=True):
        archives = archive.read(source.name)
        assert len(archives) == rows == ROWS
        for number, (sample, row) in enumerate(join(read_tar(source.path, ["jpg", "txt"]), archive, source, archives.keys,
                                                    counts=counts)):  # fmt: skip
            assert row == number
            assert sample["__key__"] == archives.keys[row]
            assert sample["txt"].decode() == archives.captions[row]
    assert counts == {"rejected": 3}
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
        list(usable(Shard(archive.sources[0], archive), archive.read("00000").keys, True, Counter()))
    assert "00000.tar" in str(error.value) and "\n" not in str(error.value)


def test_a_tar_that_was_cut_off_is_noticed(copy):
    data, out = copy
    content = (data / "00002.tar").read_bytes()
    (data / "00002.tar").write_bytes(content[: len(content) // 2 // 512 * 512])
    archive = ConceptArchive.open(str(out))
    with pytest.raises(CocuError, match=r"00002.tar: .* the tar is cut off"):
        list(usable(Shard(archive.sources[2], archive), archive.read("00002").keys, True, Counter()))


def test_without_required_archives_captions_serve_and_are_counted(copy):
    data, out = copy
    write_tar(data / "00003.tar", [("new.jpg", jpeg()), ("new.txt", b"an apple"), ("none.jpg", jpeg()),
                                   ("latin.jpg", jpeg()), ("latin.txt", b"\xe9")])  # fmt: skip
    bare = ConceptArchive.open(str(out))
    shard = Shard(bare.sources[0]._replace(name="00003", path=str(data / "00003.tar")), None)
    counts = Counter()
    ((sample, row),) = usable(shard, [], False, counts)
    assert (sample["caption"], row) == ("an apple", -1)
    assert counts == {"unusable": 2}
    assert count_rows((shard,), False) == [1]
    (drawn,) = Stream((shard,), Sampler(), 0, 0, False).read([Plan((1,), 1).spans(0, 0, 0)[0]], 0, 0, Counter())
    assert drawn.prompts == ["an apple"] * 3


def test_missing_archives_and_runs_are_named(copy, tmp_path):
    _, out = copy
    with pytest.raises(CocuError, match=r"no manifest.json, so no finished curation; run make curate first"):
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
    plan = Plan(tuple(count_rows(shards, True)), 8)
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
    for sample in stream.read(Plan((ROWS,) * SHARDS, 8).spans(0, 0, 0), 0, 0, Counter()):
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
    filtered = tuple(Shard(source, archive.filter(top=1)) for source in archive.sources)
    stream = Stream(filtered, Sampler(kind, 2, prompt="a {c}"), 0, 0, outside=True)
    samples = list(stream.read(Plan((ROWS,) * SHARDS, 8).spans(0, 0, 0), 0, 0, Counter()))
    for sample in samples:
        named = {concept["concept"] for concept in rows[sample.where.rpartition(": ")[2]]["concepts"]}
        assert sorted(sample.held) == sorted(map(concept_id, named))
        for prompt, number in zip(sample.prompts, sample.drawn, strict=True):
            assert number == (NONE if prompt == sample.caption else concept_id(prompt.removeprefix("a ")))
    assert kind == "caption" or all(sample.drawn[1] == NONE for sample in samples)
    batch = collate(samples[:8], plain_transform(32), 77, True, Counter(), outside=True)
    assert batch.concepts.drawn.tolist() == [sample.drawn.tolist() for sample in samples[:8]]
    for sample, held in zip(samples, batch.concepts.held.tolist(), strict=False):
        assert set(held) - {NONE} == {*sample.held.tolist(), *sample.drawn.tolist()} - {NONE}


def test_draws_and_augmentation_do_not_depend_on_workers_or_order(shards):
    seen = []
    for workers, shuffle in ((1, 20), (3, 0)):
        found = {}
        for part in range(workers):
            made = batches(shards, workers=workers, batch_size=1, shuffle=shuffle, plain=False)
            for number, sample in enumerate(made.stream.read(made.plan.spans(0, 0, part), 0, part, Counter())):
                if number % 7 == 0 or workers == 1:
                    pixels = collate([sample], made.transform(), 77, True, Counter()).pixels
                    found[sample.where] = (sample.prompts, pixels)
        seen.append(found)
    assert len(seen[1]) > 8
    for where, (drawn, pixels) in seen[1].items():
        assert drawn == seen[0][where][0]
        assert torch.equal(pixels, seen[0][where][1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_where_the_run_stopped(shards, workers):
    whole = batches(shards, workers=max(workers, 1), plain=False)
    expected = [
        batch for epoch in (0, 1) for batch in Loader(whole, workers, lambda epoch=epoch: epoch * whole.plan.steps)
    ]
    steps = whole.plan.steps
    assert len(expected) == 2 * steps
    assert not same(expected[0], expected[steps])
    for done in (0, 1, steps - 1, steps, steps + 2):
        rest = list(Loader(whole, workers, lambda done=done: done))
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
        counts = Counter()
        for sample in made.stream.read(made.plan.spans(0, 0, worker), 0, worker, counts):
            total.update(collate([sample], plain_transform(32), 77, True, counts).counts)
        total.update(counts)
    assert total == {"rejected": 3}


def test_a_batch_counts_what_was_left_out_since_the_one_before(shards):
    assert sum((Counter(batch.counts) for batch in batches(shards, batch_size=1)), Counter()) == {"rejected": 3}


def test_texts_are_as_long_as_the_longest_and_equal_clips_tokens(shards):
    batch = next(iter(batches(shards)))
    assert batch.pixels.shape == (8, 3, 32, 32)
    assert len(batch.captions.places) == 8 and len(batch.prompts.places) == 24
    for tokens in (*batch.captions.matrices, *batch.prompts.matrices):
        ends = (tokens == END_OF_TEXT).int().argmax(1)
        assert int(ends.max()) == tokens.shape[1] - 1 < 30


@pytest.mark.parametrize("context", [77, 8])
@pytest.mark.parametrize("parts", [1, 2, 3, 9])
def test_arranged_texts_are_clips_tokens_in_another_order(context, parts):
    texts = ["a red fox", "grass", "word " * 100, "", "sky", "a red fox"]
    found = arrange(texts, context, parts)
    assert len(found.matrices) <= parts
    padded = [torch.nn.functional.pad(matrix, (0, context - matrix.shape[1])) for matrix in found.matrices]
    assert torch.equal(
        torch.cat(padded)[found.places][:, : tokenize(texts, context).shape[1]], tokenize(texts, context)
    )


@given(lengths=st.lists(st.integers(2, 12), min_size=1, max_size=9), parts=st.integers(1, 4))
@settings(deadline=None)
def test_texts_are_cut_where_the_least_padding_is_needed(lengths, parts):
    lengths = np.sort(lengths)

    def cost(ends):
        return sum((end - start) * lengths[end - 1] for start, end in itertools.pairwise([0, *ends]))

    count = len(lengths)
    ways = [[*cuts, count] for n in range(parts) for cuts in itertools.combinations(range(1, count), n)]
    found = part_ends(lengths, parts)
    assert found[-1] == count and len(found) <= parts and found == sorted(set(found))
    assert cost(found) == min(map(cost, ways))


def test_an_image_that_cannot_be_decoded_is_an_error_or_replaced():
    good, bad = (
        Sample("a.tar: good", 1, jpeg(), "an apple", ["x"]),
        Sample("a.tar: bad", 2, b"no jpeg", "a boat", ["y"]),
    )
    with pytest.raises(UndecodableError, match=r"a.tar: bad: image cannot be decoded .not an image"):
        collate([good, bad], plain_transform(32), 77, True, Counter())
    counts = Counter()
    batch = collate([bad, good, bad], plain_transform(32), 77, False, counts)
    assert batch.counts == {"replaced": 2}
    assert not counts
    assert torch.equal(*batch.captions.matrices, tokenize(["an apple"] * 3, 77))
    assert torch.equal(batch.pixels[0], batch.pixels[2])
    with pytest.raises(UndecodableError, match="neither this image nor any other"):
        collate([bad], plain_transform(32), 77, False, counts)


def test_augmentation_is_timms_and_validation_is_the_whole_picture():
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    plain = plain_transform(40)(picture)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(plain * deviation + mean, torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
    names = [type(step).__name__ for step in Augmentation().transform(32).transforms]
    assert names[0] == "RandomResizedCropAndInterpolation" and {"RandAugment", "RandomErasing"} < set(names)
    assert "ColorJitter" in [type(step).__name__ for step in Augmentation(policy=None).transform(32).transforms]
    with pytest.raises(ValueError, match=r"smallest_crop 0.9 and largest_crop 0.5"):
        Augmentation(smallest_crop=0.9, largest_crop=0.5)
    with pytest.raises(ValueError, match=r"augmentation.erasing: 2 is no probability"):
        Augmentation(erasing=2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data.archives: missing"),
        ({"archives": "x", "batch_size": 1}, "data.batch_size: 1 must be at least 2"),
        ({"archives": "x", "workers": -1}, "data.workers"),
        ({"shards": ["x.tar"]}, "set data.require_archives to false"),
    ],
)
def test_data_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(CocuError, match=message):
        ArchiveDataModule(**values)


def test_several_data_sets_are_mixed(finished, world):
    data = ArchiveDataModule([str(finished), str(finished)], batch_size=8, workers=1)
    data.setup("fit")
    assert sum(data.plan.rows) == 2 * TOTAL
    with_tars = ArchiveDataModule(
        str(finished),
        [str(world.parent / "00000.tar")],
        image="jpg",
        caption="txt",
        batch_size=8,
        require_archives=False,
    )
    with_tars.workers = 1
    with_tars.setup("fit")
    assert list(with_tars.plan.rows) == [ROWS, ROWS, ROWS, ROWS]


def test_a_filter_leaves_captions_in_place_of_poor_concepts(finished):
    data = ArchiveDataModule(
        str(finished), batch_size=8, workers=1, sampler=Sampler("top", prompt="{c}"), filter=Filter(top=1)
    )
    data.setup("fit")
    stream, archive = Stream(data.shards, data.sampler, 0, 0), ConceptArchive.open(str(finished))
    seen = 0
    for sample in stream.read(data.plan.spans(0, 0, 0), 0, 0, Counter()):
        best = archive[sample.where.rpartition(": ")[2]]["concepts"][:1]
        assert sample.prompts == [entry["concept"] for entry in best] + [sample.caption] * (3 - len(best))
        seen += len(best)
    assert seen > 20
