"""``python -m evaluation``: zero-shot segmentation benchmarks."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from curation.base.configuration import require
from curation.base.devices import find_device
from curation.base.errors import CocuError
from curation.base.files import write_json
from curation.base.terminal import FAILED, run_command
from evaluation.benchmark import AbsentError, Benchmark, packaged, read_benchmark, repeated
from evaluation.evaluate import Prediction, Result, evaluate
from evaluation.pictures import comparison
from evaluation.report import as_json, print_results
from segmenters.checkpoint import Loaded, latest, load

EPILOG = """\
examples:
  python -m evaluation --checkpoint artifacts/run/last.ckpt --benchmarks voc,ade20k --data-root /data
  python -m evaluation --checkpoint groupvit-folder --benchmarks mine.yaml --visualize 8 --save-predictions out

A benchmark whose files are absent is named, the others go on, and the exit code is 1.
"""


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Zero-shot segmentation: mIoU of a GroupViT on packaged benchmarks and on your own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--checkpoint",
        help="our folder, a Lightning .ckpt or a Hugging Face folder (default: newest .ckpt in artifacts/)",
    )
    made.add_argument("--benchmarks", required=True, help=f"comma list of {', '.join(packaged())} and YAML files")
    made.add_argument("--data-root", default="data", help="folder of the packaged benchmarks' data (default: data)")
    made.add_argument("--output", help="results (default: artifacts/evaluation/<checkpoint>/results.json)")
    made.add_argument("--save-predictions", metavar="DIR", help="write DIR/<benchmark>/<id>.png: class index per pixel")
    made.add_argument(
        "--visualize",
        metavar="N",
        type=positive,
        default=0,
        help="draw the first N images of each benchmark into pictures/<benchmark>/ beside the results",
    )
    made.add_argument("--limit", metavar="N", type=positive, help="evaluate the first N images of each benchmark only")
    made.add_argument("--batch-size", type=positive, default=16, help="windows encoded together (default: 16)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return made


class RateColumn(ProgressColumn):
    """Images per second since the start: images come in bursts, a batch at a time."""

    def render(self, task: Any) -> Text:
        """The text for one task."""
        return Text(f"{task.completed / task.elapsed:.1f} images/s" if task.elapsed else "")


class Files:
    """Writes predictions and pictures as they come."""

    def __init__(self, benchmark: Benchmark, predictions: str | None, pictures: str, drawn: int) -> None:
        self.benchmark, self.drawn = benchmark, drawn
        self.predictions = os.path.join(predictions, benchmark.name) if predictions else None
        self.pictures = os.path.join(pictures, benchmark.name)

    def write(self, prediction: Prediction) -> None:
        """What was asked for of one image."""
        name = prediction.sample.name + ".png"
        if self.predictions:
            kind = np.uint8 if len(self.benchmark.classes) <= 256 else np.uint16
            save(Image.fromarray(prediction.predicted.astype(kind)), os.path.join(self.predictions, name))
        if prediction.index < self.drawn:
            save(comparison(prediction, self.benchmark), os.path.join(self.pictures, name))


def save(image: Image.Image, path: str) -> None:
    """Write a PNG and the folders above it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image.save(path)


def run(given: argparse.Namespace, console: Console) -> dict[str, tuple[str, str]]:
    """Evaluate; returns the benchmarks that could not be, as name -> (status, message)."""
    device = find_device(given.device)
    failures: dict[str, tuple[str, str]] = {}
    benchmarks = read_all(given, failures, console)
    checkpoint = load(given.checkpoint or latest())
    checkpoint.model.to(device)
    name = name_of(Path(checkpoint.path))
    output = given.output or os.path.join("artifacts", "evaluation", name, "results.json")
    pictures = os.path.join(os.path.dirname(output), "pictures")
    size = sum(value.numel() for value in checkpoint.model.parameters()) / 1e6
    console.print(
        f"Evaluating {checkpoint.path} ({checkpoint.kind}, {size:.1f} M parameters) on {device}, fp32",
        soft_wrap=True,
        highlight=False,
    )
    results: list[Result] = []
    options = vars(given) | {"device": device}
    for benchmark in benchmarks:
        files = Files(benchmark, given.save_predictions, pictures, given.visualize)
        try:
            results.append(one(checkpoint, benchmark, given, files, console))
        except CocuError as error:
            note(failures, benchmark.name, error, console)
        write_json(output, as_json(results, failures, checkpoint, options))
    write_json(output, as_json(results, failures, checkpoint, options))
    if results:
        console.print()
        print_results(results, name, console)
        console.print(f"\n{output} has the IoU of every class", highlight=False, soft_wrap=True)
    if given.visualize and results:
        console.print(f"Pictures are in {pictures}", highlight=False, soft_wrap=True)
    return failures


def name_of(checkpoint: Path) -> str:
    """What a checkpoint's results are kept under: last.ckpt of every run would be called last otherwise."""
    run = checkpoint.absolute().parent
    return f"{run.parent.name}-{checkpoint.stem}" if run.name == "checkpoints" else checkpoint.stem


def read_all(given: argparse.Namespace, failures: dict[str, tuple[str, str]], console: Console) -> list[Benchmark]:
    """The benchmarks that were asked for. Raises CocuError for a bad description: before any work."""
    names = [name.strip() for name in given.benchmarks.split(",") if name.strip()]
    require(bool(names), "benchmarks: none is named")
    found = []
    for name in names:
        try:
            found.append(read_benchmark(name, given.data_root))
        except AbsentError as error:
            note(failures, Path(name).stem, error, console)
    twice = repeated([*failures, *(benchmark.name for benchmark in found)])
    require(twice is None, f"benchmarks: two are called {twice}; results are kept by name")
    return found


def note(failures: dict[str, tuple[str, str]], name: str, error: CocuError, console: Console) -> None:
    """Record and print why a benchmark has no result."""
    status = "absent" if isinstance(error, AbsentError) else "failed"
    failures[name] = status, str(error)
    console.print(f"[bold red]{status}:[/] {escape(name)}: {escape(str(error))}", highlight=False, soft_wrap=True)


def one(checkpoint: Loaded, benchmark: Benchmark, given: argparse.Namespace, files: Files, console: Console) -> Result:
    """Evaluate one benchmark with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(benchmark.name), total=None, visible=False)

        def on_start(found: int, count: int) -> None:
            expected = "" if benchmark.val_images is None else f" of {benchmark.val_images:,} expected"
            title = benchmark.title or benchmark.name
            progress.console.print(f"{escape(title)}: {found:,} images found{expected}", highlight=False)
            progress.update(task, total=count, visible=True)

        def on_image(prediction: Prediction) -> None:
            files.write(prediction)
            progress.advance(task)

        return evaluate(
            checkpoint.model,
            benchmark,
            batch_size=given.batch_size,
            limit=given.limit,
            drawn=given.visualize,
            on_start=on_start,
            on_image=on_image,
        )


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    given = parser().parse_args(arguments)
    return run_command(lambda: FAILED if run(given, Console()) else 0)


if __name__ == "__main__":
    sys.exit(main())
