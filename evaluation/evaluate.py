"""Evaluate a model on a benchmark: read, segment, count."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from curation.base.errors import CocuError
from curation.base.lookahead import look_ahead
from evaluation import inference, metric
from evaluation.benchmark import Benchmark
from evaluation.layout import Sample, list_samples, read_sample
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
    found: int  # images on disk
    evaluated: int  # images that count: all that were found, or the limit
    seconds: float
    scores: metric.Scores
    confusion: Tensor  # (C, C) int64, labels x predictions


@dataclass(frozen=True)
class Prediction:
    """One evaluated image, for those who save or draw it."""

    index: int  # in the order of the benchmark
    sample: Sample
    image: Image.Image
    labels: np.ndarray  # (H, W) int32
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


def evaluate(
    model: GroupViT,
    benchmark: Benchmark,
    *,
    batch_size: int = 16,
    limit: int | None = None,
    drawn: int = 0,
    share: Share | None = None,
    on_start: Callable[[int, int], None] = lambda found, count: None,
    on_image: Callable[[Prediction], None] = lambda prediction: None,
) -> Result:
    """The model's scores on the first ``limit`` images of a benchmark, on the model's device.

    ``batch_size``: windows encoded together. ``on_start`` gets the number of images found and of those to come,
    ``on_image`` each prediction; those with an index below ``drawn`` have their groups. With a ``share`` every rank gets
    the same result.
    Raises AbsentError and CocuError as :func:`~evaluation.layout.list_samples` and ``read_sample`` do.
    """
    share = share or Share()
    samples = list_samples(benchmark)
    chosen = list(enumerate(samples))[:limit]
    on_start(len(samples), len(chosen))
    model.eval()
    device = model.logit_scale.device
    threshold = benchmark.bg_threshold if benchmark.background else None
    view = view_of(benchmark)
    counts = torch.zeros((len(benchmark.classes),) * 2, dtype=torch.int64, device=device)
    classes = inference.embed_classes(model, benchmark.words, threshold)
    began = time.monotonic()

    def read(numbered: tuple[int, Sample]) -> tuple[Any, Tensor, tuple[int, int]]:
        image, labels = read_sample(numbered[1], benchmark)
        pixels, size = inference.prepare(image, view, model.config.patch_size)
        return (*numbered, image, labels), pixels, size

    with ThreadPoolExecutor(READERS) as pool:
        images = look_ahead(pool, read, chosen[share.rank :: share.size], 2 * READERS)
        for item, segmentation in inference.segment(model, classes, images, view, batch_size, drawn > 0):
            index, sample, image, labels = item
            predicted = inference.fit(segmentation.labels, labels.shape)
            counts += metric.confusion(
                torch.from_numpy(labels).to(device), predicted, len(counts), benchmark.ignore_index
            )
            groups = segmentation.groups.cpu().numpy() if index < drawn else None
            on_image(Prediction(index, sample, image, labels, predicted.cpu().numpy(), groups))
    counts = metric.sum_over_ranks(counts, share.group).cpu()
    if not counts.any():
        raise CocuError(f"{benchmark.name}: no pixel counts: every label of {len(chosen)} images is ignored")
    return Result(benchmark, len(samples), len(chosen), time.monotonic() - began, metric.scores(counts), counts)
