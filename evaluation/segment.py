"""``python -m evaluation.segment IMAGE --words "red fox, grass"``: segment one image into what a user asks for."""

from __future__ import annotations

import argparse
import os
import sys

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F

from curation.base.configuration import require
from curation.base.devices import find_device
from curation.base.errors import CocuError
from curation.base.terminal import run_command
from evaluation.inference import Classes, View, embed_classes, prepare, segment
from evaluation.layout import UNREADABLE
from evaluation.pictures import heatmaps, overlay
from evaluation.windows import boxes
from segmenters.checkpoint import latest, load
from segmenters.groupvit import GroupViT

BATCH = 16  # windows encoded together


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m evaluation.segment",
        description="Draw where the words are in an image. Name everything that you expect, stuff such as grass too: "
        "each place gets the word that fits it best.",
        allow_abbrev=False,
    )
    made.add_argument("image", help="any image that Pillow reads")
    made.add_argument("--words", required=True, help='comma list, such as "red fox, grass, water"')
    made.add_argument("-o", "--output", default="segmentation.png", help="picture to write (default: segmentation.png)")
    made.add_argument("--checkpoint", help="as for python -m evaluation (default: newest .ckpt in artifacts/)")
    made.add_argument(
        "--heatmap", action="store_true", help="draw how well each place fits each word, one panel a word"
    )
    made.add_argument(
        "--threshold", type=float, help="leave places whose best word scores less unnamed (0 to 1; default: name all)"
    )
    made.add_argument("--size", type=int, help="pixels of the short side (default: twice the model's input)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return made


def read_photo(path: str) -> Image.Image:
    """The image in RGB, turned upright. Raises CocuError when it is absent or cannot be decoded."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise CocuError(f"{path}: no such image") from None
    except UNREADABLE as error:
        raise CocuError(f"{path}: image cannot be decoded ({' '.join(str(error).split())[:200]})") from None


@torch.inference_mode()
def heat(model: GroupViT, classes: Classes, image: Image.Image, view: View) -> np.ndarray:
    """How well each place fits each word, (C, h, w) float32: cosines of the groups, shared out by soft assignment."""
    pixels, _ = prepare(image, view, model.config.patch_size)
    places = boxes(*pixels.shape[1:], view.crop, view.stride)
    total = torch.zeros((len(classes.text), *pixels.shape[1:]))
    cover = torch.zeros(pixels.shape[1:])
    for start in range(0, len(places), BATCH):
        part = places[start : start + BATCH]
        cut = torch.stack([pixels[:, box.top : box.bottom, box.left : box.right] for box in part])
        encoding = model.encode_groups(cut.to(model.logit_scale.device))
        cosines = F.normalize(encoding.groups, dim=-1) @ classes.text.T  # (B, G, C)
        coarse = torch.einsum("bgc,bghw->bchw", cosines, encoding.masks())  # (B, C, h, w) patches
        fine = F.interpolate(coarse, size=cut.shape[2:], mode="bilinear", align_corners=False).cpu()
        for box, values in zip(part, fine, strict=True):
            total[:, box.top : box.bottom, box.left : box.right] += values
            cover[box.top : box.bottom, box.left : box.right] += 1
    return (total / cover).numpy()


def draw(given: argparse.Namespace) -> Image.Image:
    """The picture that the command line asks for. Raises CocuError and CheckpointError."""
    words = list(dict.fromkeys(word.strip() for word in given.words.split(",") if word.strip()))
    require(bool(words), "words: none is given; separate them by commas")
    suffix = os.path.splitext(given.output)[1].lower()
    require(suffix in Image.registered_extensions(), f"output: {given.output}: Pillow writes no such format; use .png")
    require(
        given.heatmap or len(words) > 1,
        "words: a single word would cover the whole image; name what else is there, or use --heatmap",
    )
    require(
        given.threshold is None or not given.heatmap, "threshold: has no meaning with --heatmap; leave one of them out"
    )
    require(given.threshold is None or 0 <= given.threshold <= 1, f"threshold: {given.threshold} is not in 0..1")
    require(given.size is None or given.size > 0, f"size: {given.size} must be at least 1")
    device = find_device(given.device)
    image = read_photo(given.image)
    model = load(given.checkpoint or latest()).model.to(device)
    native = model.config.image_size
    short = given.size or 2 * native
    view = View(short, 2048, min(short, 2 * native), native if short >= 2 * native else max(1, short // 2))
    classes = embed_classes(model, words, given.threshold)
    if given.heatmap:
        return heatmaps(image, dict(zip(words, heat(model, classes, image, view), strict=True)))
    pixels, size = prepare(image, view, model.config.patch_size)
    ((_, found),) = segment(model, classes, [(None, pixels, size)], view, BATCH)
    names = words if given.threshold is None else ["(unnamed)", *words]
    return overlay(image, found.labels.cpu().numpy(), names, given.threshold is not None)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = parser().parse_args(arguments)

    def work() -> None:
        picture = draw(args)
        os.makedirs(os.path.dirname(args.output) or ".", exist_ok=True)
        picture.save(args.output)
        print(f"{args.output}: {picture.width} x {picture.height} pixels")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
