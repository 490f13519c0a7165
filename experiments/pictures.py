"""Images side by side: what two models see, and where each sees what the caption omits (the paper's Figure 3b)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from curation.concepts import concept_key
from evaluation.benchmark import Benchmark
from evaluation.evaluate import embed_words, view_of
from evaluation.inference import embed_classes, prepare, resize_labels, segment
from evaluation.layout import list_images, read_labelled
from evaluation.panels import Panel, side_by_side
from evaluation.pictures import heat_panel, palette_of, segmentation_panel, shown_size
from evaluation.segment import heat
from segmenters.opening import Segmenter

COUNT = 3  # images
LEAST = 0.1  # share of an image that the omitted class covers at least, so that there is something to see


@dataclass(frozen=True)
class Example:
    """An image to show."""

    index: int  # in the order of the benchmark
    caption: str
    omitted: int  # the class that is visible and not in the caption


def choose_examples(benchmark: Benchmark, count: int = COUNT, seed: int = 0) -> list[Example]:
    """Images at random, of different omitted classes, from those with a caption in ``captions.jsonl`` beside the data.

    Of an image's omitted classes the largest is taken. No image is chosen for what a model makes of it.
    """
    captions = read_captions(Path(benchmark.layout.root) / "captions.jsonl")
    images = list_images(benchmark)
    examples: list[Example] = []
    for index in np.random.default_rng(seed).permutation(len(images)).tolist():
        if images[index].name not in captions:
            continue
        caption, mentioned = captions[images[index].name]
        _, labels = read_labelled(images[index], benchmark)
        areas = _omitted_areas(benchmark, labels, mentioned)  # (C,)
        omitted = int(areas.argmax())
        if areas[omitted] >= LEAST and omitted not in [example.omitted for example in examples]:
            examples.append(Example(index, caption, omitted))
        if len(examples) == count:
            break
    return examples


def _omitted_areas(benchmark: Benchmark, labels: np.ndarray, mentioned: set[tuple[str, ...]]) -> np.ndarray:
    """Share (C,) of the image that each class covers; 0 for the background and for what the caption mentions."""
    count = len(benchmark.classes)
    areas = np.bincount(labels[labels < count], minlength=count) / labels.size
    for number, name in enumerate(benchmark.classes):
        if concept_key(name) in mentioned or (benchmark.background and number == 0):
            areas[number] = 0
    return areas


def read_captions(path: Path) -> dict[str, tuple[str, set[tuple[str, ...]]]]:
    """Captions, and the concepts that they mention, by key; empty where there is no such file."""
    if not path.exists():
        return {}
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["key"]: (line["caption"], set(map(concept_key, line["mentioned"]))) for line in lines}


def write_pictures(benchmark: Benchmark, models: Mapping[str, Segmenter], folder: Path) -> list[str]:
    """Some images with what the models see, into ``folder``; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, example in enumerate(choose_examples(benchmark), 1):
        path = str(folder / f"{number}.png")
        draw(benchmark, example, models).save(path)
        paths.append(path)
    return paths


def draw(benchmark: Benchmark, example: Example, models: Mapping[str, Segmenter]) -> Image.Image:
    """Image and truth, then for each model its segmentation and how well each pixel fits the omitted class."""
    image, labels = read_labelled(list_images(benchmark)[example.index], benchmark)
    predictions = {title: predict(model, benchmark, image, labels.shape) for title, model in models.items()}
    palette = palette_of(len(benchmark.classes), labels, *predictions.values())
    plain = (0,) if benchmark.background else ()
    shown = image.resize(shown_size(image.size), Image.Resampling.BICUBIC)

    def segmented(title: str, values: np.ndarray) -> Panel:
        return segmentation_panel(title, shown, values, benchmark.classes, palette, plain)

    name = benchmark.classes[example.omitted]
    panels = [Panel(f"“{example.caption}”", shown, []), segmented("truth", labels)]
    for title, model in models.items():
        values = activation(model, benchmark, image, name)
        # Each map has its own colour scale: cosines of two models cannot be compared.
        heat_map = heat_panel(shown, values, (values.min(), values.max()), f"{title}: {name}")
        panels += [segmented(title, predictions[title]), heat_map]
    return side_by_side(panels, columns=2)


def predict(model: Segmenter, benchmark: Benchmark, image: Image.Image, shape: Sequence[int]) -> np.ndarray:
    """The class of every pixel, as the benchmark's protocol decides it: (H, W)."""
    view = view_of(benchmark)
    pixels, size = prepare(image, view, model.smallest)
    ((_, segmentation),) = segment(model, embed_words(model, benchmark), [(None, pixels, size)], view, 16)
    return resize_labels(segmentation.labels, (shape[0], shape[1])).numpy()


def activation(model: Segmenter, benchmark: Benchmark, image: Image.Image, name: str) -> np.ndarray:
    """Cosine of every pixel with a class: (h, w), groups shared out by their soft assignment."""
    return heat(model, embed_classes(model, [name], None), image, view_of(benchmark))[0]
