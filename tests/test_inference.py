"""Inference against a slow literal transcription of the protocol on Hugging Face's model, and its parts."""

from __future__ import annotations

import math
import tracemalloc

import benchmark_worlds as worlds
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from evaluation import inference
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import evaluate, view_of
from evaluation.inference import View, embed_classes, group_scores, pixel_groups, prepare, segment
from evaluation.windows import Box, Regions, boxes, decide, resized, starts, stitch, votes
from segmenters.groupvit import GroupEncoding
from segmenters.text import tokenize

NAMES = ["red fox", "grass", "water", "sky", "house", "dog", "traffic light", "sand"]


@torch.no_grad()
def literal(model, image: Image.Image, names: list[str], view: View, threshold: float | None) -> torch.Tensor:
    """Scores (C, H, W) of an image, transcribed from the protocol sentence by sentence, with Hugging Face's model."""
    # "Images over 1,000,000 pixels are first shrunk to 1000 px on the long side."
    pixels = torch.tensor(np.array(image), dtype=torch.float32).permute(2, 0, 1)[None]
    height, width = pixels.shape[2:]
    if view.shrink_above and height * width > view.shrink_above:
        factor = view.shrink_long / max(height, width)
        height, width = int(height * factor + 0.5), int(width * factor + 0.5)
        pixels = F.interpolate(pixels, size=(height, width), mode="bilinear", align_corners=False)
    # "Resize: bilinear, keep ratio, scale = min(long_max / max(h, w), short / min(h, w)). ImageNet mean and std."
    scale = min(view.long_max / max(height, width), view.short / min(height, width))
    h, w = int(height * scale + 0.5), int(width * scale + 0.5)
    pixels = F.interpolate(pixels, size=(h, w), mode="bilinear", align_corners=False)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    # "Class embeddings: 'a photo of a {name}.' only; then L2-normalised."
    texts = []
    for name in names:
        tokens = tokenize([f"a photo of a {name}."])
        feature = model.text_projection(model.text_model(input_ids=tokens).pooler_output)[0]
        texts.append(feature / feature.norm())
    # "ceil(max(H - crop, 0) / stride) + 1 windows per axis, the last one shifted back inside"
    total = torch.zeros(len(names) + (threshold is not None), h, w)
    coverage = torch.zeros(h, w)
    for row in range(math.ceil(max(h - view.crop, 0) / view.stride) + 1):
        for column in range(math.ceil(max(w - view.crop, 0) / view.stride) + 1):
            bottom, right = min(row * view.stride + view.crop, h), min(column * view.stride + view.crop, w)
            top, left = max(bottom - view.crop, 0), max(right - view.crop, 0)
            window = literal_window(model, pixels[:, :, top:bottom, left:right], torch.stack(texts), threshold)
            total[:, top:bottom, left:right] += window
            coverage[top:bottom, left:right] += 1
    # "Window scores are summed, divided by coverage, resized bilinearly (align_corners=False) to the original size"
    return F.interpolate((total / coverage)[None], size=(height, width), mode="bilinear", align_corners=False)[0]


def literal_window(model, pixels: torch.Tensor, texts: torch.Tensor, threshold: float | None) -> torch.Tensor:
    tower = model.vision_model
    encoded = tower.encoder(
        hidden_states=tower.embeddings(pixels, interpolate_pos_encoding=True), output_attentions=True
    )
    segments = tower.layernorm(encoded[0])
    first, second = (attention[0] for attention in encoded.attentions if attention is not None)
    h, w = pixels.shape[2:]
    # "the soft assignment maps of both grouping stages are multiplied, resized bilinearly to the window, argmax over the
    # groups gives each pixel its group"
    maps = (second @ first).reshape(1, len(second), h // 16, w // 16)
    maps = F.interpolate(maps, size=(h, w), mode="bilinear", align_corners=False)[0]
    group = maps.argmax(0)
    # "A = logit scale x cosine(group, class); P = softmax(A) over classes"
    features = model.visual_projection(segments[0])
    features = features / features.norm(dim=1, keepdim=True)
    logits = model.logit_scale.exp() * features @ texts.T
    p = logits.softmax(1)
    # "The 5 best classes by softmax of the window's average image feature are kept, the others masked to -inf"
    average = model.visual_projection(segments.mean(1))[0]
    order = (model.logit_scale.exp() * (average / average.norm()) @ texts.T).softmax(0).argsort(descending=True)
    masked = torch.full_like(logits, -torch.inf)
    masked[:, order[:5]] = logits[:, order[:5]]
    q = masked.softmax(1)
    # "A pixel's score for a class is (P x Q) of its group"
    scores = (p * q)[group].permute(2, 0, 1)
    if threshold is None:
        return scores
    # "t = min(threshold, the window's highest score); a pixel whose best score is below t gets background score 1 (its
    # foreground scores stay)"; the highest of all groups
    t = min(threshold, (p * q).max())
    background = (scores.amax(0) < t).float()
    return torch.cat([background[None], scores])


def random_image(size: tuple[int, int], seed: int = 0) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


VIEWS = [
    ((90, 64), View(64, 2048, 64, 32)),  # a row of windows, larger than the image
    ((130, 201), View(144, 160, 64, 48)),  # the long side limits; several rows and columns, the last shifted back
    ((100, 40), View(48, 2048, 64, 32)),  # smaller than the crop in one direction
    ((60, 60), View(50, 2048, 64, 64)),  # smaller in both, not a multiple of the patch
    ((300, 200), View(96, 2048, 96, 80, 40000, 220)),  # shrunk first
    ((100, 90), View(80, 2048, 64, 10)),  # a dozen windows over one pixel
]


@pytest.mark.parametrize("threshold", [None, 0.01, 0.35, 0.99])
@pytest.mark.parametrize(("size", "view"), VIEWS)
def test_scores_and_labels_equal_the_literal_protocols(huggingface, groupvit, size, view, threshold, monkeypatch):
    image = random_image(size)
    expected = literal(huggingface[0], image, NAMES, view, threshold)
    classes = embed_classes(groupvit, NAMES, threshold)
    pixels, target = prepare(image, view, 16)
    kept = []
    monkeypatch.setattr(inference, "decide", lambda regions, size: kept.append(regions) or decide(regions, size))
    ((item, segmentation),) = segment(groupvit, classes, [("x", pixels, target)], view, 4, with_groups=True)
    assert item == "x"
    assert segmentation.labels.shape == expected.shape[1:]
    dense = kept[0].scores[kept[0].ids].permute(2, 0, 1)[None]  # (1, C, h, w)
    scores = F.interpolate(dense, size=target, mode="bilinear", align_corners=False)[0]
    assert ((scores - expected).abs().amax(0) < 1e-4).float().mean() > 0.999  # a pixel may lie between two groups
    # Where scores tie, either class is right.
    at_ours = expected.gather(0, segmentation.labels[None])[0]
    assert (expected.amax(0) - at_ours).max() < 1e-5
    assert (segmentation.labels == expected.argmax(0)).float().mean() > 0.999
    assert segmentation.groups.shape == pixels.shape[1:]


def test_the_literal_comparison_has_something_to_compare(huggingface, groupvit):
    assert len(literal(huggingface[0], random_image((130, 201)), NAMES, VIEWS[1][1], None).argmax(0).unique()) >= 2
    labels = literal(huggingface[0], random_image((130, 201)), NAMES, VIEWS[1][1], 0.35).argmax(0)
    assert 0 < (labels == 0).float().mean() < 1
    groups = pixel_groups(groupvit.encode_groups(torch.randn(4, 3, 96, 96)), (96, 96))
    assert len(groups.unique()) >= 2


SLIDING = View(80, 2048, 64, 32)


@pytest.fixture(scope="module")
def one_by_one(groupvit) -> tuple[list, dict[int, torch.Tensor]]:
    """Five prepared images, and their labels when each is segmented by itself, a window at a time."""
    sizes = [(120, 80), (64, 64), (80, 120), (500, 40), (120, 80)]
    images = [random_image(size, seed) for seed, size in enumerate(sizes)]
    prepared = [(number, *prepare(image, SLIDING, 16)) for number, image in enumerate(images)]
    classes = embed_classes(groupvit, NAMES, 0.4)
    return prepared, {n: s.labels for one in prepared for n, s in segment(groupvit, classes, [one], SLIDING, 1)}


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_any_batching_gives_the_same_labels_and_each_window_is_encoded_once(
    groupvit, one_by_one, batch_size, monkeypatch
):
    prepared, alone = one_by_one
    classes = embed_classes(groupvit, NAMES, 0.4)
    calls = []
    encode = type(groupvit).encode_groups
    monkeypatch.setattr(type(groupvit), "encode_groups", lambda self, x: calls.append(len(x)) or encode(self, x))
    together = {n: s.labels for n, s in segment(groupvit, classes, iter(prepared), SLIDING, batch_size)}
    windows = sum(len(boxes(*pixels.shape[1:], 64, 32)) for _, pixels, _ in prepared)
    assert sum(calls) == windows
    assert max(calls) <= batch_size
    assert len(calls) <= math.ceil(windows / batch_size) + 2  # windows of all images fill the batches
    assert sorted(together) == sorted(alone) == list(range(5))
    for number in alone:
        assert (alone[number] == together[number]).float().mean() > 0.999


def test_many_rare_shapes_do_not_pile_up(groupvit):
    view = View(2048, 64, 64, 32)  # the long side is 64: every ratio gives another shape
    seen = []

    def images():
        for number in range(30):
            seen.append(number)
            yield number, *prepare(random_image((64, 20 + number)), view, 16)

    classes = embed_classes(groupvit, NAMES, None)
    behind = [len(seen) - done for done, _ in enumerate(segment(groupvit, classes, images(), view, 2), 1)]
    assert len(behind) == 30
    assert max(behind) <= 17


def test_a_single_class_and_fewer_than_five_work(groupvit):
    for names in (NAMES[:1], NAMES[:3]):
        classes = embed_classes(groupvit, names, None)
        encoding = groupvit.encode_groups(torch.randn(2, 3, 64, 64))
        scores = group_scores(encoding, classes, groupvit.scale)
        assert scores.shape == (2, 4, len(names))
        assert scores.isfinite().all()


def test_class_embeddings_do_not_depend_on_the_number_of_classes(groupvit, monkeypatch):
    monkeypatch.setattr(inference, "TEXTS", 3)
    parts = embed_classes(groupvit, NAMES, None).text
    monkeypatch.setattr(inference, "TEXTS", 256)
    torch.testing.assert_close(parts, embed_classes(groupvit, NAMES, None).text)
    torch.testing.assert_close(parts.norm(dim=1), torch.ones(len(NAMES)))


def test_class_embeddings_are_computed_once_a_benchmark(groupvit, tmp_path, monkeypatch):
    calls = []
    encode = type(groupvit).encode_text
    monkeypatch.setattr(type(groupvit), "encode_text", lambda self, x: calls.append(len(x)) or encode(self, x))
    evaluate(groupvit, read_benchmark(str(worlds.own(tmp_path)), ""), batch_size=2)
    assert calls == [3]


def test_the_background_rule_on_numbers():
    class Fixed(GroupEncoding):
        pass

    # Two groups, two classes; the text features are the axes, so cosines are the features' components.
    groups = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]])
    encoding = Fixed(groups, torch.tensor([[1.0, 0.2]]), (), (1, 1))
    text, scale = torch.eye(2), torch.tensor(2.0)
    p = (2 * groups[0]).softmax(1)
    best = (p * p).amax(1)  # with two classes nothing is masked: Q = P
    assert best[0] > best[1]
    for threshold in (0.0, best[1].item() - 1e-3, best[1].item() + 1e-3, 0.99):
        scores = group_scores(encoding, inference.Classes(text, threshold), scale)[0]
        torch.testing.assert_close(scores[:, 1:], p * p)  # foreground scores stay
        # The group with the window's highest score is never background.
        assert scores[:, 0].tolist() == [0.0, float(best[1] < min(threshold, best[0].item()))]


# --- windows ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(1, 200), st.integers(1, 200))
def test_windows_cover_everything_and_stay_inside(length, crop, stride):
    stride = min(stride, crop)
    begins = starts(length, crop, stride)
    assert len(begins) == math.ceil(max(length - crop, 0) / stride) + 1
    covered = {position for begin in begins for position in range(begin, begin + min(crop, length))}
    assert covered == set(range(length))
    assert begins == sorted(begins)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((300, 500), (448, 747)), ((500, 300), (747, 448)), ((100, 1000), (205, 2048)), ((448, 448), (448, 448))],
)
def test_resizing_keeps_the_ratio(size, expected):
    assert resized(*size, 448, 2048) == expected


def test_resizing_never_gets_below_a_patch():
    assert resized(10, 5000, 448, 2048, smallest=16) == (16, 2048)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_stitching_and_deciding_equal_dense_computation(data):
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    crop = data.draw(st.integers(3, 30))
    stride = data.draw(st.integers(max(1, crop // 4), crop))
    size = data.draw(st.sampled_from([(height, width), (2 * height + 1, width), (max(1, height // 2), 3 * width)]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    windows = boxes(height, width, crop, stride)
    groups, scores = [], []
    dense, cover = torch.zeros(5, height, width), torch.zeros(height, width)
    for box in windows:
        tall, wide = box.bottom - box.top, box.right - box.left
        coarse = torch.randint(0, 3, (1, 1, 2, 2), generator=generator).float()
        groups.append(F.interpolate(coarse, size=(tall, wide), mode="nearest")[0, 0].to(torch.uint8))
        scores.append(torch.rand(3, 5, generator=generator))
        dense[:, box.top : box.bottom, box.left : box.right] += scores[-1][groups[-1].long()].permute(2, 0, 1)
        cover[box.top : box.bottom, box.left : box.right] += 1
    regions = stitch(windows, groups, scores)
    torch.testing.assert_close(regions.scores[regions.ids].permute(2, 0, 1), dense / cover)
    final = F.interpolate((dense / cover)[None], size=size, mode="bilinear", align_corners=False)[0]
    labels = decide(regions, size)
    assert labels.shape == size
    assert (final.amax(0) - final.gather(0, labels[None])[0]).max() < 1e-5


def test_the_table_of_scores_has_one_row_a_combination_that_occurs():
    windows = [Box(0, 0, 4, 4), Box(0, 2, 4, 6)]
    groups = [torch.zeros(4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.uint8)]
    regions = stitch(windows, groups, [torch.rand(8, 171), torch.rand(8, 171)])
    assert regions.scores.shape == (3, 171)


def test_deciding_on_a_large_image_needs_no_map_a_class():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50, (8, 16), generator=generator).repeat_interleave(32, 0).repeat_interleave(32, 1)
    regions = Regions(ids, torch.rand(50, 171, generator=generator))
    tracemalloc.start()
    labels = decide(regions, (1024, 2048))
    tracemalloc.stop()
    assert labels.shape == (1024, 2048)  # the memory itself is measured by benchmarks/evaluation_speed.py


def test_votes_give_each_pixel_its_most_frequent_group():
    windows = [Box(0, 0, 2, 3), Box(0, 1, 2, 4), Box(0, 1, 2, 4)]
    groups = [torch.full((2, 3), value, dtype=torch.uint8) for value in (5, 2, 2)]
    assert votes(windows, groups, 8).tolist() == [[5, 2, 2, 2]] * 2


def test_votes_of_more_windows_than_a_byte_counts():
    windows = [Box(0, 0, 1, 1)] * 257
    groups = [torch.full((1, 1), value, dtype=torch.uint8) for value in [3] * 256 + [1]]
    assert votes(windows, groups, 8).tolist() == [[3]]


def test_the_view_is_the_benchmarks(tmp_path):
    view = view_of(read_benchmark("imagenet_s_50", str(tmp_path)))
    assert view == View(448, 2048, 448, 224, 1_000_000, 1000)
    _, size = prepare(random_image((1200, 900)), view, 16)
    assert size == (750, 1000)
    _, size = prepare(random_image((1000, 1000)), view, 16)
    assert size == (1000, 1000)
