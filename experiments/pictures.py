"""Images side by side: what two models see, and where each sees what the caption omits (the paper's Figure 3b)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from curation.concepts import concept_key
from evaluation.benchmark import Benchmark
from evaluation.evaluate import view_of
from evaluation.inference import embed_classes, fit, prepare, segment
from evaluation.layout import list_samples, read_sample
from evaluation.pictures import Panel, heat_panel, legend, paint, palette_of, scaled, shown_size, side_by_side
from evaluation.segment import heat
from segmenters.groupvit import GroupViT

COUNT = 3  # images
LEAST = 0.1  # share of an image that the omitted class covers at least, so that there is something to see


class Choice(NamedTuple):
    """An image to show."""

    index: int  # in the order of the benchmark
    caption: str
    omitted: int  # the class that is visible and not in the caption


def choose(benchmark: Benchmark, count: int = COUNT, seed: int = 0) -> list[Choice]:
    """Images at random, of different omitted classes, from those with a caption in ``captions.jsonl`` beside the data.

    Of an image's omitted classes the largest counts. No image is chosen for what a model makes of it.
    """
    captions = read_captions(Path(benchmark.layout.root) / "captions.jsonl")
    samples, chosen = list_samples(benchmark), []
    for index in np.random.default_rng(seed).permutation(len(samples)).tolist():
        if samples[index].name not in captions:
            continue
        caption, mentioned = captions[samples[index].name]
        _, labels = read_sample(samples[index], benchmark)
        areas = np.bincount(labels[labels < len(benchmark.classes)], minlength=len(benchmark.classes)) / labels.size
        for number, name in enumerate(benchmark.classes):
            if concept_key(name) in mentioned or (benchmark.background and number == 0):
                areas[number] = 0
        omitted = int(areas.argmax())
        if areas[omitted] >= LEAST and omitted not in [choice.omitted for choice in chosen]:
            chosen.append(Choice(index, caption, omitted))
        if len(chosen) == count:
            break
    return chosen


def read_captions(path: Path) -> dict[str, tuple[str, set[str]]]:
    """Captions, and the concepts that they mention, by key; empty where there is no such file."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["key"]: (line["caption"], set(map(concept_key, line["mentioned"]))) for line in lines}


def draw(benchmark: Benchmark, choice: Choice, models: Mapping[str, GroupViT]) -> Image.Image:
    """Image and truth, then for each model its segmentation and how well each place fits the omitted class."""
    image, labels = read_sample(list_samples(benchmark)[choice.index], benchmark)
    name = benchmark.classes[choice.omitted]
    found = {title: predict(model, benchmark, image, labels.shape) for title, model in models.items()}
    heats = {title: activation(model, benchmark, image, name) for title, model in models.items()}
    palette = palette_of(len(benchmark.classes), labels, *found.values())
    plain = (0,) if benchmark.background else ()
    size = shown_size(image.size)
    shown = image.resize(size, Image.Resampling.BICUBIC)

    def segmented(title: str, values: np.ndarray) -> Panel:
        names = legend(values, benchmark.classes, palette, plain)
        return Panel(title, paint(shown, scaled(values, size), palette, plain), names)

    panels = [Panel(f"“{choice.caption}”", shown, []), segmented("truth", labels)]
    for title in models:
        panels += [segmented(title, found[title]), _heat_panel(shown, heats[title], f"{title}: {name}")]
    return side_by_side(panels, columns=2)


def predict(model: GroupViT, benchmark: Benchmark, image: Image.Image, shape: Sequence[int]) -> np.ndarray:
    """The class of every pixel, as the benchmark's protocol decides it: (H, W)."""
    view = view_of(benchmark)
    pixels, size = prepare(image, view, model.config.patch_size)
    classes = embed_classes(model, benchmark.words, benchmark.bg_threshold if benchmark.background else None)
    ((_, segmentation),) = segment(model, classes, [(None, pixels, size)], view, 16)
    return fit(segmentation.labels, (shape[0], shape[1])).numpy()


def activation(model: GroupViT, benchmark: Benchmark, image: Image.Image, name: str) -> np.ndarray:
    """Cosine of every place with a class: (h, w), groups shared out by their soft assignment."""
    return heat(model, embed_classes(model, [name], None), image, view_of(benchmark))[0]


def _heat_panel(shown: Image.Image, values: np.ndarray, title: str) -> Panel:
    """Each map has its own colour scale: cosines of two models cannot be compared."""
    return heat_panel(shown, values, (values.min(), values.max()), title)
