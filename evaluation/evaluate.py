"""Evaluate a model on a benchmark: read, segment, count."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from curation.base.devices import to_device, to_host
from curation.base.errors import CocuError
from curation.base.lookahead import look_ahead
from evaluation import inference, metric
from evaluation.benchmark import Benchmark
from evaluation.layout import BenchmarkImage, list_images, read_labelled
from segmenters.groupvit import GroupViT

READERS = 2  # threads that decode images while the model computes


class Share(NamedTuple):
    """Which part of the images a process evaluates: every ``size``-th from ``rank`` on. The group sums the counts."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Result:
    """What came out for one benchmark."""

    benchmark: Benchmark
    available: int  # images on disk
    evaluated: int  # of them: all, or the limit
    seconds: float
    scores: metric.SegmentationScores
    confusion: Tensor  # (C, C) int64, labels x predictions


@dataclass(frozen=True)
class LabelledImage:
    """One image that has been read."""

    index: int  # in the order of the benchmark
    name: str
    image: Image.Image
    labels: np.ndarray  # (H, W) int32


@dataclass(frozen=True)
class Prediction(LabelledImage):
    """One evaluated image, for those who save or draw it."""

    predicted: np.ndarray  # (H, W) int64
    groups: np.ndarray | None  # (h, w) uint8, at the size of the windows


def view_of(benchmark: Benchmark) -> inference.View:
    """The sizes and windows that the benchmark prescribes."""
    return inference.View(
        benchmark.resize_short,
        benchmark.resize_long_max,
        benchmark.crop,
        benchmark.stride,
        benchmark.shrink_above,
        benchmark.shrink_long,
    )


def embed_words(model: GroupViT, benchmark: Benchmark) -> inference.Classes:
    """The benchmark's classes for this model, with the threshold of the background where there is one."""
    return inference.embed_classes(model, benchmark.words, benchmark.bg_threshold if benchmark.background else None)


def evaluate(
    model: GroupViT,
    benchmark: Benchmark,
    *,
    batch_size: int = 16,
    limit: int | None = None,
    groups_of: int = 0,
    share: Share | None = None,
    on_start: Callable[[int, int], None] = lambda available, count: None,
    on_image: Callable[[Prediction], None] = lambda prediction: None,
) -> Result:
    """The model's scores on the first ``limit`` images of a benchmark, on the model's device.

    ``batch_size``: windows encoded together. ``on_start`` gets the number of images on disk and of those to come,
    ``on_image`` each prediction; those of the first ``groups_of`` images have their groups. With a ``share`` every rank
    gets the same result.
    Raises AbsentError and CocuError as :func:`~evaluation.layout.list_images` and ``read_labelled`` do.
    """
    share = share or Share()
    all_images = list_images(benchmark)
    chosen = list(enumerate(all_images))[:limit]
    on_start(len(all_images), len(chosen))

    model.eval()
    device = model.logit_scale.device
    view = view_of(benchmark)
    classes = embed_words(model, benchmark)
    counts = torch.zeros((len(benchmark.classes),) * 2, dtype=torch.int64, device=device)
    began = time.monotonic()

    def read(numbered: tuple[int, BenchmarkImage]) -> tuple[LabelledImage, Tensor, tuple[int, int]]:
        index, files = numbered
        image, labels = read_labelled(files, benchmark)
        pixels, size = inference.prepare(image, view, model.config.patch_size)
        return LabelledImage(index, files.name, image, labels), pixels, size

    with ThreadPoolExecutor(READERS) as pool:
        images = look_ahead(pool, read, chosen[share.rank :: share.size], 2 * READERS)
        for item, segmentation in inference.segment(model, classes, images, view, batch_size, groups_of > 0):
            predicted = inference.resize_labels(segmentation.labels, item.labels.shape)  # (H, W)
            labels = to_device(torch.from_numpy(item.labels), device)  # (H, W)
            counts += metric.confusion(labels, predicted, len(counts), benchmark.ignore_index)

            groups = segmentation.groups if item.index < groups_of else None
            on_image(
                Prediction(
                    **vars(item),
                    predicted=to_host(predicted),
                    groups=None if groups is None else to_host(groups),
                )
            )

    counts = torch.from_numpy(to_host(metric.sum_over_ranks(counts, share.group)))
    if not counts.any():
        raise CocuError(f"{benchmark.name}: nothing to evaluate: every label of {len(chosen)} images is ignored")
    seconds = time.monotonic() - began
    return Result(benchmark, len(all_images), len(chosen), seconds, metric.scores(counts), counts)
