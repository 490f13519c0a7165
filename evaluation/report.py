"""What a run tells: tables for people, results.json for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.base.versions import versions
from evaluation.benchmark import Benchmark
from evaluation.evaluate import Result
from segmenters.checkpoint import Loaded

PACKAGES = ("cocu", "torch", "numpy", "pillow", "open_clip_torch")


def results_table(results: Sequence[Result]) -> Table:
    """One row a benchmark."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("benchmark", "images", "classes", "mIoU", "pixel accuracy", "images/s"):
        table.add_column(column, justify="left" if column == "benchmark" else "right")
    for result in results:
        occurring = sum(not math.isnan(iou) for iou in result.scores.iou)
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
    whole = result.found if expected is None else expected
    return f"{result.evaluated:,}" + ("" if result.evaluated == whole else f" of {whole:,}")


def published_table(results: Sequence[Result], name: str) -> Table | None:
    """Our mIoU above those that were published, a column a benchmark; None where nothing was published."""
    compared = [result for result in results if result.benchmark.published]
    if not compared:
        return None
    table = Table(
        box=None, padding=(0, 2, 0, 0), header_style="bold", title="mIoU beside published numbers", title_justify="left"
    )
    table.add_column("model")
    for result in compared:
        table.add_column(escape(result.benchmark.name), justify="right")
    table.add_row(f"[bold]{escape(name)}", *(f"[bold]{result.scores.miou:.1f}" for result in compared))
    models = dict.fromkeys(model for result in compared for model in result.benchmark.published)
    for model in models:
        numbers = (result.benchmark.published.get(model) for result in compared)
        table.add_row(escape(model), *("-" if number is None else f"{number:.1f}" for number in numbers))
    return table


def print_results(results: Sequence[Result], name: str, console: Console) -> None:
    """The tables, and what keeps the numbers from being comparable."""
    console.print(results_table(results))
    table = published_table(results, name)
    if table:
        console.print()
        console.print(table)
    for result in results:
        expected = result.benchmark.val_images
        if expected not in (None, result.found):
            message = f"{result.benchmark.name}: {result.found:,} images found, {expected:,} expected"
            console.print(
                f"[yellow]{escape(message)}: not comparable with published numbers", highlight=False, soft_wrap=True
            )
        if result.evaluated < result.found:
            message = (
                f"{result.benchmark.name}: the first {result.evaluated:,} of {result.found:,} images only (--limit)"
            )
            console.print(f"[yellow]{escape(message)}", highlight=False, soft_wrap=True)


def as_json(
    results: Sequence[Result], failures: dict[str, tuple[str, str]], checkpoint: Loaded, options: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a run found, ready for JSON; ``failures``: benchmark -> ("absent" or "failed", message)."""
    return {
        "checkpoint": {"path": checkpoint.path, "kind": checkpoint.kind, "sha256": checkpoint.sha256},
        "options": options,
        "versions": versions(PACKAGES) | {"cuda": torch.version.cuda or "none"},
        "benchmarks": {result.benchmark.name: of_benchmark(result) for result in results}
        | {name: {"status": status, "message": message} for name, (status, message) in failures.items()},
    }


def of_benchmark(result: Result) -> dict[str, Any]:
    """The part of one benchmark."""
    benchmark, found = result.benchmark, result.scores
    return {
        "status": "done",
        "title": benchmark.title,
        "miou": number(found.miou),
        "pixel_accuracy": number(found.pixel_accuracy),
        "classes_that_occur": sum(not math.isnan(iou) for iou in found.iou),
        "images": {"evaluated": result.evaluated, "found": result.found, "expected": benchmark.val_images},
        "seconds": round(result.seconds, 3),
        "images_per_second": round(result.evaluated / result.seconds, 3),
        "published": dict(benchmark.published),
        "config": config_of(benchmark),
        "iou": {name: number(iou) for name, iou in zip(benchmark.classes, found.iou, strict=True)},
    }


def config_of(benchmark: Benchmark) -> dict[str, Any]:
    """What decided the numbers."""
    keys = "background bg_threshold resize_short resize_long_max crop stride ignore_index encoding raw_encoding"
    keys += " shrink_above shrink_long"
    return {key: getattr(benchmark, key) for key in keys.split()} | {"layout": vars(benchmark.layout)}


def number(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else round(value, 6)
