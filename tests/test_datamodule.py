"""The data module: what it refuses, mixes and filters, and how images are prepared."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_world import COLOURS, GROUNDS, ROWS, SHARDS

from curation.archive import ConceptArchive, Filter, Sampler
from curation.base.errors import CocuError
from training.augmentation import Augmentation, plain_transform, seed_everything
from training.cli import main
from training.datamodule import ArchiveDataModule
from training.negatives import NEGATIVES, Negatives, concept_id
from training.stream import LeftOut, Stream

TOTAL = SHARDS * ROWS


def test_augmentation_is_timms_and_validation_is_the_whole_picture():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    plain = plain_transform(40)(picture)
    mean, deviation = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(plain * deviation + mean, torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255)
    names = [type(step).__name__ for step in Augmentation().transform(32).transforms]
    assert names[0] == "RandomResizedCropAndInterpolation" and {"RandAugment", "RandomErasing"} < set(names)
    assert "ColorJitter" in [type(step).__name__ for step in Augmentation(policy=None).transform(32).transforms]
    with pytest.raises(ValueError, match=r"smallest_crop 0.9 and largest_crop 0.5"):
        Augmentation(smallest_crop=0.9, largest_crop=0.5)
    with pytest.raises(ValueError, match=r"augmentation.erasing: 2 is not a probability"):
        Augmentation(erasing=2)


@pytest.mark.parametrize("disturb", [random.random, np.random.random, torch.rand])
def test_an_augmentation_is_decided_by_its_seed_alone(disturb):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    transform = Augmentation().transform(32)
    for seed in range(12):
        drawn = []
        for numbers in (3, 8):
            for _ in range(numbers):
                disturb(*([1] if disturb is torch.rand else []))
            seed_everything(seed)
            drawn.append(transform(picture))
        assert torch.equal(*drawn)


def test_every_value_of_the_augmentation_is_used():
    """With all others off: a flip, a crop of a quarter of the picture, an erased rectangle, other colours."""
    columns = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 4, (64, 64, 3))  # as bright as its number
    picture = Image.fromarray(np.ascontiguousarray(columns))
    off = {"smallest_crop": 1.0, "largest_crop": 1.0, "flip": 0.0, "color_jitter": 0.0, "policy": None, "erasing": 0.0}
    plain = plain_transform(64)(picture)

    def many(**values):
        transform = Augmentation(**{**off, **values}).transform(64)
        return [transform(picture) for _ in range(30)]

    assert all(torch.equal(pixels, plain) for pixels in many())
    assert all(torch.equal(pixels, plain.flip(2)) for pixels in many(flip=1.0))
    spans = [float(pixels[0, 0].max() - pixels[0, 0].min()) for pixels in many(smallest_crop=0.25, largest_crop=0.25)]
    whole = float(plain[0, 0].max() - plain[0, 0].min())
    assert 0.4 * whole < np.mean(spans) < 0.6 * whole  # half of the width
    erased = many(erasing=1.0)
    assert all(not torch.equal(pixels, plain) and bool((pixels == plain).any()) for pixels in erased)
    jittered = many(color_jitter=0.4)
    assert len({float(pixels.sum()) for pixels in jittered}) == 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "data.archives: missing"),
        ({"archives": "x", "batch_size": 1}, "data.batch_size: 1 must be at least 2"),
        ({"archives": "x", "workers": -1}, "data.workers"),
        ({"shards": ["x.tar"]}, "set data.require_archives to false"),
        ({"archives": "x", "sampler_epochs": 0}, "data.sampler_epochs: 0 must be at least 1; for captions alone"),
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
    for sample in stream.read(data.plan.spans(0, 0, 0), 0, 0):
        if isinstance(sample, LeftOut):
            continue
        best = archive[sample.where.rpartition(": ")[2]]["concepts"][:1]
        assert sample.prompts == [entry["concept"] for entry in best] + [sample.caption] * (3 - len(best))
        seen += len(best)
    assert seen > 20


def test_after_the_epochs_of_the_sampler_captions_serve(finished):
    """By the archives as they are read row by row: first its best two, then what the caption mentions, never filtered."""
    data = ArchiveDataModule(
        str(finished), batch_size=8, workers=1, sampler=Sampler("top", 2, prompt="{c}"), sampler_epochs=2,
        filter=Filter(top=2),
    )  # fmt: skip
    data.setup("fit")
    stream = Stream(data.shards, data.sampler, 0, 0, sampler_epochs=data.sampler_epochs)
    archive = ConceptArchive.open(str(finished))
    changed = 0
    for epoch in range(4):
        for sample in stream.read(data.plan.spans(epoch, 0, 0), epoch, 0):
            if isinstance(sample, LeftOut):
                continue
            best = [entry["concept"] for entry in archive[sample.where.rpartition(": ")[2]]["concepts"][:2]]
            mentioned = {name for name in [*COLOURS, *GROUNDS] if name in sample.caption}
            if epoch < 2:
                assert sample.prompts == best + [sample.caption] * (2 - len(best))
            else:
                assert set(sample.prompts) - {sample.caption} <= mentioned
                assert len(mentioned) < 2 or set(sample.prompts) <= mentioned
                changed += set(sample.prompts) != set(best)
    assert changed > 10


def test_a_way_to_choose_negatives_is_a_line_of_a_table(finished, monkeypatch, capsys):
    """Here prompts about what the caption mentions do not count; help, errors and data know of it by its line alone."""
    mentioned = Negatives("only prompts about what the caption omits", lambda archive, shard: archive.read(shard, True))
    monkeypatch.setitem(NEGATIVES, "omitted", mentioned)
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "omitted: only prompts about what the caption omits" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(CocuError, match=r"data.negatives: 'omited' is not one of all, outside, omitted \(did you mean"):
        ArchiveDataModule(str(finished), negatives="omited")
    with pytest.raises(CocuError, match=r"data.negatives: omitted needs archives"):
        ArchiveDataModule(shards=["x.tar"], negatives="omitted", require_archives=False)

    data = ArchiveDataModule(str(finished), batch_size=8, workers=1, negatives="omitted")
    data.setup("fit")
    stream = Stream(data.shards, data.sampler, 0, 0, negatives=data.negatives)
    samples = [sample for sample in stream.read(data.plan.spans(0, 0, 0), 0, 0) if not isinstance(sample, LeftOut)]
    assert len(samples) == TOTAL
    for sample in samples:
        mentions = [name for name in [*COLOURS, *GROUNDS] if name in sample.caption]
        assert sorted(sample.concepts.held) == sorted(map(concept_id, mentions))


def test_what_is_excused_can_be_kept_to_what_is_likely(finished):
    """By the archives as they are read row by row; what is drawn has a filter of its own."""
    archive = ConceptArchive.open(str(finished))
    scores = sorted(entry["score"] for row in archive for entry in row["concepts"])
    least, drawn = scores[len(scores) // 2], scores[3 * len(scores) // 4]
    data = ArchiveDataModule(
        str(finished), batch_size=8, workers=1, sampler=Sampler("top", prompt="{c}"), filter=Filter(score=drawn),
        negatives="outside", excused=Filter(score=least),
    )  # fmt: skip
    data.setup("fit")
    stream = Stream(data.shards, data.sampler, 0, 0, negatives=data.negatives, excused=data.excused)
    excused = left = 0
    for sample in stream.read(data.plan.spans(0, 0, 0), 0, 0):
        if isinstance(sample, LeftOut):
            continue
        concepts = archive[sample.where.rpartition(": ")[2]]["concepts"]
        likely = [concept_id(entry["concept"]) for entry in concepts if entry["score"] >= least]
        assert sorted(sample.concepts.held) == sorted(likely)
        assert set(sample.prompts) - {sample.caption} <= {e["concept"] for e in concepts if e["score"] >= drawn}
        excused, left = excused + len(likely), left + len(concepts) - len(likely)
    assert excused > 20 and left > 20


@pytest.mark.parametrize(
    ("negatives", "excused", "message"),
    [
        ("all", Filter(score=1.0), "data.excused: with data.negatives all nothing is excused"),
        ("outside", Filter(distinct=True), "data.excused.distinct: it says nothing of concepts"),
    ],
)
def test_what_cannot_be_excused_is_one_line(finished, negatives, excused, message):
    with pytest.raises(CocuError, match=message):
        ArchiveDataModule(str(finished), negatives=negatives, excused=excused)
