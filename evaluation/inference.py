"""Zero-shot segmentation (docs/method.md §6). With GroupViT: the group of each pixel, and how well a group fits a class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from curation.base.configuration import require
from curation.base.devices import to_device
from evaluation.places import decide_places, place_scores
from evaluation.windows import CHUNK, Box, boxes, decide, resize, resized, stitch, votes
from segmenters.dense import DenseCLIP
from segmenters.groupvit import MEAN, STD, GroupEncoding
from segmenters.opening import Segmenter

PROMPT = "a photo of a {}."
CANDIDATES = 5  # classes that a window may contain
TEXTS = 256  # prompts in one forward pass


@dataclass(frozen=True)
class View:
    """At what size an image is looked at, and in which windows; all in pixels."""

    short: int  # of the short side
    long_max: int  # of the long side, at most
    crop: int  # of a side of a window
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
    groups: Tensor | None  # (h, w) uint8, at the size of the windows, where asked for and where the model has any


# --- one batch of windows -----------------------------------------------------------------------------------------------


@torch.no_grad()
def embed_classes(model: Segmenter, names: Sequence[str], threshold: float | None) -> Classes:
    """Text features of "a photo of a NAME.", unit norm; ``names`` without the background."""
    device = model.logit_scale.device
    features = []
    for start in range(0, len(names), TEXTS):
        texts = [PROMPT.format(name) for name in names[start : start + TEXTS]]
        features.append(model.encode_text(to_device(model.tokenize(texts), device)))  # (T, D)
    return Classes(F.normalize(torch.cat(features).float(), dim=-1), threshold)


def pixel_groups(encoding: GroupEncoding, size: tuple[int, int]) -> Tensor:
    """The group of every pixel (B, H, W), uint8: soft assignments multiplied, resized bilinearly to ``size``, argmax."""
    masks = encoding.masks()  # (B, G, h, w)
    step = max(1, 4 * CHUNK // (masks.shape[1] * size[0] * size[1]))
    groups = []
    for part in torch.split(masks, step):
        resized_part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)  # (b, G, H, W)
        # max, since argmax over any dimension but the last takes five times as long on a CPU
        groups.append(resized_part.max(1).indices.to(torch.uint8))
    return torch.cat(groups)


def group_scores(encoding: GroupEncoding, classes: Classes, scale: Tensor) -> Tensor:
    """Scores (B, G, C) of each window's groups; with background (B, G, 1 + C), the background first.

    A window's highest score is that of all its groups, whether they have pixels or not.
    """
    features = F.normalize(encoding.groups.float(), dim=-1)  # (B, G, D)
    logits = scale * features @ classes.text.T  # A: (B, G, C)

    # Only the classes that fit the window as a whole best may occur in it.
    average = F.normalize(encoding.image.float(), dim=-1)  # (B, D)
    probabilities = (scale * average @ classes.text.T).softmax(-1)  # (B, C)
    candidates = probabilities.topk(min(CANDIDATES, probabilities.shape[1]), dim=-1).indices  # (B, 5)
    mask = torch.full_like(probabilities, float("-inf")).scatter(1, candidates, 0.0)  # (B, C): 0 or -inf
    scores = logits.softmax(-1) * (logits + mask[:, None]).softmax(-1)  # P x Q: (B, G, C)
    if classes.threshold is None:
        return scores

    best = scores.amax(-1)  # (B, G)
    highest = best.amax(1, keepdim=True)  # (B, 1)
    background = best < highest.clamp(max=classes.threshold)  # (B, G)
    return torch.cat([background[..., None].to(scores.dtype), scores], -1)  # foreground scores stay


# --- whole images -------------------------------------------------------------------------------------------------------


def prepare(image: Image.Image, view: View, smallest: int) -> tuple[Tensor, tuple[int, int]]:
    """The normalised image (3, H, W), float32, at the size of ``view``, and the size at which labels are decided.

    ``smallest``: pixels that a side has at least, those of a patch. Raises CocuError for windows that are smaller.
    """
    require(
        view.crop >= smallest,
        f"crop: windows of {view.crop} pixels are too small for this model, which needs {smallest}; raise crop of the "
        "benchmark, or --size of cocu segment",
    )
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()  # (3, height, width)
    height, width = pixels.shape[1:]
    if view.shrink_above and view.shrink_long and height * width > view.shrink_above:
        height, width = resized(height, width, max(height, width), view.shrink_long)
        pixels = resize(pixels, (height, width))  # (3, height, width)

    pixels = resize(pixels, resized(height, width, view.short, view.long_max, smallest))  # (3, H, W)
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std, (height, width)


@dataclass
class PartialImage:
    """An image of which some windows have been encoded."""

    item: Any  # what it came with
    pixels: Tensor  # (3, H, W)
    size: tuple[int, int]
    windows: list[Box]
    groups: dict[int, Tensor] = field(default_factory=dict)  # number of a window: (h, w) uint8
    scores: dict[int, Tensor] = field(default_factory=dict)  # the same: (G, C); of a dense model (C, rows, columns)

    def window(self, number: int) -> Tensor:
        """The pixels of a window, (3, h, w)."""
        box = self.windows[number]
        return self.pixels[:, box.top : box.bottom, box.left : box.right]


@torch.inference_mode()
def segment(
    model: Segmenter,
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
    queues: dict[tuple[int, int], list[tuple[PartialImage, int]]] = {}  # shape: windows to encode, oldest first
    for item, pixels, size in images:
        height, width = pixels.shape[1:]
        image = PartialImage(item, pixels, size, boxes(height, width, view.crop, view.stride))
        shape = min(view.crop, height), min(view.crop, width)
        queue = queues.setdefault(shape, [])
        queue += [(image, number) for number in range(len(image.windows))]

        while len(queue) >= batch_size:
            yield from encode(model, classes, [queue.pop(0) for _ in range(batch_size)], with_groups)
        while sum(map(len, queues.values())) > 8 * batch_size:  # many rare shapes: do not hold all their images
            queue = queues.pop(next(iter(queues)))
            yield from encode(model, classes, queue, with_groups)

    for queue in queues.values():
        if queue:
            yield from encode(model, classes, queue, with_groups)


def encode(
    model: Segmenter, classes: Classes, windows: list[tuple[PartialImage, int]], with_groups: bool
) -> Iterator[tuple[Any, Segmentation]]:
    """Encode windows of one shape; yields the images that these complete."""
    pixels = torch.stack([image.window(number) for image, number in windows])  # (B, 3, h, w)
    pixels = to_device(pixels, model.logit_scale.device)
    groups: Iterable[Tensor] = ()
    if isinstance(model, DenseCLIP):
        scores = place_scores(model.encode_places(pixels), classes.text, model.scale, classes.threshold)  # (B, C, h, w)
    else:
        encoding = model.encode_groups(pixels)
        groups = pixel_groups(encoding, (pixels.shape[2], pixels.shape[3]))  # (B, h, w)
        scores = group_scores(encoding, classes, model.scale)  # (B, G, C)

    for (image, number), window_scores, window_groups in zip_longest(windows, scores, groups):
        image.scores[number] = window_scores
        if window_groups is not None:
            image.groups[number] = window_groups
        if len(image.scores) == len(image.windows):
            yield image.item, join_windows(image, with_groups)


def join_windows(image: PartialImage, with_groups: bool) -> Segmentation:
    """The segmentation of an image whose windows are all encoded."""
    numbers = range(len(image.windows))
    scores = [image.scores[number] for number in numbers]
    if not image.groups:
        return Segmentation(decide_places(image.windows, scores, image.size), None)

    groups = [image.groups[number] for number in numbers]
    regions = stitch(image.windows, groups, scores)
    voted = votes(image.windows, groups, len(scores[0])) if with_groups else None
    return Segmentation(decide(regions, image.size), voted)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """``labels`` (H, W) resized to ``size`` by nearest neighbour; as they are when the size is right."""
    if tuple(labels.shape) == tuple(size):
        return labels
    height, width = size
    rows = torch.arange(height, device=labels.device) * labels.shape[0] // height
    columns = torch.arange(width, device=labels.device) * labels.shape[1] // width
    return labels[rows][:, columns]
