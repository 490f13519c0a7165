"""Pictures of segmentations: colours over the image, names beside them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image

from evaluation.benchmark import Benchmark
from evaluation.evaluate import Prediction
from evaluation.metric import confusion, scores
from evaluation.panels import Entry, Panel, side_by_side

PANEL = 300  # pixels of a panel's longer side
NAMES = 9  # lines of a legend
DARK, LIGHT = (70, 70, 70), (215, 215, 215)  # swatches of the background, and of what is not evaluated
TINT = 0.68  # how much of a pixel's colour is its class
GOLDEN = 0.61803398875


# --- colours ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def colours(count: int) -> np.ndarray:
    """Colours (count, 3), uint8; neighbours differ in hue, and in lightness."""
    tones = [(0.72, 0.95), (0.90, 0.72), (0.50, 0.88)]  # saturation, value
    rows = [colorsys.hsv_to_rgb((0.02 + index * GOLDEN) % 1, *tones[index % 3]) for index in range(count)]
    return np.round(255 * np.array(rows).reshape(count, 3)).astype(np.uint8)


def group_colours(count: int) -> np.ndarray:
    """Colours (count, 3), uint8, evenly around the circle, for groups, which are few."""
    rows = [
        colorsys.hsv_to_rgb(index / count, 0.65 + 0.3 * (index % 2), 0.95 - 0.2 * (index % 2)) for index in range(count)
    ]
    return np.round(255 * np.array(rows).reshape(count, 3)).astype(np.uint8)


def palette_of(count: int, *maps: np.ndarray) -> np.ndarray:
    """Colours (count, 3), uint8, well apart for those of ``count`` labels that occur in ``maps``; grey for the others."""
    present = np.unique(np.concatenate([labels.ravel() for labels in maps]))
    present = present[(present >= 0) & (present < count)]
    palette = np.full((count, 3), 128, np.uint8)
    palette[present] = colours(len(present))
    return palette


def paint(image: Image.Image, labels: np.ndarray, palette: np.ndarray, plain: Sequence[int] = ()) -> Image.Image:
    """``image`` tinted by ``labels`` (H, W) of its size; ``plain`` ones are dark grey, those outside the palette light."""
    pixels = np.asarray(image.convert("RGB"), np.float32)  # (H, W, 3)
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, 2)  # (H, W, 3)
    inside = (labels >= 0) & (labels < len(palette))  # (H, W)
    colour = palette[np.where(inside, labels, 0)].astype(np.float32)  # (H, W, 3)

    mixed = TINT * colour + (1 - TINT) * grey
    mixed = np.where(np.isin(labels, list(plain))[..., None], 0.55 * grey, mixed)
    mixed = np.where(inside[..., None], mixed, 0.25 * grey + 0.75 * 235)
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(labels: np.ndarray, names: Sequence[str], palette: np.ndarray, plain: Sequence[int] = ()) -> list[Entry]:
    """The classes in ``labels`` (H, W) by area, with their share of all pixels; the rest of a long list is counted."""
    inside = labels[(labels >= 0) & (labels < len(names))].astype(np.int64)
    areas = np.bincount(inside, minlength=len(names))
    by_area = [index for index in np.argsort(-areas, kind="stable").tolist() if areas[index]]
    shown = by_area if len(by_area) <= NAMES else by_area[: NAMES - 1]

    entries = []
    for index in shown:
        red, green, blue = DARK if index in plain else palette[index].tolist()
        entries.append(Entry((red, green, blue), f"{names[index]}  {percentage(areas[index], labels.size)}"))
    if len(by_area) > len(shown):
        entries.append(Entry(None, f"and {len(by_area) - len(shown)} more"))
    return entries


def percentage(part: int, whole: int) -> str:
    """A share for people: ``15%``, or ``<1%``."""
    return f"{100 * part / whole:.0f}%" if part >= 0.01 * whole else "<1%"


# --- whole pictures -----------------------------------------------------------------------------------------------------


def comparison(prediction: Prediction, benchmark: Benchmark) -> Image.Image:
    """Image, ground truth, prediction and groups of one image, side by side; dark: background; light: not evaluated."""
    names = benchmark.classes
    palette = palette_of(len(names), prediction.labels, prediction.predicted)
    plain = (0,) if benchmark.background else ()
    size = shown_size(prediction.image.size)
    image = prediction.image.resize(size, Image.Resampling.BICUBIC)

    truth = segmentation_panel("ground truth", image, prediction.labels, names, palette, plain)
    ignored = prediction.labels == benchmark.ignore_index  # (H, W); nowhere without an ignore_index
    if np.any(ignored):
        # What was not evaluated has no class: say what the light grey of the ground truth is.
        truth.legend.append(Entry(LIGHT, f"not evaluated  {percentage(int(ignored.sum()), ignored.size)}"))

    title = (
        f"prediction, mIoU {own_miou(prediction, benchmark):.1f}" if counted(prediction, benchmark) else "prediction"
    )
    predicted = segmentation_panel(title, image, prediction.predicted, names, palette, plain)
    panels = [Panel(prediction.name, image, []), truth, predicted]
    if prediction.groups is not None:
        panels.append(groups_panel(image, prediction.groups))
    return side_by_side(panels)


def counted(prediction: Prediction, benchmark: Benchmark) -> bool:
    """Whether any pixel of an image is evaluated."""
    return bool(np.any(prediction.labels != benchmark.ignore_index))


def own_miou(prediction: Prediction, benchmark: Benchmark) -> float:
    """The mIoU of this image alone, in percent. That of the benchmark is no mean of these."""
    labels, predicted = (torch.from_numpy(values) for values in (prediction.labels, prediction.predicted))
    return scores(confusion(labels, predicted, len(benchmark.classes), benchmark.ignore_index)).miou


def overlay(image: Image.Image, labels: np.ndarray, names: Sequence[str], background: bool) -> Image.Image:
    """The image and its segmentation into words, side by side."""
    palette = palette_of(len(names), labels)
    small = image.resize(shown_size(image.size, 2 * PANEL), Image.Resampling.BICUBIC)
    segmented = segmentation_panel("segmentation", small, labels, names, palette, (0,) if background else ())
    return side_by_side([Panel("image", small, []), segmented])


def heatmaps(image: Image.Image, heat: Mapping[str, np.ndarray], per_word: bool = False) -> Image.Image:
    """The image, then one panel a word: how well each pixel fits it; one colour scale for all words, or one for each."""
    small = image.resize(shown_size(image.size), Image.Resampling.BICUBIC)
    common = min(map(np.min, heat.values())), max(map(np.max, heat.values()))
    panels = [
        heat_panel(small, values, (values.min(), values.max()) if per_word else common, word)
        for word, values in heat.items()
    ]
    return side_by_side([Panel("image", small, []), *panels])


# --- panels -------------------------------------------------------------------------------------------------------------


def segmentation_panel(
    title: str,
    image: Image.Image,
    labels: np.ndarray,
    names: Sequence[str],
    palette: np.ndarray,
    plain: Sequence[int] = (),
) -> Panel:
    """``labels`` (H, W) over the image, with the names of what occurs."""
    painted = paint(image, scaled(labels, image.size), palette, plain)
    return Panel(title, painted, legend(labels, names, palette, plain))


def groups_panel(image: Image.Image, groups: np.ndarray) -> Panel:
    """The groups (h, w) over the image."""
    count = max(8, int(groups.max()) + 1)
    names = [f"group {index + 1}" for index in range(count)]
    return segmentation_panel("groups", image, groups, names, group_colours(count))


def heat_panel(image: Image.Image, values: np.ndarray, ends: tuple[float, float], title: str) -> Panel:
    """``values`` (h, w) over the image in warm colours; ``ends``: the values of the coldest and of the warmest colour."""
    low, high = ends
    unit = (values - low) / max(high - low, 1e-9)  # (h, w) in 0..1
    field = Image.fromarray((255 * unit).round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    colour = warm(np.asarray(field, np.float32) / 255)  # (H, W, 3)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]  # (H, W, 1)
    mixed = np.clip(0.6 * colour + 0.4 * grey, 0, 255).astype(np.uint8)
    return Panel(title, Image.fromarray(mixed), [colour_bar(low, high), extent(values)])


def colour_bar(low: float, high: float) -> Entry:
    """The colours of heat from left to right, with the cosines at both ends."""
    shades = np.clip(0.6 * warm(np.linspace(0, 1, 64)) + 0.4 * 128, 0, 255).astype(int)  # over a grey of 128
    return Entry(None, f"{low:.3f} to {high:.3f}", [(red, green, blue) for red, green, blue in shades.tolist()])


def extent(values: np.ndarray) -> Entry:
    """The smallest and the largest cosine of a word."""
    return Entry(None, f"cosine {values.min():.3f} to {values.max():.3f}")


def warm(unit: np.ndarray) -> np.ndarray:
    """Colours (..., 3), float32 in 0..255, from dark blue over teal and yellow to red, of values in 0..1."""
    stops = np.array([[25, 25, 90], [20, 110, 160], [80, 180, 120], [245, 205, 60], [215, 40, 30]], np.float32)
    positions = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(unit, positions, stops[:, channel]) for channel in range(3)], -1).astype(np.float32)


def shown_size(size: tuple[int, int], longest: int = PANEL) -> tuple[int, int]:
    """Width and height with ``longest`` as the longer side."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``labels`` (H, W) by nearest neighbour at ``size`` (width, height)."""
    rows = (np.arange(size[1]) + 0.5) * labels.shape[0] / size[1]
    columns = (np.arange(size[0]) + 0.5) * labels.shape[1] / size[0]
    return labels[rows.astype(int)][:, columns.astype(int)]
