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
from evaluation import inference, metric, threshold
from evaluation.benchmark import Benchmark
from evaluation.layout import BenchmarkImage, list_images, masks_without_image, read_image, read_labelled
from segmenters.opening import Segmenter

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
    unlabelled: tuple[str, ...] = ()  # images whose masks hold no class but background: all else is ignored
    without_image: tuple[str, ...] = ()  # masks that no image goes with
    curve: threshold.Curve | None = None  # that the threshold of the background was chosen by

    @property
    def classes_without_pixel(self) -> list[str]:
        """The classes that no mask holds."""
        pixels = self.confusion.sum(1).tolist()  # (C,)
        return [name for name, count in zip(self.benchmark.classes, pixels, strict=True) if not count]


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


def embed_words(model: Segmenter, benchmark: Benchmark) -> inference.Classes:
    """The benchmark's classes for this model, with the threshold of the background where there is one."""
    return inference.embed_classes(model, benchmark.words, benchmark.bg_threshold if benchmark.background else None)


def evaluate(
    model: Segmenter,
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
    unlabelled = torch.zeros(len(chosen), dtype=torch.int64, device=device)
    began = time.monotonic()

    def read(numbered: tuple[int, BenchmarkImage]) -> tuple[LabelledImage, Tensor, tuple[int, int]]:
        index, files = numbered
        image, labels = read_labelled(files, benchmark)
        pixels, size = inference.prepare(image, view, model.smallest)
        return LabelledImage(index, files.name, image, labels), pixels, size

    with ThreadPoolExecutor(READERS) as pool:
        images = look_ahead(pool, read, chosen[share.rank :: share.size], 2 * READERS)
        for item, segmentation in inference.segment(model, classes, images, view, batch_size, groups_of > 0):
            predicted = inference.resize_labels(segmentation.labels, item.labels.shape)  # (H, W)
            labels = to_device(torch.from_numpy(item.labels), device)  # (H, W)
            counts += metric.confusion(labels, predicted, len(counts), benchmark.ignore_index)
            unlabelled[item.index] = int(not holds_class(item.labels, benchmark))

            groups = segmentation.groups if item.index < groups_of else None
            on_image(
                Prediction(
                    **vars(item),
                    predicted=to_host(predicted),
                    groups=None if groups is None else to_host(groups),
                )
            )

    counts = torch.from_numpy(to_host(metric.sum_over_ranks(counts, share.group)))
    unlabelled = torch.from_numpy(to_host(metric.sum_over_ranks(unlabelled, share.group)))
    if not counts.any():
        raise CocuError(f"{benchmark.name}: nothing to evaluate: every label of {len(chosen)} images is ignored")
    seconds = time.monotonic() - began
    return Result(
        benchmark,
        len(all_images),
        len(chosen),
        seconds,
        metric.scores(counts),
        counts,
        tuple(files.name for index, files in chosen if unlabelled[index]),
        tuple(masks_without_image(benchmark, all_images)),
    )


def holds_class(labels: np.ndarray, benchmark: Benchmark) -> bool:
    """Whether a mask (H, W) holds any class but background, beside what is ignored."""
    classes = labels[labels > 0] if benchmark.background else labels
    return bool((classes != benchmark.ignore_index).any()) if benchmark.ignore_index is not None else bool(classes.size)


def choose_threshold(
    model: Segmenter, benchmark: Benchmark, batch_size: int = 16, limit: int | None = None
) -> threshold.Curve:
    """The curve that the benchmark's threshold of the background can be chosen by, from images alone.

    It is made from IMAGES of the images that are evaluated, evenly spread. Raises as :func:`evaluate` does, and CocuError
    where all groups score alike.
    """
    chosen = list_images(benchmark)[:limit]
    spread = chosen[:: -(-len(chosen) // threshold.IMAGES)]
    model.eval()
    pictures = (read_image(files.image_path) for files in spread)
    classes = inference.embed_classes(model, benchmark.words, None)
    return threshold.curve(threshold.score_images(model, classes, pictures, view_of(benchmark), batch_size))
