"""What a run found: tables for people, results.json for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.base.errors import listed
from curation.base.terminal import plain_table
from curation.base.versions import versions
from evaluation.benchmark import Benchmark
from evaluation.evaluate import Result
from evaluation.threshold import Curve
from segmenters.opening import Opened

PACKAGES = ("cocu", "torch", "numpy", "pillow", "open_clip_torch")
DECISIVE = (  # what of a benchmark decides the numbers
    "background", "bg_threshold", "resize_short", "resize_long_max", "crop", "stride", "ignore_index", "encoding",
    "raw_encoding", "shrink_above", "shrink_long",
)  # fmt: skip


class Failure(NamedTuple):
    """Why a benchmark has no result."""

    status: str  # absent or failed
    message: str


# --- for people ---------------------------------------------------------------------------------------------------------


def results_table(results: Sequence[Result]) -> Table:
    """One row a benchmark."""
    table = plain_table(
        ("benchmark", "images", "classes", "mIoU", "pixel accuracy", "images/s"), left=["benchmark"], gap=2
    )
    for result in results:
        occurring = classes_that_occur(result)
        count = len(result.benchmark.classes)
        table.add_row(
            escape(result.benchmark.name),
            images(result),
            str(count) if occurring == count else f"{occurring} of {count}",
            f"{result.scores.miou:.2f}",
            f"{result.scores.pixel_accuracy:.2f}",
            f"{result.evaluated / result.seconds:.1f}",
        )
    return table


def images(result: Result) -> str:
    """Images evaluated; of how many, where that is not all that are expected."""
    expected = result.benchmark.val_images
    whole = result.available if expected is None else expected
    return f"{result.evaluated:,}" + ("" if result.evaluated == whole else f" of {whole:,}")


def classes_that_occur(result: Result) -> int:
    """How many classes are included in the mean."""
    return sum(not math.isnan(iou) for iou in result.scores.iou)


def published_table(results: Sequence[Result], name: str) -> Table | None:
    """Our mIoU above those that were published, a column a benchmark; None where nothing was published."""
    compared = [result for result in results if result.benchmark.published]
    if not compared:
        return None

    columns = ["model", *(escape(result.benchmark.name) for result in compared)]
    table = plain_table(columns, left=["model"], title="mIoU beside published numbers", gap=2)
    table.add_row(f"[bold]{escape(name)}", *(f"[bold]{result.scores.miou:.1f}" for result in compared))
    for model in dict.fromkeys(model for result in compared for model in result.benchmark.published):
        numbers = (result.benchmark.published.get(model) for result in compared)
        table.add_row(escape(model), *("-" if number is None else f"{number:.1f}" for number in numbers))
    return table


def warnings(results: Sequence[Result]) -> list[str]:
    """What keeps the numbers from being comparable, a line each."""
    lines = []
    for result in results:
        name = result.benchmark.name
        expected = result.benchmark.val_images
        if expected not in (None, result.available):
            counts = f"{result.available:,} images found, {expected:,} expected"
            lines.append(f"{name}: {counts}: not comparable with published numbers")
        lines += [f"{name}: {line}" for line in _peculiar(result)]
        if result.evaluated < result.available:
            lines.append(f"{name}: the first {result.evaluated:,} of {result.available:,} images only (--limit)")
    return lines


def _peculiar(result: Result) -> list[str]:
    """What is unusual about the masks, and so about the numbers."""
    absent, unlabelled, lost = result.classes_without_pixel, result.unlabelled, result.without_image
    lines = []
    if absent:
        lines.append(
            f"no mask has a pixel of {listed(absent)}: where predicted, IoU 0, else left out of the mean "
            f"({len(absent)} of {len(result.benchmark.classes)} classes)"
        )
    if unlabelled:
        rest = "ignore_index and background" if result.benchmark.background else "ignore_index"
        lines.append(f"{len(unlabelled):,} masks hold nothing but {rest}: {listed(unlabelled)}")
    if lost:
        pattern = result.benchmark.layout.images
        lines.append(
            f"{len(lost):,} masks have no image {pattern} and are left out: {listed(lost)}; where images have several "
            "suffixes, write {id}.{suffix}"
        )
    return lines


def print_results(results: Sequence[Result], name: str, console: Console) -> None:
    """The tables, and what keeps the numbers from being comparable."""
    console.print(results_table(results))
    table = published_table(results, name)
    if table:
        console.print()
        console.print(table)
    for line in warnings(results):
        console.print(f"[yellow]{escape(line)}", highlight=False, soft_wrap=True)


# --- for programs -------------------------------------------------------------------------------------------------------


def as_json(
    results: Sequence[Result], failures: Mapping[str, Failure], checkpoint: Opened, options: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a run found, ready for JSON; ``failures`` by benchmark."""
    benchmarks = {result.benchmark.name: result_as_json(result) for result in results}
    return {
        "checkpoint": {"path": checkpoint.path, "kind": checkpoint.kind, "sha256": checkpoint.sha256},
        "options": options,
        "versions": versions(PACKAGES) | {"cuda": torch.version.cuda or "none"},
        "benchmarks": benchmarks | {name: failure._asdict() for name, failure in failures.items()},
    }


def result_as_json(result: Result) -> dict[str, Any]:
    """The part of one benchmark."""
    benchmark = result.benchmark
    scores = result.scores
    return {
        "status": "done",
        "title": benchmark.title,
        "miou": json_number(scores.miou),
        "pixel_accuracy": json_number(scores.pixel_accuracy),
        "classes_that_occur": classes_that_occur(result),
        "classes_without_pixel": result.classes_without_pixel,
        "masks": {"without_class": list(result.unlabelled), "without_image": list(result.without_image)},
        "images": {"evaluated": result.evaluated, "found": result.available, "expected": benchmark.val_images},
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.evaluated / result.seconds, 3),
        "published": dict(benchmark.published),
        "config": decisive_values(benchmark),
        **({} if result.curve is None else {"bg_threshold_curve": curve_as_json(result.curve)}),
        "iou": {name: json_number(iou) for name, iou in zip(benchmark.classes, scores.iou, strict=True)},
    }


def curve_as_json(curve: Curve) -> list[dict[str, float]]:
    """The curve that a threshold was chosen by, a row a threshold."""
    rows = zip(curve.thresholds, curve.background, curve.separation, strict=True)
    return [
        {"bg_threshold": round(at, 4), "background": round(share, 4), "separation": round(parts, 4)}
        for at, share, parts in ((float(a), float(b), float(c)) for a, b, c in rows)
    ]


def decisive_values(benchmark: Benchmark) -> dict[str, Any]:
    """What decided the numbers."""
    return {key: getattr(benchmark, key) for key in DECISIVE} | {"layout": vars(benchmark.layout)}


def json_number(value: float) -> float | None:
    """``value`` to six digits; JSON has no nan."""
    return None if math.isnan(value) else round(value, 6)
