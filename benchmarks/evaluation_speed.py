"""``python benchmarks/evaluation_speed.py``: sliding-window inference against a literal one, and its memory.

The model has the paper's sizes and random weights, sharpened so that its groups differ; images are noise of COCO's size.
"""

from __future__ import annotations

import platform
import re
import resource
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from results import arguments, in_turns, publish
from torch import Tensor
from torch.nn import functional as F

from curation.base.markdown import table
from curation.base.versions import conditions
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import view_of
from evaluation.inference import CANDIDATES, Classes, View, embed_classes, prepare, segment
from evaluation.windows import boxes
from segmenters.groupvit import GroupViT, GroupViTConfig

LARGE = (2048, 1536)  # width, height of the image whose memory is measured
LIMIT = 2.0  # GB above the model
RATIO = 3.0  # images/s against the literal implementation, at the settings of MEASURED[0]
ROUNDS = 6
MEASURED = ("coco_stuff", "voc")


class Speed(NamedTuple):
    """Images a second with the settings of one benchmark."""

    name: str
    literal: float
    ours: float
    same: float  # share of pixels with the same label


def sharpened_model() -> GroupViT:
    """The paper's GroupViT with random weights and clear-cut groups."""
    torch.manual_seed(0)
    model = GroupViT(GroupViTConfig()).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if re.search(r"grouping\.(query|key)\.weight|tokens$", name):
                value.mul_(40)
    return model


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Blocks of colour, smoothed."""
    blocks = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@torch.inference_mode()
def literal(model: GroupViT, classes: Classes, image: Image.Image, view: View) -> Tensor:
    """Labels (H, W), as the protocol reads: one window at a time, one pass for its average feature and one for its groups,
    and a score map for every class."""
    pixels, size = prepare(image, view, model.config.patch_size)  # (3, h, w)
    height, width = pixels.shape[1:]
    total = torch.zeros(len(classes.text), height, width)
    coverage = torch.zeros(height, width)
    for box in boxes(height, width, view.crop, view.stride):
        window = pixels[None, :, box.top : box.bottom, box.left : box.right]
        average = F.normalize(model.encode_image(window), dim=-1)  # (1, D)
        encoding = model.encode_groups(window)
        masks = F.interpolate(encoding.masks(), size=window.shape[2:], mode="bilinear", align_corners=False)
        group = masks[0].argmax(0)  # (rows, columns)

        logits = model.scale * F.normalize(encoding.groups[0], dim=-1) @ classes.text.T  # (G, C)
        candidates = (average @ classes.text.T)[0].topk(CANDIDATES).indices
        masked = torch.full_like(logits, -torch.inf)
        masked[:, candidates] = logits[:, candidates]
        scores = logits.softmax(1) * masked.softmax(1)  # (G, C)
        total[:, box.top : box.bottom, box.left : box.right] += scores.T[:, group]  # (C, rows, columns)
        coverage[box.top : box.bottom, box.left : box.right] += 1
    return F.interpolate((total / coverage)[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def fast(model: GroupViT, classes: Classes, images: list[Image.Image], view: View, batch_size: int) -> list[Tensor]:
    """Labels of the images, as ``cocu eval`` computes them."""
    prepared = ((number, *prepare(image, view, model.config.patch_size)) for number, image in enumerate(images))
    segmentations = dict(segment(model, classes, prepared, view, batch_size))
    return [segmentations[number].labels for number in range(len(images))]


def measure_speed(name: str, count: int, batch_size: int) -> Speed:
    """The speed on ``count`` images with the settings of a benchmark, the best of several rounds in turn."""
    model = sharpened_model()
    benchmark = read_benchmark(name, ".")
    view = view_of(benchmark)
    classes = embed_classes(model, benchmark.words, None)
    images = [picture((640, 480), seed) for seed in range(count)]

    def all_literal() -> list[Tensor]:
        return [literal(model, classes, image, view) for image in images]

    def all_fast() -> list[Tensor]:
        return fast(model, classes, images, view, batch_size)

    labels = all_fast()  # warms up too
    equal = [(one == other).flatten() for one, other in zip(all_literal(), labels, strict=True)]
    seconds = in_turns([all_literal, all_fast], ROUNDS)
    return Speed(name, count / seconds[0], count / seconds[1], torch.cat(equal).float().mean().item())


def peak() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 1e9


def measure_memory(batch_size: int) -> float:
    """GB that an image of 2048 px with COCO-Stuff's classes takes above the loaded model. For a process of its own."""
    model = sharpened_model()
    benchmark = read_benchmark("coco_stuff", ".")
    classes = embed_classes(model, benchmark.words, None)
    model.encode_groups(torch.zeros(1, 3, 224, 224))
    before = peak()

    view = View(min(LARGE), 2048, benchmark.crop, benchmark.stride)  # at full size: 234 windows
    fast(model, classes, [picture(LARGE, 0)], view, batch_size)
    return peak() - before


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "Speed and memory of evaluation.")
    parser.add_argument("--images", type=int, help="images of each benchmark (default: 2; 8 with --full)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows encoded together (default: 16)")
    parser.add_argument("--memory", action="store_true", help="print only the memory that one large image takes, in GB")
    args = parser.parse_args()
    if args.memory:
        print(measure_memory(args.batch_size))
        return 0

    # Memory first, in a process that has done nothing else.
    command = [sys.executable, __file__, "--memory", "--batch-size", str(args.batch_size)]
    gigabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    images = args.images or (8 if args.full else 2)
    speeds = [measure_speed(name, images, args.batch_size) for name in MEASURED]

    text = (
        f"GroupViT of the paper's sizes, random weights, fp32, CPU with {torch.get_num_threads()} threads, images of "
        f"640 x 480, {args.batch_size} windows a batch. Literal: one window at a time, encoded twice, one score map a "
        "class. With few classes and large windows (voc) the encoder is nearly all of the work, so that encoding once is "
        f"nearly all of the gain. Best of {ROUNDS} rounds in turn."
    )
    rows = [
        [
            speed.name,
            f"{speed.literal:.3f}",
            f"{speed.ours:.3f}",
            f"{speed.ours / speed.literal:.1f}",
            f"{speed.same:.2%}",
        ]
        for speed in speeds
    ]
    header = ["settings of", "literal, images/s", "ours, images/s", "ratio", "same labels"]
    size = f"{LARGE[0]} x {LARGE[1]}"
    memory = f"Peak memory above the model, 171 classes, one image of {size} at full size: {gigabytes:.2f} GB."
    marks = {
        f"{MEASURED[0]}: at least {RATIO} times as fast as the literal one": speeds[0].ours
        >= RATIO * speeds[0].literal,
        f"at most {LIMIT} GB above the model": gigabytes <= LIMIT,
    }
    return publish("Evaluation", [conditions("torch"), text, table(header, rows), memory], marks)


if __name__ == "__main__":
    sys.exit(main())
