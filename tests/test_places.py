"""Decoding of places against a slow transcription: scores resized, averaged over windows, the best class wins."""

from __future__ import annotations

import json

import benchmark_worlds as worlds
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import save_clip, tiny_clip
from torch.nn import functional as F

from evaluation.__main__ import main
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import evaluate
from evaluation.inference import View, embed_classes, segment
from evaluation.places import decide_places, place_scores
from evaluation.segment import main as segment_main
from evaluation.windows import boxes
from segmenters.opening import open_segmenter


def bilinear(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w) at (height, width), pixel by pixel, as align_corners=False has it."""
    resized = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            down = min(max((y + 0.5) * grid.shape[0] / height - 0.5, 0), grid.shape[0] - 1)
            across = min(max((x + 0.5) * grid.shape[1] / width - 0.5, 0), grid.shape[1] - 1)
            top, left = int(down), int(across)
            bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
            upper = grid[top, left] * (1 - across + left) + grid[top, right] * (across - left)
            lower = grid[bottom, left] * (1 - across + left) + grid[bottom, right] * (across - left)
            resized[y, x] = upper * (1 - down + top) + lower * (down - top)
    return resized


@pytest.mark.parametrize("size", [(30, 44), (41, 61)])
@pytest.mark.parametrize("chunk", [1 << 22, 1])
def test_windows_are_averaged_and_the_best_class_wins(size, chunk, monkeypatch):
    monkeypatch.setattr("evaluation.places.CHUNK", chunk)
    windows = boxes(30, 44, crop=24, stride=16)
    scores = [torch.from_numpy(np.random.default_rng(index).normal(size=(5, 3, 3))) for index in range(len(windows))]
    total, coverage = np.zeros((5, 30, 44)), np.zeros((30, 44))
    for box, window in zip(windows, scores, strict=True):
        for label in range(5):
            total[label, box.top : box.bottom, box.left : box.right] += bilinear(window[label].numpy(), 24, 24)
        coverage[box.top : box.bottom, box.left : box.right] += 1
    expected = np.stack([bilinear(plane / coverage, *size) for plane in total]).argmax(0)
    np.testing.assert_array_equal(decide_places(windows, [s.float() for s in scores], size).numpy(), expected)


@pytest.mark.parametrize("threshold", [None, 0.6, 0.9])
def test_scores_are_cosines_and_the_background_is_where_none_fits(threshold):
    generator = np.random.default_rng(2)
    places, text = generator.normal(size=(2, 4, 2, 3)), generator.normal(size=(5, 4))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    found = place_scores(torch.from_numpy(places), torch.from_numpy(text).float(), 5.0, threshold).numpy()
    background = 0
    for image in range(2):
        expected = {}
        for y in range(2):
            for x in range(3):
                place = places[image, :, y, x] / np.linalg.norm(places[image, :, y, x])
                logits = np.array([5 * place @ row for row in text])
                expected[y, x] = logits if threshold is None else np.exp(logits) / np.exp(logits).sum()
        highest = max(row.max() for row in expected.values())
        for (y, x), row in expected.items():
            if threshold is not None:
                bare = row.max() < min(threshold, highest)
                row = np.array([float(bare), *row])
                background += bare
            np.testing.assert_allclose(found[image, :, y, x], row, rtol=1e-5, atol=1e-6)
    assert threshold is None or 0 < background < 12


def test_streams_of_images_give_what_one_image_gives():
    model = tiny_clip("timm", stride=16)
    names = ["fox", "grass", "sky"]
    classes = embed_classes(model, names, None)
    images = [(index, torch.randn(3, 64, 64 + 32 * (index % 2)), (50, 70)) for index in range(5)]
    labels = {item: result.labels for item, result in segment(model, classes, images, View(64, 2048, 64, 32), 3)}
    text = F.normalize(model.encode_text(model.tokenize([f"a photo of a {name}." for name in names])), dim=-1)
    for index, pixels, size in images:
        total, coverage = torch.zeros(3, *pixels.shape[1:]), torch.zeros(pixels.shape[1:])
        for left in range(0, pixels.shape[2] - 63, 32):
            features = F.normalize(model.encode_places(pixels[None, :, :, left : left + 64]), dim=1)
            window = torch.einsum("bdhw,cd->bchw", features, text)
            total[:, :, left : left + 64] += F.interpolate(window, size=(64, 64), mode="bilinear")[0]
            coverage[:, left : left + 64] += 1
        expected = F.interpolate((total / coverage)[None], size=size, mode="bilinear")[0].argmax(0)
        assert (labels[index] == expected).float().mean() > 0.999


def test_an_untrained_clip_is_a_checkpoint_of_the_command_line(tmp_path, capsys):
    folder = save_clip(tiny_clip("transformer"), tmp_path / "clip")
    worlds.voc(tmp_path / "data")
    arguments = ["--checkpoint", f"local-dir:{folder}", "--benchmarks", "voc", "--data-root", str(tmp_path / "data")]
    assert main([*arguments, "--output", str(tmp_path / "results.json"), "--visualize", "1"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["checkpoint"]["kind"] == "open_clip"
    benchmark = read_benchmark("voc", str(tmp_path / "data"))
    expected = evaluate(open_segmenter(folder).model, benchmark).scores.miou
    assert results["benchmarks"]["voc"]["miou"] == pytest.approx(expected, abs=1e-5)

    image = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(image)
    name = f"local-dir:{folder}@sclip"
    arguments = [str(image), "--words", "fox, grass", "--checkpoint", name, "-o", str(tmp_path / "b.png")]
    assert segment_main(arguments) == 0
    assert segment_main([*arguments, "--heatmap"]) == 0
    assert (tmp_path / "b.png").exists()
