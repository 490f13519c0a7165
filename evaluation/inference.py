"""Zero-shot segmentation with GroupViT: which group a pixel belongs to, and how well each group fits each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from evaluation.windows import CHUNK, Box, Regions, boxes, decide, resize, resized, stitch, votes
from segmenters.groupvit import MEAN, STD, GroupEncoding, GroupViT
from segmenters.text import tokenize

PROMPT = "a photo of a {}."
KEPT = 5  # classes that a window may contain
TEXTS = 256  # prompts in one forward pass


@dataclass(frozen=True)
class View:
    """At what size an image is looked at, and in which windows."""

    short: int
    long_max: int
    crop: int
    stride: int
    shrink_above: int | None = None  # images of more pixels are shrunk first ...
    shrink_long: int | None = None  # ... to this many on the long side


class Classes(NamedTuple):
    """What is looked for: computed once, used for every image."""

    text: Tensor  # (C, D) float32, unit norm; without the background
    threshold: float | None  # of the background; None: there is no background


class Segmentation(NamedTuple):
    """The result for one image."""

    labels: Tensor  # (H, W) int64, at the image's size, or smaller where the view shrinks large images
    groups: Tensor | None  # (h, w) uint8, at the size of the windows, where asked for


@torch.no_grad()
def embed_classes(model: GroupViT, names: Sequence[str], threshold: float | None) -> Classes:
    """Text features of "a photo of a NAME.", unit norm; ``names`` without the background."""
    device = model.logit_scale.device
    parts = []
    for start in range(0, len(names), TEXTS):
        texts = [PROMPT.format(name) for name in names[start : start + TEXTS]]
        parts.append(model.encode_text(tokenize(texts, model.config.text_context).to(device)))
    return Classes(F.normalize(torch.cat(parts).float(), dim=-1), threshold)


def pixel_groups(encoding: GroupEncoding, size: tuple[int, int]) -> Tensor:
    """The group of every pixel (B, H, W), uint8: soft assignments multiplied, resized bilinearly to ``size``, argmax."""
    masks = encoding.masks()  # (B, G, h, w)
    step = max(1, 4 * CHUNK // (masks.shape[1] * size[0] * size[1]))
    parts = [
        # max, since argmax over any dimension but the last takes five times as long on a CPU
        F.interpolate(part, size=size, mode="bilinear", align_corners=False).max(1).indices.to(torch.uint8)
        for part in masks.split(step)
    ]
    return torch.cat(parts)


def group_scores(encoding: GroupEncoding, classes: Classes, scale: Tensor) -> Tensor:
    """Scores (B, G, C) of each window's groups; with background (B, G, 1 + C), the background first.

    A window's highest score is that of all its groups, whether they have pixels or not.
    """
    features = F.normalize(encoding.groups.float(), dim=-1)  # (B, G, D)
    image = F.normalize(encoding.image.float(), dim=-1)  # (B, D)
    logits = scale * features @ classes.text.T  # A: (B, G, C)
    likely = (scale * image @ classes.text.T).softmax(-1)  # (B, C)
    kept = likely.topk(min(KEPT, likely.shape[1]), dim=-1).indices  # (B, 5)
    mask = torch.full_like(likely, float("-inf")).scatter(1, kept, 0.0)  # (B, C): 0 or -inf
    scores = logits.softmax(-1) * (logits + mask[:, None]).softmax(-1)  # P x Q: (B, G, C)
    if classes.threshold is None:
        return scores
    best = scores.amax(-1)  # (B, G)
    highest = best.amax(1, keepdim=True)  # (B, 1)
    background = best < highest.clamp(max=classes.threshold)  # (B, G)
    return torch.cat([background[..., None].to(scores.dtype), scores], -1)  # foreground scores stay


def prepare(image: Image.Image, view: View, least: int) -> tuple[Tensor, tuple[int, int]]:
    """The normalised image (3, H, W), float32, at the size of ``view``, and the size at which labels are decided."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()  # (3, height, width)
    height, width = pixels.shape[1:]
    if view.shrink_above and height * width > view.shrink_above:
        height, width = resized(height, width, max(height, width), view.shrink_long)
        pixels = resize(pixels, (height, width))
    pixels = resize(pixels, resized(height, width, view.short, view.long_max, least))
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std, (height, width)


@dataclass
class Looking:
    """An image of which some windows have been encoded."""

    item: Any
    pixels: Tensor  # (3, H, W)
    size: tuple[int, int]
    places: list[Box]
    groups: dict[int, Tensor] = field(default_factory=dict)  # window: (h, w) uint8
    scores: dict[int, Tensor] = field(default_factory=dict)  # window: (G, C)


@torch.inference_mode()
def segment(
    model: GroupViT,
    classes: Classes,
    images: Iterable[tuple[Any, Tensor, tuple[int, int]]],
    view: View,
    batch_size: int,
    with_groups: bool = False,
) -> Iterator[tuple[Any, Segmentation]]:
    """Segment a stream of (anything, prepared image (3, H, W), size): yields (the same thing, Segmentation), soon after.

    Windows of one shape are encoded together, up to ``batch_size``, whichever images they come from, and each once. An
    image is yielded when its last window is; so those of a rare shape may come later than their successors.
    """
    waiting: dict[tuple[int, int], list[tuple[Looking, int]]] = {}  # shape of window: windows, oldest first
    for item, pixels, size in images:
        height, width = pixels.shape[1:]
        looking = Looking(item, pixels, size, boxes(height, width, view.crop, view.stride))
        shape = min(view.crop, height), min(view.crop, width)
        queue = waiting.setdefault(shape, [])
        queue += [(looking, number) for number in range(len(looking.places))]
        while len(queue) >= batch_size:
            yield from encode(model, classes, [queue.pop(0) for _ in range(batch_size)], with_groups)
        while sum(map(len, waiting.values())) > 8 * batch_size:  # many rare shapes: do not hold all their images
            queue = waiting.pop(next(iter(waiting)))
            yield from encode(model, classes, queue, with_groups)
    for queue in waiting.values():
        if queue:
            yield from encode(model, classes, queue, with_groups)


def encode(
    model: GroupViT, classes: Classes, windows: list[tuple[Looking, int]], with_groups: bool
) -> Iterator[tuple[Any, Segmentation]]:
    """Encode windows of one shape; yields the images that these complete."""
    cut = [looking.pixels[:, box.top : box.bottom, box.left : box.right] for looking, box in places_of(windows)]
    pixels = torch.stack(cut).to(model.logit_scale.device, non_blocking=True)  # (B, 3, h, w)
    encoding = model.encode_groups(pixels)
    groups = pixel_groups(encoding, pixels.shape[2:])  # (B, h, w)
    scores = group_scores(encoding, classes, model.scale)  # (B, G, C)
    for (looking, number), group, score in zip(windows, groups, scores, strict=True):
        looking.groups[number], looking.scores[number] = group, score
        if len(looking.groups) == len(looking.places):
            yield looking.item, finish(looking, with_groups)


def places_of(windows: list[tuple[Looking, int]]) -> Iterator[tuple[Looking, Box]]:
    """The box of each window."""
    return ((looking, looking.places[number]) for looking, number in windows)


def finish(looking: Looking, with_groups: bool) -> Segmentation:
    """Put the windows of an image together."""
    order = range(len(looking.places))
    groups, scores = [looking.groups[number] for number in order], [looking.scores[number] for number in order]
    regions: Regions = stitch(looking.places, groups, scores)
    shown = votes(looking.places, groups, len(scores[0])) if with_groups else None
    return Segmentation(decide(regions, looking.size), shown)


def fit(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """``labels`` (H, W) resized to ``size`` by nearest neighbour; as they are when the size is right."""
    if tuple(labels.shape) == tuple(size):
        return labels
    height, width = size
    rows = torch.arange(height, device=labels.device) * labels.shape[0] // height
    columns = torch.arange(width, device=labels.device) * labels.shape[1] // width
    return labels[rows][:, columns]
