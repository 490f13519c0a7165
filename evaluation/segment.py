"""``cocu segment IMAGE --words "red fox, grass"``: segment one image into what a user asks for."""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from curation.base.devices import find_device, to_device, to_host
from curation.base.errors import CocuError
from evaluation.inference import Classes, View, embed_classes, prepare, segment
from evaluation.layout import read_image
from evaluation.options import AUTO
from evaluation.pictures import heatmaps, overlay
from evaluation.places import place_cosines
from evaluation.segment_command import main, words_of
from evaluation.threshold import curve, score_images
from evaluation.windows import boxes
from segmenters.checkpoint import latest
from segmenters.dense import DenseCLIP
from segmenters.opening import Segmenter, open_segmenter

BATCH = 16  # windows encoded together


def read_photo(path: str) -> Image.Image:
    """The image in RGB, turned upright. Raises CocuError when it is absent or cannot be decoded."""
    if not os.path.exists(path):
        raise CocuError(f"{path}: no such image")
    return read_image(path)


@torch.inference_mode()
def heat(model: Segmenter, classes: Classes, image: Image.Image, view: View) -> np.ndarray:
    """How well each pixel fits each word, (C, h, w) float32: cosines of places, or of groups, shared out by soft
    assignment."""
    pixels, _ = prepare(image, view, model.smallest)  # (3, h, w)
    height, width = pixels.shape[1:]
    windows = boxes(height, width, view.crop, view.stride)
    total = np.zeros((len(classes.text), height, width), np.float32)
    coverage = np.zeros((height, width), np.float32)
    for start in range(0, len(windows), BATCH):
        batch = windows[start : start + BATCH]
        crops = torch.stack([pixels[:, box.top : box.bottom, box.left : box.right] for box in batch])  # (B, 3, p, q)
        coarse = coarse_cosines(model, to_device(crops, model.logit_scale.device), classes)  # (B, C, rows, columns)
        fine = F.interpolate(coarse, size=crops.shape[2:], mode="bilinear", align_corners=False)  # (B, C, p, q)
        for box, values in zip(batch, to_host(fine), strict=True):
            total[:, box.top : box.bottom, box.left : box.right] += values
            coverage[box.top : box.bottom, box.left : box.right] += 1
    return total / coverage


def coarse_cosines(model: Segmenter, pixels: Tensor, classes: Classes) -> Tensor:
    """How well each place, or patch, of pixels (B, 3, h, w) fits each word: (B, C, rows, columns)."""
    if isinstance(model, DenseCLIP):
        return place_cosines(model.encode_places(pixels), classes.text)
    encoding = model.encode_groups(pixels)
    cosines = F.normalize(encoding.groups, dim=-1) @ classes.text.T  # (B, G, C)
    return torch.einsum("bgc,bghw->bchw", cosines, encoding.masks())


def view_for(short: int, native: int) -> View:
    """Windows for a short side of ``short`` pixels and a model whose input has ``native``: half a window apart."""
    stride = native if short >= 2 * native else max(1, short // 2)
    return View(short, long_max=2048, crop=min(short, 2 * native), stride=stride)


def draw(args: argparse.Namespace) -> Image.Image:
    """The picture that the command line asks for. Raises CocuError and CheckpointError."""
    words = words_of(args)
    device = find_device(args.device)
    image = read_photo(args.image)
    model = open_segmenter(args.checkpoint or latest()).model.to(device)

    native = model.config.image_size
    view = view_for(args.size or 2 * native, native)
    classes = embed_classes(model, words, None if args.threshold == AUTO else args.threshold)
    if args.threshold == AUTO:
        chosen = curve(score_images(model, classes, [image], view, BATCH)).best
        print(f"threshold {chosen:.3f}, chosen by the image")
        classes = classes._replace(threshold=chosen)
    if args.heatmap:
        return heatmaps(image, dict(zip(words, heat(model, classes, image, view), strict=True)), args.per_word)

    pixels, size = prepare(image, view, model.smallest)
    ((_, segmentation),) = segment(model, classes, [(None, pixels, size)], view, BATCH)
    names = words if args.threshold is None else ["(unnamed)", *words]
    return overlay(image, to_host(segmentation.labels), names, args.threshold is not None)


def write(args: argparse.Namespace) -> None:
    """Draw and write the picture. Raises CocuError."""
    picture = draw(args)
    os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
    picture.save(args.output)
    print(f"{args.output}: {picture.width} x {picture.height} pixels")


if __name__ == "__main__":
    sys.exit(main())
