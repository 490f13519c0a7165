"""A threshold of the background without labels, against Otsu's definition and what evaluation then does."""

from __future__ import annotations

import json

import benchmark_worlds as worlds
import numpy as np
import pytest
import torch
from PIL import Image

from curation.base.errors import CocuError
from evaluation.__main__ import main
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import choose_threshold
from evaluation.inference import View, embed_classes, prepare, segment
from evaluation.segment import main as segment_main
from evaluation.threshold import BINS, Scores, curve, score_images


def histogram(counts: dict[float, int]) -> np.ndarray:
    pixels = np.zeros(BINS, np.int64)
    for score, count in counts.items():
        pixels[int(score * BINS)] = count
    return pixels


def test_the_cut_is_otsus_by_definition():
    """The variance between the two sides, from the scores themselves, one threshold after another."""
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.beta(2, 8, 3000), rng.beta(9, 3, 1500)])
    pixels = np.bincount((values * BINS).astype(int), minlength=BINS)
    values = (np.repeat(np.arange(BINS), pixels) + 0.5) / BINS
    found = curve(Scores(pixels, pixels // 2))
    expected = []
    for threshold in found.thresholds:
        low, high = values[values < threshold], values[values >= threshold]
        sides = [len(side) * (side.mean() - values.mean()) ** 2 for side in (low, high) if len(side)]
        expected.append(sum(sides) / len(values) / values.var() if len(sides) == 2 else 0)
    np.testing.assert_allclose(found.separation, expected, atol=1e-9)
    assert found.best == pytest.approx(found.thresholds[np.argmax(expected)])
    assert 0.35 < found.best < 0.6
    shares = [sum((pixels // 2)[: round(t * BINS)]) / len(values) for t in found.thresholds]
    np.testing.assert_allclose(found.background, shares)


def test_two_heaps_are_cut_in_the_middle_of_the_gap_and_one_cannot_be_cut():
    pixels = histogram({0.1: 5, 0.2: 5, 0.7: 6, 0.8: 6})
    assert curve(Scores(pixels, pixels)).best == pytest.approx(0.45, abs=0.01)
    with pytest.raises(CocuError, match="all groups score alike"):
        curve(Scores(histogram({0.4: 9}), histogram({})))


def test_the_curve_tells_how_much_evaluation_makes_background(groupvit):
    """Of pictures that are one window each, at their own size: a threshold at an edge of a bin is exact."""
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)) for _ in range(6)]
    view = View(64, 2048, 64, 64)
    classes = embed_classes(groupvit, ["red fox", "grass", "water"], None)
    counted = score_images(groupvit, classes, images, view, batch_size=4)
    assert counted.pixels.sum() == 6 * 64 * 64
    found = curve(counted)
    seen = set()
    for position in range(9, BINS - 1, 10):
        cut = classes._replace(threshold=float(found.thresholds[position]))
        stream = ((None, *prepare(image, view, 16)) for image in images)
        labels = torch.stack([result.labels for _, result in segment(groupvit, cut, stream, view, 4)])
        assert (labels == 0).double().mean().item() == pytest.approx(found.background[position], abs=1e-9)
        seen.add(found.background[position])
    assert len(seen) > 2


def test_no_mask_is_read_for_the_choice(groupvit, tmp_path, monkeypatch):
    benchmark = read_benchmark(str(worlds.own(tmp_path, 4)), "")
    monkeypatch.setattr("evaluation.evaluate.read_labelled", None)
    monkeypatch.setattr("evaluation.layout.read_labels", None)
    assert 0 < choose_threshold(groupvit, benchmark).best < 1


def test_auto_chooses_reports_the_curve_and_keeps_the_result_of_the_description(
    huggingface, groupvit, tmp_path, capsys
):
    path = worlds.own(tmp_path, 4)
    output = tmp_path / "results.json"
    arguments = worlds.evaluated(huggingface[1], path, output)
    assert main(arguments) == 0
    assert main([*arguments, "--bg-threshold", "auto"]) == 0
    said = capsys.readouterr().out
    document = json.loads(output.read_text())
    result, (before,) = document["benchmarks"]["mine"], document["earlier"]
    best = choose_threshold(groupvit, read_benchmark(str(path), "")).best
    assert f"mine: bg_threshold {best:.3f}, chosen without labels; its description has 0.4" in said
    assert result["config"]["bg_threshold"] == pytest.approx(best)
    assert before["config"]["bg_threshold"] == 0.4 and "bg_threshold_curve" not in before
    rows = result["bg_threshold_curve"]
    assert len(rows) == BINS - 1 and max(rows, key=lambda row: row["separation"])["bg_threshold"] == pytest.approx(
        best, abs=0.1
    )

    assert main([*arguments, "--bg-threshold", "0.4"]) == 0  # a number: the same as the description's
    assert json.loads(output.read_text())["benchmarks"]["mine"]["miou"] == before["miou"]
    with pytest.raises(SystemExit):
        main([*arguments, "--bg-threshold", "2"])
    assert "2 is neither a number from 0 to 1 nor auto" in capsys.readouterr().err


def test_a_benchmark_without_background_has_nothing_to_choose(huggingface, tmp_path, capsys):
    path = worlds.own(tmp_path, 2, background=False, bg_threshold=..., classes=["sky", "red fox", "grass", "water"])
    arguments = ["--checkpoint", str(huggingface[1]), "--benchmarks", str(path), "--output", str(tmp_path / "r.json")]
    assert main([*arguments, "--device", "cpu", "--bg-threshold", "auto"]) == 0
    assert "mine: has no background, so that --bg-threshold does not apply" in capsys.readouterr().out


def test_one_picture_has_a_threshold_of_its_own(huggingface, tmp_path, capsys):
    worlds.photo(tmp_path / "a.png", 3, (90, 70))
    arguments = [
        str(tmp_path / "a.png"),
        "--words",
        "red fox, grass",
        "--checkpoint",
        str(huggingface[1]),
        "--device",
        "cpu",
    ]
    assert segment_main([*arguments, "-o", str(tmp_path / "out.png"), "--threshold", "auto"]) == 0
    assert "chosen by the image" in capsys.readouterr().out
    assert segment_main([*arguments, "-o", str(tmp_path / "out.png"), "--threshold", "1.5"]) == 1
    assert "threshold: 1.5 is not in 0..1" in capsys.readouterr().err
