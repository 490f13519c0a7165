"""``python -m evaluation`` and ``python -m evaluation.segment`` from end to end, on tiny data sets and a tiny model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import benchmark_worlds as worlds
import numpy as np
import pytest
import torch
from PIL import Image

from curation.base.devices import choose_device
from curation.base.errors import CocuError
from evaluation import pictures
from evaluation import segment as segmenter
from evaluation.__main__ import main
from evaluation.benchmark import packaged, read_benchmark
from evaluation.evaluate import evaluate
from evaluation.layout import list_images, read_labelled
from evaluation.report import published_table
from evaluation.suite import results_name
from segmenters.checkpoint import load, save


@pytest.fixture(scope="module")
def official(tmp_path_factory, huggingface):
    """A data root with tiny versions of all eight benchmarks, and the results of one run over them."""
    root = tmp_path_factory.mktemp("official")
    truth = {name: make(root / "data") for name, make in worlds.OFFICIAL.items()}
    arguments = ["--checkpoint", str(huggingface[1]), "--benchmarks", ",".join(worlds.OFFICIAL)]
    arguments += ["--data-root", str(root / "data"), "--output", str(root / "out/results.json"), "--batch-size", "8"]
    arguments += ["--save-predictions", str(root / "predictions"), "--visualize", "1"]
    assert main(arguments) == 0
    return root, truth, json.loads((root / "out/results.json").read_text())


@pytest.mark.parametrize("name", list(worlds.OFFICIAL))
def test_all_eight_benchmarks_run_from_official_folders(official, name):
    root, truth, results = official
    result = results["benchmarks"][name]
    benchmark = read_benchmark(name, str(root / "data"))
    assert result["status"] == "done"
    assert result["images"] == {
        "evaluated": len(truth[name]),
        "found": len(truth[name]),
        "expected": benchmark.val_images,
    }
    assert list(result["iou"]) == list(benchmark.classes)
    # The numbers follow from the saved predictions and the labels.
    hit, union = np.zeros(len(benchmark.classes)), np.zeros(len(benchmark.classes))
    for files, labels in zip(list_images(benchmark), truth[name], strict=True):
        with Image.open(root / "predictions" / name / f"{files.name}.png") as image:
            assert image.mode == ("I;16" if len(benchmark.classes) > 256 else "L")
            predicted = np.array(image)
        assert predicted.shape == labels.shape
        for index in range(len(benchmark.classes)):
            one, other = (labels == index), (predicted == index) & (labels != benchmark.ignore_index)
            hit[index] += (one & other).sum()
            union[index] += (one | other).sum()
    iou = 100 * hit[union > 0] / union[union > 0]
    assert result["miou"] == pytest.approx(iou.mean(), abs=1e-4)
    assert result["classes_that_occur"] == (union > 0).sum()


def test_results_tell_where_they_come_from(official, huggingface):
    _, _, results = official
    assert results["checkpoint"] == {
        "path": str(huggingface[1]), "kind": "huggingface", "sha256": load(huggingface[1]).sha256,
    }  # fmt: skip
    assert {"python", "torch", "cocu"} <= set(results["versions"])
    assert results["options"]["batch_size"] == 8
    config = results["benchmarks"]["cityscapes"]["config"]
    assert (config["resize_short"], config["crop"], config["layout"]["root"][-4:]) == (1024, 448, "city")
    assert results["benchmarks"]["voc"]["published"]["GroupViT (CC12M)"] == 41.1


def test_pictures_show_image_truth_prediction_and_groups(official):
    root, _, _ = official
    drawn = sorted(path.relative_to(root / "out/pictures") for path in (root / "out/pictures").rglob("*.png"))
    assert len(drawn) == 8
    with Image.open(root / "out/pictures/voc/2007_000033.png") as image:
        assert image.width > 3.9 * pictures.PANEL
        pixels = np.array(image.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return worlds.own(tmp_path, 5)


def run(huggingface, *arguments):
    return main(["--checkpoint", str(huggingface[1]), *map(str, arguments)])


def test_ones_own_benchmark_and_limit_and_default_places(huggingface, mine, tmp_path, capsys):
    folder = shutil.copytree(huggingface[1], tmp_path / "small.model")
    arguments = ["--checkpoint", str(folder), "--benchmarks", "mine.yaml", "--limit", "2", "--visualize", "1"]
    assert main([*arguments, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "mine: 5 images found" in out
    assert "mine: the first 2 of 5 images only (--limit)" in out
    results = json.loads((tmp_path / "artifacts/evaluation/small/results.json").read_text())
    assert results["benchmarks"]["mine"]["images"] == {"evaluated": 2, "found": 5, "expected": None}
    assert [path.name for path in tmp_path.rglob("pictures/mine/*")] == ["i0.png"]


def test_absent_benchmarks_are_named_others_go_on_and_the_exit_code_says_so(huggingface, mine, tmp_path, capsys):
    assert run(huggingface, "--benchmarks", "voc,mine.yaml,ade20k", "--data-root", "nodata", "--output", "r.json") == 1
    out = capsys.readouterr().out
    assert "absent: voc: no folder nodata/VOCdevkit/VOC2012" in out
    assert "absent: ade20k: no folder nodata/ADEChallengeData2016" in out
    results = json.loads((tmp_path / "r.json").read_text())["benchmarks"]
    assert {name: part["status"] for name, part in results.items()} == {
        "voc": "absent",
        "mine": "done",
        "ade20k": "absent",
    }


def test_a_benchmark_with_bad_files_fails_and_the_others_go_on(huggingface, mine, tmp_path, capsys):
    other = worlds.own(tmp_path / "other", 2, name="other")
    (tmp_path / "data/images/i3.png").write_bytes(b"junk")
    assert run(huggingface, "--benchmarks", f"mine.yaml,{other}", "--output", "r.json") == 1
    assert "data/images/i3.png: image cannot be decoded" in capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())["benchmarks"]
    assert (results["mine"]["status"], results["other"]["status"]) == ("failed", "done")
    assert "i3.png" in results["mine"]["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmarks", "mine.yaml,vocc"], "'vocc' is not packaged (did you mean 'voc'?)"),
        (["--benchmarks", ","], "benchmarks: none is named"),
        (["--benchmarks", "mine.yaml,mine.yaml"], "benchmarks: two are called mine"),
        (["--benchmarks", "mine.yaml", "--device", "cuda:99"], "device: cuda:99 was asked for, but torch sees"),
        (["--benchmarks", "mine.yaml", "--device", "gpu"], "device: 'gpu' is not auto, cpu, cuda or cuda:N"),
        (["--benchmarks", "mine.yaml", "--checkpoint", "nowhere"], "nowhere: no such checkpoint"),
        (["--benchmarks", "mine.yaml", "--checkpoint", "data"], "config.json: missing"),
    ],
)
def test_mistakes_are_one_line_before_any_work(huggingface, mine, capsys, arguments, message):
    assert run(huggingface, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_without_a_checkpoint_the_newest_is_taken(groupvit, mine, tmp_path, capsys):
    assert main(["--benchmarks", "mine.yaml"]) == 1
    assert "no .ckpt below artifacts/; name a checkpoint" in capsys.readouterr().err
    (tmp_path / "artifacts/run").mkdir(parents=True)
    content = {
        "state_dict": {f"model.{name}": value for name, value in groupvit.state_dict().items()},
        "hyper_parameters": {"model": vars(groupvit.config)},
    }
    torch.save(content, tmp_path / "artifacts/run/last.ckpt")
    assert main(["--benchmarks", "mine.yaml", "--output", "r.json"]) == 0
    assert json.loads((tmp_path / "r.json").read_text())["checkpoint"]["path"] == "artifacts/run/last.ckpt"


def test_our_folder_gives_the_same_numbers_as_hugging_faces(huggingface, groupvit, mine, tmp_path):
    save(groupvit, tmp_path / "ours")
    assert main(["--checkpoint", "ours", "--benchmarks", "mine.yaml", "--output", "a.json"]) == 0
    assert run(huggingface, "--benchmarks", "mine.yaml", "--output", "b.json", "--batch-size", "3") == 0
    one, other = (json.loads((tmp_path / name).read_text())["benchmarks"]["mine"] for name in ("a.json", "b.json"))
    assert one["iou"] == other["iou"]


def test_only_ignored_labels_are_an_error(groupvit, tmp_path):
    path = worlds.own(tmp_path, 1)
    worlds.mask(tmp_path / "data/masks/i0.png", worlds.stripes([255], (100, 70)))
    with pytest.raises(CocuError, match="mine: nothing to evaluate: every label of 1 images is ignored"):
        evaluate(groupvit, read_benchmark(str(path), ""))


def test_published_numbers_stand_beside_ours(groupvit, tmp_path):
    path = worlds.own(tmp_path, 1, published={"GroupViT (CC12M)": 41.1})
    result = evaluate(groupvit, read_benchmark(str(path), ""))
    table = published_table([result], "ours")
    models, numbers = (list(column.cells) for column in table.columns)
    assert models == ["[bold]ours", "GroupViT (CC12M)"]
    assert numbers[1] == "41.1"
    assert published_table([], "ours") is None


def test_large_images_are_shrunk_and_predictions_fit_the_mask(official):
    root, truth, _ = official
    benchmark = read_benchmark("imagenet_s_50", str(root / "data"))
    image, labels = read_labelled(list_images(benchmark)[1], benchmark)
    assert image.size == (1200, 900)
    np.testing.assert_array_equal(labels, truth["imagenet_s_50"][1])


def test_a_gpu_is_taken_when_there_is_one():
    assert [choose_device("auto", 0), choose_device("auto", 2), choose_device("cuda:1", 2)] == ["cpu", "cuda", "cuda:1"]


# --- evaluation.segment ----------------------------------------------------------------------------------------------


def segment(huggingface, *arguments):
    return segmenter.main(["--checkpoint", str(huggingface[1]), *map(str, arguments)])


@pytest.mark.parametrize("extra", [[], ["--heatmap"], ["--threshold", "0.3"], ["--size", "80", "--device", "cpu"]])
def test_a_user_sees_where_the_words_are(huggingface, mine, tmp_path, extra):
    words = ["--words", "red fox, grass, water"]
    assert segment(huggingface, "data/images/i0.png", *words, "-o", "out/x.png", *extra) == 0
    with Image.open(tmp_path / "out/x.png") as image:
        columns = 4 if "--heatmap" in extra else 2 * 2
        assert image.width > columns * pictures.PANEL


def test_a_turned_photo_is_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert segmenter.read_photo(str(tmp_path / "x.jpg")).size == (20, 40)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--words", "a,b"], "nowhere.png: no such image"),
        (["mine.yaml", "--words", "a,b"], "mine.yaml: image cannot be decoded"),
        (["data/images/i0.png", "--words", " , "], "words: none is given"),
        (["data/images/i0.png", "--words", "fox"], "a single word would cover the whole image"),
        (["data/images/i0.png", "--words", "a,b", "--threshold", "2"], "threshold: 2.0 is not in 0..1"),
        (["data/images/i0.png", "--words", "a,b", "--threshold", ".5", "--heatmap"], "no meaning with --heatmap"),
        (["data/images/i0.png", "--words", "a,b", "--size", "0"], "size: 0 must be at least 1"),
        (["data/images/i0.png", "--words", "a,b", "--size", "4"], "crop: windows of 4 pixels are too small"),
        (["data/images/i0.png", "--words", "a,b", "-o", "x.nonsense"], "x.nonsense"),
        (["data/images/i0.png", "--words", "a,b", "-o", "x.psd"], "x.psd: Pillow writes no such format"),
    ],
)
def test_mistakes_of_segment_are_one_line(huggingface, mine, capsys, arguments, message):
    assert segment(huggingface, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_heat_is_the_cosine_of_the_groups(groupvit):
    from evaluation.inference import View, embed_classes, prepare

    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    view, classes = View(64, 2048, 64, 32), embed_classes(groupvit, ["dog", "grass"], None)
    fits = segmenter.heat(groupvit, classes, image, view)
    pixels, _ = prepare(image, view, 16)
    with torch.no_grad():
        encoding = groupvit.encode_groups(pixels[None])
    cosines = torch.nn.functional.normalize(encoding.groups[0], dim=-1) @ classes.text.T  # (G, C)
    assert fits.shape == (2, 64, 64)
    # In the middle of a corner patch bilinear resizing changes nothing.
    expected = (cosines * encoding.masks()[0, :, 0, 0, None]).sum(0)
    np.testing.assert_allclose(fits[:, 0, 0], expected.numpy(), atol=1e-5)


# --- docs/evaluation.md --------------------------------------------------------------------------------------------------

PAGE = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text().partition("## Folders and labels")[0]


def test_the_pages_examples_run_as_written(huggingface, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (description,) = re.findall(r"```yaml evaluation\n(.*?)```", PAGE, re.DOTALL)
    (program,) = re.findall(r"```python evaluation\n(.*?)```", PAGE, re.DOTALL)
    worlds.photo(tmp_path / "my-photos/images/a.jpg", 0)
    worlds.mask(tmp_path / "my-photos/masks/a.png", worlds.stripes([0, 1, 3, 255]))
    (tmp_path / "my-photos/val.txt").write_text("a\n")
    (tmp_path / "mine.yaml").write_text(description)
    (tmp_path / "groupvit-folder").symlink_to(huggingface[1])
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "'red fox'" in run.stdout


def test_the_page_has_every_benchmark_with_its_folder_and_numbers():
    for name in packaged():
        benchmark = read_benchmark(name, "")
        (row,) = re.findall(rf"^\| `{name}` \|.*", PAGE, re.MULTILINE)
        assert f"| {benchmark.val_images:,} | {len(benchmark.classes)} |" in row
        assert f"`{benchmark.layout.root}/" in row


# --- pictures --------------------------------------------------------------------------------------------------------


def test_colours_of_what_occurs_differ():
    palette = pictures.palette_of(300, np.array([[0, 3, 7, 120, 299, 1000]]))
    shown = palette[[0, 3, 7, 120, 299]].astype(int)
    distances = np.abs(shown[:, None] - shown).sum(-1)[np.triu_indices(5, 1)]
    assert distances.min() > 60
    assert (palette[1] == 128).all()


def test_a_legend_names_the_largest_classes_and_counts_the_rest():
    labels = np.repeat(np.arange(12), 12 - np.arange(12))[None]
    names = [f"class {index}" for index in range(12)]
    entries = pictures.legend(labels, names, pictures.colours(12))
    assert entries[0].text == "class 0  15%"
    assert entries[-1].text == "and 4 more"
    assert len(entries) == pictures.NAMES


def test_what_is_not_evaluated_is_light_and_the_background_dark():
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    painted = np.array(pictures.paint(image, np.array([[0, 1, 255]]), pictures.colours(2), plain=(0,)))[0]
    assert painted[0].tolist() == [55] * 3
    assert painted[2].mean() > 190
    assert np.ptp(painted[1]) > 50


def test_results_of_runs_do_not_share_a_folder():
    assert results_name("artifacts/training/cocu_demo/checkpoints/last.ckpt") == "cocu_demo-last"
    assert results_name(str(Path("checkpoints/best.ckpt").absolute())) != "best"
    assert results_name("models/groupvit-hf") == "groupvit-hf"


def test_results_of_folders_are_called_by_names_with_versions(tmp_path, monkeypatch):
    for name in ("groupvit-1.5", "groupvit-1.6"):
        (tmp_path / name).mkdir()
        assert results_name(str(tmp_path / name)) == name
    monkeypatch.chdir(tmp_path / "groupvit-1.5")
    assert results_name(".") == results_name("local-dir:.") == "groupvit-1.5"
    assert results_name("local-dir:..") == tmp_path.name
    assert results_name("local-dir:me@home/clip@naclip,stride=8") == "clip-naclip-stride-8"
