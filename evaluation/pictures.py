"""Pictures of segmentations: colours over the image, names beside them."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from evaluation.benchmark import Benchmark
from evaluation.evaluate import Prediction

PANEL = 300  # pixels of a panel's longer side
GAP, LINE, TEXT, SWATCH = 14, 19, 13, 12
NAMES = 9  # lines of a legend
INK, FAINT, PAPER = (30, 30, 30), (120, 120, 120), (255, 255, 255)
DARK, LIGHT = (70, 70, 70), (215, 215, 215)  # swatches of the background, and of what is not evaluated
TINT = 0.68  # how much of a pixel's colour is its class
GOLDEN = 0.61803398875


class Entry(NamedTuple):
    """A line of a legend."""

    colour: tuple[int, int, int] | None  # None: no swatch
    text: str


class Panel(NamedTuple):
    """A picture with a title above and a legend below."""

    title: str
    picture: Image.Image
    legend: list[Entry]


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
    pixels = np.asarray(image.convert("RGB"), np.float32)
    grey = np.repeat(pixels.mean(2, keepdims=True), 3, 2)  # (H, W, 3)
    inside = (labels >= 0) & (labels < len(palette))
    colour = palette[np.where(inside, labels, 0)].astype(np.float32)
    mixed = TINT * colour + (1 - TINT) * grey
    mixed = np.where(np.isin(labels, list(plain))[..., None], 0.55 * grey, mixed)
    mixed = np.where(inside[..., None], mixed, 0.25 * grey + 0.75 * 235)
    return Image.fromarray(mixed.round().astype(np.uint8))


def legend(labels: np.ndarray, names: Sequence[str], palette: np.ndarray, plain: Sequence[int] = ()) -> list[Entry]:
    """The classes in ``labels`` (H, W) by area, with their share of all pixels; the rest of a long list is counted."""
    counts = np.bincount(labels[(labels >= 0) & (labels < len(names))].astype(np.int64), minlength=len(names))
    order = [int(index) for index in np.argsort(-counts, kind="stable") if counts[index]]
    shown = order if len(order) <= NAMES else order[: NAMES - 1]
    entries = [
        Entry(
            DARK if index in plain else tuple(map(int, palette[index])),
            f"{names[index]}  {share(counts[index], labels.size)}",
        )
        for index in shown
    ]
    return entries + ([Entry(None, f"and {len(order) - len(shown)} more")] if len(order) > len(shown) else [])


def share(part: int, whole: int) -> str:
    """A percentage for people."""
    return f"{100 * part / whole:.0f}%" if part >= 0.01 * whole else "<1%"


def comparison(prediction: Prediction, benchmark: Benchmark) -> Image.Image:
    """Image, ground truth, prediction and groups of one image, side by side; dark: background; light: not evaluated."""
    names = benchmark.classes
    palette = palette_of(len(names), prediction.labels, prediction.predicted)
    plain = (0,) if benchmark.background else ()
    size = shown_size(prediction.image.size)
    image = prediction.image.resize(size, Image.Resampling.BICUBIC)
    panels = [Panel(prediction.sample.name, image, [])]
    for title, labels in (("ground truth", prediction.labels), ("prediction", prediction.predicted)):
        picture = paint(image, scaled(labels, size), palette, plain)
        panels.append(Panel(title, picture, legend(labels, names, palette, plain)))
    # What was not evaluated is no class: say what the light grey of the ground truth is.
    if benchmark.ignore_index is not None and (prediction.labels == benchmark.ignore_index).any():
        part = share(int((prediction.labels == benchmark.ignore_index).sum()), prediction.labels.size)
        panels[1].legend.append(Entry(LIGHT, f"not evaluated  {part}"))
    if prediction.groups is not None:
        panels.append(groups_panel(image, prediction.groups))
    return side_by_side(panels)


def groups_panel(image: Image.Image, groups: np.ndarray) -> Panel:
    """The groups (h, w) over the image."""
    count = max(8, int(groups.max()) + 1)
    palette = group_colours(count)
    picture = paint(image, scaled(groups, image.size), palette)
    return Panel("groups", picture, legend(groups, [f"group {index + 1}" for index in range(count)], palette))


def overlay(image: Image.Image, labels: np.ndarray, names: Sequence[str], background: bool) -> Image.Image:
    """The image and its segmentation into words, side by side."""
    palette = palette_of(len(names), labels)
    plain = (0,) if background else ()
    size = shown_size(image.size, 2 * PANEL)
    small = image.resize(size, Image.Resampling.BICUBIC)
    painted = paint(small, scaled(labels, size), palette, plain)
    return side_by_side(
        [Panel("image", small, []), Panel("segmentation", painted, legend(labels, names, palette, plain))]
    )


def heatmaps(image: Image.Image, heat: Mapping[str, np.ndarray]) -> Image.Image:
    """The image, then one panel a word: how well each place fits it; one colour scale for all words."""
    size = shown_size(image.size)
    small = image.resize(size, Image.Resampling.BICUBIC)
    low, high = min(map(np.min, heat.values())), max(map(np.max, heat.values()))
    panels = [heat_panel(small, values, (low, high), word) for word, values in heat.items()]
    return side_by_side([Panel("image", small, []), *panels])


def heat_panel(image: Image.Image, values: np.ndarray, ends: tuple[float, float], title: str) -> Panel:
    """``values`` (h, w) over the image in warm colours; ``ends``: the values of the coldest and of the warmest colour."""
    low, high = ends
    unit = (values - low) / max(high - low, 1e-9)  # (h, w) in 0..1
    field = Image.fromarray((255 * unit).round().astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    colour = warm(np.asarray(field, np.float32) / 255)
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    mixed = np.clip(0.6 * colour + 0.4 * grey, 0, 255).astype(np.uint8)
    return Panel(title, Image.fromarray(mixed), [Entry(None, f"cosine {values.min():.2f} to {values.max():.2f}")])


def warm(unit: np.ndarray) -> np.ndarray:
    """Colours (..., 3), float32 in 0..255, from dark blue over teal and yellow to red, of values in 0..1."""
    stops = np.array([[25, 25, 90], [20, 110, 160], [80, 180, 120], [245, 205, 60], [215, 40, 30]], np.float32)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(unit, places, stops[:, channel]) for channel in range(3)], -1).astype(np.float32)


def shown_size(size: tuple[int, int], longest: int = PANEL) -> tuple[int, int]:
    """Width and height with ``longest`` as the longer side."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``labels`` (H, W) by nearest neighbour at ``size`` (width, height)."""
    rows = (np.arange(size[1]) + 0.5) * labels.shape[0] / size[1]
    columns = (np.arange(size[0]) + 0.5) * labels.shape[1] / size[0]
    return labels[rows.astype(int)][:, columns.astype(int)]


def side_by_side(panels: Sequence[Panel], columns: int = 4) -> Image.Image:
    """The panels in rows of ``columns``, titles above, legends below."""
    width = max(max(panel.picture.width for panel in panels), 160)
    height = max(panel.picture.height for panel in panels)
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [GAP + LINE + height + GAP // 2 + LINE * max(len(panel.legend) for panel in row) for row in rows]
    sheet = Image.new("RGB", (GAP + (GAP + width) * min(columns, len(panels)), sum(heights) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    title, text = ImageFont.load_default(TEXT + 1), ImageFont.load_default(TEXT)
    top = GAP
    for row, tall in zip(rows, heights, strict=True):
        for number, panel in enumerate(row):
            left = GAP + number * (width + GAP)
            draw.text((left, top), shortened(draw, panel.title, title, width), INK, title)
            sheet.paste(panel.picture, (left, top + LINE))
            y = top + LINE + height + GAP // 2
            for entry in panel.legend:
                if entry.colour:
                    draw.rectangle((left, y + 2, left + SWATCH, y + 2 + SWATCH), entry.colour)
                start = left + (SWATCH + 7 if entry.colour else 0)
                words = shortened(draw, entry.text, text, width - (start - left))
                draw.text((start, y), words, INK if entry.colour else FAINT, text)
                y += LINE
        top += tall
    return sheet


def shortened(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont, width: int) -> str:
    """``text``, cut with dots where it is wider than ``width``."""
    while len(text) > 1 and draw.textlength(text, font) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text
