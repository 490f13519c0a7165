"""The comparison of arms: the whole program on a tiny world."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from benchmark_worlds import mask, photo, split
from PIL import Image
from rich.console import Console
from same_process import SameProcess

from curation.archive import ConceptArchive
from curation.base.errors import CocuError
from curation.config import EncoderConfig
from curation.samples import read_sidecars
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import evaluate
from experiments import commands as commands_module
from experiments import runs as runs_module
from experiments import untrained
from experiments.__main__ import build_parser, main
from experiments.comparison import plan
from experiments.distil import Window, crop_windows, random_windows, window_segments
from experiments.omission import omitted_shares
from experiments.quality import read_truth
from experiments.recipes import Recipe, read_recipe
from experiments.runs import Setting
from experiments.scores import read_curve
from experiments.untrained import read as read_readings
from segmenters.opening import open_segmenter

CLASSES = ("apple", "boat", "sand", "snow")


# --- the whole program ----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch) -> None:
    """What is curated and trained is so in this process. Processes are tested by another recipe."""
    monkeypatch.setattr(commands_module, "subprocess", SameProcess)


@pytest.fixture(scope="module")
def compared(world, tmp_path_factory) -> tuple[list[str], Path]:
    """The arguments of a comparison of three arms on the tiny world, run once, and its folder."""
    folder = tmp_path_factory.mktemp("comparison")
    data = folder / "bench"
    names = []
    for number in range(3):
        names.append(f"{number}")
        photo(data / "images" / f"{number}.jpg", number, (40, 40))
        values = np.full((40, 40), number)
        values[20:] = 3
        mask(data / "masks" / f"{number}.png", values)
    split(data / "val.txt", names)
    captions = [
        {"key": name, "caption": f"a {CLASSES[int(name)]}", "mentioned": [CLASSES[int(name)]]} for name in names
    ]
    (data / "captions.jsonl").write_text("\n".join(map(json.dumps, captions)) + "\n")
    layout = {"root": "bench", "images": "images/{id}.jpg", "masks": "masks/{id}.png", "split": "val.txt"}
    view = {"resize_short": 32, "crop": 32, "stride": 16}
    benchmark = {"name": "tiny", "background": False, **view, "classes": list(CLASSES), "layout": layout}
    (folder / "bench.yaml").write_text(yaml.safe_dump(benchmark))
    sizes = {"image_size": 32, "patch_size": 8, "width": 16, "heads": 2, "mlp_width": 32, "depths": [1, 0], "groups": [2],
             "assign_widths": [8, 32], "text_width": 16, "text_heads": 2, "text_mlp_width": 32, "text_layers": 1,
             "projection_hidden": 24, "projection": 8}  # fmt: skip
    recipe = {"trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0},
              "model": {"sizes": sizes, "optimizer": {"reference_batch": 8}},
              "data": {"batch_size": 8, "workers": 0}, "save_every": 1, "pictures": 1}  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    arms = {
        "caption": {"title": "a", "train": {"data.sampler.kind": "caption"}, "seeds": 2},
        "cluster": {"title": "b"},
        "truth": {"title": "c", "curate": "truth"},
        "hot": {"title": "d", "train": {"data.sampler.temperature": 9.0}, "group": "temperature"},
    }
    (folder / "arms.yaml").write_text(yaml.safe_dump(arms, sort_keys=False))
    arguments = [
        "--data",
        str(world),
        "--benchmark",
        str(folder / "bench.yaml"),
        "--recipe",
        str(folder / "recipe.yaml"),
    ]
    arguments += [
        "--arms",
        str(folder / "arms.yaml"),
        "--output",
        str(folder / "out"),
        "--report",
        str(folder / "page"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands_module, "subprocess", SameProcess)
        assert main(arguments) == 0
    return arguments, folder


def test_a_comparison_writes_numbers_figures_and_a_page(compared):
    _, folder = compared
    page = (folder / "page" / "README.md").read_text()
    assert "caption ends" not in page and "cluster ends at mIoU" in page
    pictures = folder / "out" / "pictures" / "1.png"
    assert str(pictures) in page
    for path in (pictures, *(folder / "page" / f"{name}.png" for name in ("curves", "omission", "losses", "sweep"))):
        assert path.parent.name == "pictures" or f"({path.name})" in page
        with Image.open(path) as image:
            assert min(image.size) > 200
    with (folder / "page" / "results.csv").open() as stream:
        lines = {row["arm"]: row for row in csv.DictReader(stream)}
    assert list(lines) == ["caption", "cluster", "truth", "hot"]
    assert lines["caption"]["seeds"] == "2"
    with (folder / "page" / "curves.csv").open() as stream:
        curves = list(csv.DictReader(stream))
    assert len(curves) == 5 * 2  # runs x epochs
    assert all(row["train/prompt_loss"] for row in curves)


def test_the_encoder_untrained_is_a_row_that_is_measured_once(compared, world, tiny_clip):
    """Against evaluation itself; the first sentence of the page says which arms it beats."""
    _, folder = compared
    benchmark = read_benchmark(str(folder / "bench.yaml"), "data")
    expected = evaluate(open_segmenter(f"local-dir:{tiny_clip}").model, benchmark).scores
    (reading,) = read_readings(folder / "out")
    assert reading.miou == pytest.approx(expected.miou) and reading.name == f"local-dir:{tiny_clip.name}"
    np.testing.assert_allclose(reading.iou, expected.iou)

    _, first, *_ = (folder / "page" / "README.md").read_text().split("\n\n")
    assert f"has mIoU {expected.miou:.2f} and {expected.pixel_accuracy:.2f}% of the pixels: " in first
    with (folder / "page" / "references.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["arm"] == f"untrained, {reading.name}" and float(row["miou"]) == pytest.approx(expected.miou, abs=1e-4)


def test_a_stride_that_the_encoder_lacks_costs_no_other_reading(tmp_path, monkeypatch, capsys):
    encoder = EncoderConfig(model="local-dir:clip")
    monkeypatch.setattr(untrained, "open_run", lambda path: SimpleNamespace(config=SimpleNamespace(encoder=encoder)))
    for name in ("benchmark_digest", "archives_digest"):
        monkeypatch.setattr(untrained, name, lambda *words: None)
    recipe = Recipe((tmp_path / "recipe.yaml",))
    recipe.files[0].write_text("model: {stride: 5}")
    setting = Setting(recipe, "tiny", "data", tmp_path, tmp_path, 1)

    def read(name: str, benchmark: object, limit: int | None) -> untrained.Reading:
        if name.endswith("@stride=5"):
            raise CocuError("stride: asked for 5")
        return untrained.Reading(name, 50.0, np.array([30.0, 40.0]))

    monkeypatch.setattr(untrained, "_evaluate", read)
    (reading,) = untrained.measure([setting], None, tmp_path, Console())
    assert (reading.name, reading.miou) == ("local-dir:clip", 35.0)
    assert "local-dir:clip@stride=5 is not read untrained: stride: asked for 5" in capsys.readouterr().out
    assert [kept.name for kept in read_readings(tmp_path)] == ["local-dir:clip"]


def test_archives_of_the_truth_are_what_the_sidecars_say(compared, world):
    _, folder = compared
    truth, base = (ConceptArchive.open(str(folder / "out" / "archives" / name)) for name in ("truth", "base"))
    said = {
        key: json.loads(content)
        for number in range(3)
        for key, content in read_sidecars(str(world.parent / f"{number:05d}.tar"))
    }
    seen = 0
    for row, other in zip(truth, base, strict=True):
        assert (row["key"], row["caption"]) == (other["key"], other["caption"])
        names = [entry["concept"] for entry in row["concepts"]]
        assert sorted(names) == sorted(said[row["key"]]["objects"] + said[row["key"]]["stuff"])
        assert [entry["cluster"] for entry in row["concepts"]] == list(range(len(names)))
        seen += len(names)
    assert seen > 100
    shares = omitted_shares(folder / "out" / "archives" / "truth", [*CLASSES, "zebra"])
    visible = [sum("apple" in item["objects"] for item in said.values())]
    named = [sum("apple" in item["mentioned"] for item in said.values())]
    assert shares[0] == pytest.approx(1 - named[0] / visible[0])
    assert np.isnan(shares[4])
    assert read_truth(folder / "out" / "archives" / "base") is not None


@pytest.mark.usefixtures("here")
def test_finished_runs_are_kept_and_an_interrupted_one_resumes(compared):
    arguments, folder = compared
    runs_folder = folder / "out" / "runs"
    before = {path: path.stat().st_mtime_ns for path in runs_folder.glob("*/*/scores.csv")}
    (runs_folder / "cluster" / "0" / "result.json").unlink()  # as if it had been killed after its last checkpoint
    assert main([*arguments, "--only", "caption", "cluster"]) == 0
    after = {path: path.stat().st_mtime_ns for path in runs_folder.glob("*/*/scores.csv")}
    assert before == after  # nothing was trained again
    assert "ckpt_path" not in (runs_folder / "caption" / "0" / "log").read_text()
    assert (runs_folder / "cluster" / "0" / "result.json").exists()


def test_another_recipe_trains_again(compared):
    """Two runs side by side, each in a process of its own as a user's are, of one epoch."""
    arguments, folder = compared
    changed = folder / "other.yaml"
    changed.write_text((folder / "recipe.yaml").read_text().replace("max_epochs: 2", "max_epochs: 1"))
    arguments = [str(changed) if value == str(folder / "recipe.yaml") else value for value in arguments]
    arguments += ["--only", "cluster", "truth", "--jobs", "2", "--report", str(folder / "other-page")]
    assert main(arguments) == 0
    for arm in ("cluster", "truth"):
        assert len(read_curve(folder / "out" / "runs" / arm / "0").steps) == 1


@pytest.mark.usefixtures("here")
def test_all_runs_may_start_from_what_the_encoder_knows(compared, capsys):
    """Learnt once; the runs of random weights stay where they are."""
    arguments, folder = compared
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["sizes"] |= {"projection": 32, "text_context": 16}  # the tiny CLIP's
    (folder / "started.yaml").write_text(yaml.safe_dump(recipe))
    recipe["model"] |= {"windows": 2}
    (folder / "distil.yaml").write_text(yaml.safe_dump(recipe))
    before = (folder / "out" / "runs" / "caption" / "0" / "scores.csv").read_text()
    arguments = [str(folder / "started.yaml") if value == str(folder / "recipe.yaml") else value for value in arguments]
    arguments[arguments.index("--report") + 1] = str(folder / "started-page")
    arguments += ["--start", str(folder / "distil.yaml"), "--only", "caption", "--seeds", "1"]
    assert main(arguments) == 0
    start = folder / "out" / "start"
    with next(start.glob("logs/version_0/metrics.csv")).open() as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row.get("train/loss")]
    assert np.mean(losses[-3:]) < losses[0] - 0.05
    page = (folder / "started-page" / "README.md").read_text()
    assert f"(`{folder / 'distil.yaml'}`; mIoU {read_curve(start).miou[-1]:.2f}" in page and "windows: 2" in page
    (saved,) = (folder / "out" / "runs-started" / "caption" / "0").glob("logs/version_0/config.yaml")
    assert yaml.safe_load(saved.read_text())["model"]["start"] == str(start / "checkpoints" / "last.ckpt")
    assert (folder / "out" / "runs" / "caption" / "0" / "scores.csv").read_text() == before
    written = (start / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    assert main(arguments) == 0
    assert (start / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written
    (folder / "wide.yaml").write_text((folder / "distil.yaml").read_text().replace("projection: 32", "projection: 9"))
    capsys.readouterr()
    assert (
        main([str(folder / "wide.yaml") if value == str(folder / "distil.yaml") else value for value in arguments]) == 1
    )
    assert "projection: 9 must be 32, the encoder's dimensions" in capsys.readouterr().err


def test_windows_lie_on_the_grid_and_their_segments_are_means_over_patches():
    random = np.random.default_rng(0)
    windows = random_windows(random, 8, 200)
    assert all(0 <= top <= 8 - side and 0 <= left <= 8 - side for top, left, side in windows)
    assert {side for _, _, side in windows} == {3, 4, 5, 6}
    assert random_windows(random, 1, 3) == [Window(0, 0, 1)] * 3
    masks = torch.rand(2, 3, 4, 4).softmax(1)  # (B, G, h, w)
    segments = torch.randn(2, 3, 5)
    means = window_segments(segments, masks, [Window(1, 0, 2), Window(0, 0, 4)])
    for (top, left, side), values in zip([(1, 0, 2), (0, 0, 4)], means, strict=True):
        patches = [(row, column) for row in range(top, top + side) for column in range(left, left + side)]
        expected = sum(
            masks[:, group, row, column, None] * segments[:, group] for row, column in patches for group in range(3)
        )
        torch.testing.assert_close(values, expected / len(patches))
    pixels = torch.arange(2 * 3 * 8 * 8.0).view(2, 3, 8, 8)
    assert torch.equal(crop_windows(pixels, [Window(2, 1, 2)], 2, (4, 4))[0], pixels[:, :, 4:8, 2:6])


# --- families -------------------------------------------------------------------------------------------------------------

FAMILIES = """
families:
  dense:
    title: A CLIP
    recipe: dense.yaml
    method: archive
    train: {model.validation.limit: 2}
    arms:
      caption: {title: a, train: {data.sampler.kind: caption}, seeds: 2}
      archive: {title: b, train: {data.sampler.kind: top}}
      text: {title: c, train: {data.sampler.kind: weighted}}
  groups:
    title: A GroupViT
    recipe: recipe.yaml
    start: start.ckpt
    arms:
      caption: {title: a, train: {data.sampler.kind: caption}}
      cluster: {title: d}
"""
ENDS = {"dense": {"caption": 40, "archive": 50, "text": 41}, "groups": {"caption": 20, "cluster": 19}}


def write_finished_run(part, arm, seed) -> None:
    """A run at its end without training: classes have half, as much, as much and one and a half times its mIoU."""
    folder = part.setting.folder(arm, seed)
    folder.mkdir(parents=True)
    end = ENDS[part.family.name][arm.name] + seed
    scores = [[step, 60, *(share * step * end for share in (0.05, 0.1, 0.1, 0.15))] for step in (5, 10)]
    (folder / "scores.csv").write_text("".join(",".join(map(str, line)) + "\n" for line in scores))
    (folder / "result.json").write_text(json.dumps({"asked": part.setting.request(arm, seed), "seconds": 1}))


@pytest.fixture(scope="module")
def families(compared, world, tmp_path_factory) -> tuple[list[str], Path]:
    """The arguments of a comparison of two families whose runs are at their ends, and its folder."""
    _, beside = compared
    folder = tmp_path_factory.mktemp("families")
    (folder / "arms.yaml").write_text(FAMILIES)
    (folder / "recipe.yaml").write_text((beside / "recipe.yaml").read_text())
    (folder / "dense.yaml").write_text(yaml.safe_dump({"model": {"encoder": "local-dir:clip", "stride": 16}}))
    (folder / "start.ckpt").write_bytes(b"weights")
    shutil.copytree(beside / "out" / "archives", folder / "out" / "archives")
    arguments = ["--data", str(world), "--benchmark", str(beside / "bench.yaml"), "--arms", str(folder / "arms.yaml")]
    arguments += ["--output", str(folder / "out"), "--report", str(folder / "page"), "--page-only"]
    for run in plan(build_parser().parse_args(arguments)).runs():
        write_finished_run(*run)
    readings = [{"name": f"local-dir:clip{end}", "pixel_accuracy": 70, "iou": [miou] * 4} for end, miou in
                (("", 35), ("@stride=16", 45))]  # fmt: skip
    (folder / "out" / "untrained.json").write_text(json.dumps({"asked": {}, "readings": readings}))
    return arguments, folder


def test_families_are_compared_side_by_side(families):
    arguments, folder = families
    assert main(arguments) == 0
    page = (folder / "page" / "README.md").read_text()
    _, first, *_ = page.split("\n\n")
    assert first == (
        "**Untrained, the encoder behind the archives (`local-dir:clip@stride=16`) has mIoU 45.00 and 70.00% of the "
        "pixels: more mIoU than these arms of *A CLIP*: caption, text, and less than archive; more mIoU than every arm of "
        "*A GroupViT*.**"
    )
    assert "archive ends at mIoU 50.00, caption at 40.50 (40.00 to 41.00): a difference of +9.50" in page
    assert "archive reaches the final mIoU of caption (40.50) after 10 of 10 steps." in page
    assert "cluster ends at mIoU 19.00, caption at 20.00: a difference of -1.00" in page
    assert page.count("| untrained, local-dir:clip | not trained here | - | 35.00 | 70.00 |") == 2
    assert "Scores are zero-shot segmentation on 2 images of `bench.yaml`" in page
    assert "losses" not in page  # none was logged
    for name in ("curves-dense", "omission-dense", "curves-groups", "omission-groups"):
        assert f"({name}.png)" in page and (folder / "page" / f"{name}.png").exists()
    with (folder / "page" / "results.csv").open() as stream:
        rows = [(row["family"], row["arm"]) for row in csv.DictReader(stream)]
    assert rows == [(family, arm) for family, arms in ENDS.items() for arm in arms]
    with (folder / "page" / "classes.csv").open() as stream:
        assert next(csv.DictReader(stream))["dense/archive"] == "25.0000"


def test_an_unfinished_arm_of_a_family_is_named(families):
    arguments, folder = families
    (result,) = (folder / "out" / "runs" / "groups" / "cluster").glob("*/result.json")
    content = result.read_text()
    result.write_text(content.replace('"seed": 0', '"seed": 1'))
    assert main([*arguments[:-2], str(folder / "other"), "--page-only"]) == 0
    result.write_text(content)
    page = (folder / "other" / "README.md").read_text()
    assert "Not run, or not to the end: groups/cluster." in page and "cluster ends" not in page


def test_what_is_learnt_and_what_is_trained(families, monkeypatch):
    """The commands of a family's runs; a start is learnt of places where its recipe has a teacher, else of windows."""
    arguments, folder = families
    commands = []

    def run_module(module: str, words: list[str], log: Path, threads: int = 0) -> None:
        commands.append((module, words))

    monkeypatch.setattr(runs_module, "run_module", run_module)
    dense, groups = plan(build_parser().parse_args(arguments)).families
    runs_module.run(dense.setting, dense.family.arms[1], 7)
    ((module, words),) = commands
    assert module == "training" and words[:3] == ["fit", "--config", str(folder / "dense.yaml")]
    pairs = dict(zip(words[1::2], words[2::2], strict=True))
    assert pairs["--model.validation.limit"] == "2" and pairs["--data.sampler.kind"] == "top"
    assert pairs["--output"] == str(folder / "out" / "runs" / "dense" / "archive" / "7")
    assert "--model.start" not in pairs
    runs_module.run(groups.setting, groups.family.arms[0], 7)
    pairs = dict(zip(commands[-1][1][1::2], commands[-1][1][2::2], strict=True))
    assert pairs["--model.start"] == str(folder / "start.ckpt")

    for model, expected in (({"teacher": "x"}, "experiments.distil_places"), ({"windows": 2}, "experiments.distil")):
        (folder / "learn.yaml").write_text(yaml.safe_dump({"model": model}))
        runs_module.learn_start(dense.setting, read_recipe(folder / "learn.yaml"), folder / "learnt")
        assert commands[-1][0] == expected
        assert "--model.validation.limit" in commands[-1][1]


def test_errors_are_one_line(compared, capsys):
    arguments, _ = compared
    assert main([*arguments, "--only", "claster"]) == 1
    assert "did you mean 'cluster'?" in capsys.readouterr().err
