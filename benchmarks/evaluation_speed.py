"""``python benchmarks/evaluation_speed.py``: sliding-window inference against a literal one, and its memory.

The model has the paper's sizes and random weights, sharpened so that its groups differ; images are noise of COCO's size.
"""

from __future__ import annotations

import platform
import re
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from PIL import Image
from results import RESULTS, arguments, write_section
from torch import Tensor
from torch.nn import functional as F

from evaluation.benchmark import read_benchmark
from evaluation.evaluate import view_of
from evaluation.inference import KEPT, Classes, View, embed_classes, prepare, segment
from evaluation.windows import boxes
from segmenters.groupvit import GroupViT, GroupViTConfig

TITLE = "## Evaluation"
LARGE = (2048, 1536)  # width, height of the image whose memory is measured
LIMIT = 2.0  # GB above the model
RATIO = 3.0  # images/s against the literal implementation, at the settings of MEASURED[0]
ROUNDS = 6
MEASURED = ("coco_stuff", "voc")


def model() -> GroupViT:
    """The paper's GroupViT with random weights and clear-cut groups."""
    torch.manual_seed(0)
    made = GroupViT(GroupViTConfig()).eval()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if re.search(r"grouping\.(query|key)\.weight|tokens$", name):
                value.mul_(40)
    return made


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """Blocks of colour, smoothed."""
    blocks = np.random.default_rng(seed).integers(0, 255, (9, 12, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@torch.inference_mode()
def literal(network: GroupViT, classes: Classes, image: Image.Image, view: View) -> Tensor:
    """Labels (H, W), as the protocol reads: one window at a time, one pass for its average feature and one for its groups,
    and a score map for every class."""
    pixels, size = prepare(image, view, network.config.patch_size)
    total = torch.zeros(len(classes.text), *pixels.shape[1:])  # (C, h, w)
    cover = torch.zeros(pixels.shape[1:])
    for box in boxes(*pixels.shape[1:], view.crop, view.stride):
        window = pixels[None, :, box.top : box.bottom, box.left : box.right]
        average = F.normalize(network.encode_image(window), dim=-1)  # (1, D)
        encoding = network.encode_groups(window)
        masks = F.interpolate(encoding.masks(), size=window.shape[2:], mode="bilinear", align_corners=False)
        group = masks[0].argmax(0)  # (h, w)
        logits = network.scale * F.normalize(encoding.groups[0], dim=-1) @ classes.text.T  # (G, C)
        kept = (average @ classes.text.T)[0].topk(KEPT).indices
        masked = torch.full_like(logits, -torch.inf)
        masked[:, kept] = logits[:, kept]
        scores = logits.softmax(1) * masked.softmax(1)  # (G, C)
        total[:, box.top : box.bottom, box.left : box.right] += scores.T[:, group]  # (C, h, w)
        cover[box.top : box.bottom, box.left : box.right] += 1
    return F.interpolate((total / cover)[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)


def fast(network: GroupViT, classes: Classes, images: list[Image.Image], view: View, batch_size: int) -> list[Tensor]:
    """Labels of the images, as ``python -m evaluation`` computes them."""
    prepared = ((number, *prepare(image, view, network.config.patch_size)) for number, image in enumerate(images))
    found = dict(segment(network, classes, prepared, view, batch_size))
    return [found[number].labels for number in range(len(images))]


def speed(count: int, batch_size: int) -> list[tuple[str, float, float, float]]:
    """For some benchmarks: (name, literal images/s, ours, share of pixels with the same label).

    The two take turns, and the best round of each counts: other work on the machine slows both.
    """
    network, rows = model(), []
    for name in MEASURED:
        benchmark = read_benchmark(name, ".")
        view, classes = view_of(benchmark), embed_classes(network, benchmark.words, None)
        images = [picture((640, 480), seed) for seed in range(count)]
        fast(network, classes, images, view, batch_size)  # warm up
        slow, ours = [], []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            expected = [literal(network, classes, image, view) for image in images]
            middle = time.perf_counter()
            found = fast(network, classes, images, view, batch_size)
            slow.append(middle - began)
            ours.append(time.perf_counter() - middle)
        same = torch.cat([(a == b).flatten() for a, b in zip(expected, found, strict=True)]).float().mean().item()
        rows.append((name, count / min(slow), count / min(ours), same))
    return rows


def peak() -> float:
    """Largest resident memory of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024) / 1e9


def memory(batch_size: int) -> float:
    """GB that an image of 2048 px with COCO-Stuff's classes takes above the loaded model. For a process of its own."""
    network = model()
    benchmark = read_benchmark("coco_stuff", ".")
    classes = embed_classes(network, benchmark.words, None)
    network.encode_groups(torch.zeros(1, 3, 224, 224))
    before = peak()
    view = View(min(LARGE), 2048, benchmark.crop, benchmark.stride)  # at full size: 234 windows
    fast(network, classes, [picture(LARGE, 0)], view, batch_size)
    return peak() - before


def report(rows: list[tuple[str, float, float, float]], gigabytes: float, batch_size: int) -> str:
    """The section of RESULTS.md."""
    lines = [
        TITLE,
        "",
        f"GroupViT of the paper's sizes, random weights, fp32, CPU with {torch.get_num_threads()} threads, images of "
        f"640 x 480, {batch_size} windows a batch (`python benchmarks/evaluation_speed.py`). Literal: one window at a "
        "time, encoded twice, one score map a class. With few classes and large windows (voc) the encoder is nearly all "
        f"of the work, so that encoding once is nearly all of the gain. Best of {ROUNDS} rounds in turn.",
        "",
        "| settings of | literal, images/s | ours, images/s | ratio | same labels |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {slow:.3f} | {ours:.3f} | {ours / slow:.1f} | {100 * same:.2f}% |"
        for name, slow, ours, same in rows
    ]
    lines += [
        "",
        f"Peak memory above the model, 171 classes, one image of {LARGE[0]} x {LARGE[1]} at full size: {gigabytes:.2f} GB.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a figure misses its mark."""
    parser = arguments(__file__, "Speed and memory of evaluation.")
    parser.add_argument("--images", type=int, help="images of each benchmark (default: 2; 8 with --full)")
    parser.add_argument("--batch-size", type=int, default=16, help="windows encoded together (default: 16)")
    parser.add_argument("--memory", action="store_true", help="print only the memory that one large image takes, in GB")
    given = parser.parse_args()
    if given.memory:
        print(memory(given.batch_size))
        return 0
    # Memory first, in a process that has done nothing else.
    command = [sys.executable, __file__, "--memory", "--batch-size", str(given.batch_size)]
    gigabytes = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    rows = speed(given.images or (8 if given.full else 2), given.batch_size)
    text = report(rows, gigabytes, given.batch_size)
    write_section(RESULTS, TITLE, text)
    print(text)
    _, slow, ours, _ = rows[0]
    if ours < RATIO * slow or gigabytes > LIMIT:
        print(f"missed: {MEASURED[0]} below {RATIO} times, or memory above {LIMIT} GB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
