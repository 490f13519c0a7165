"""Several benchmarks one after another: one that fails is recorded, and the others are evaluated all the same."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from curation.base.configuration import require
from curation.base.devices import find_device
from curation.base.errors import CocuError
from curation.base.files import read_note, write_json
from curation.base.logs import log_to
from evaluation.benchmark import AbsentError, Benchmark, read_benchmark, repeated
from evaluation.evaluate import Prediction, Result, choose_threshold, evaluate
from evaluation.options import AUTO
from evaluation.pictures import comparison
from evaluation.report import Failure, as_json, print_results
from evaluation.results import merge, own_pictures
from evaluation.threshold import Curve
from segmenters.checkpoint import latest
from segmenters.opening import Opened, open_segmenter
from segmenters.pretrained import is_name, parse

LOG = "eval.log"  # beside the results


def evaluate_all(args: argparse.Namespace, console: Console, words: Sequence[str] = ()) -> dict[str, Failure]:
    """Evaluate what the command line asks for and write results.json, which keeps what earlier runs found.

    ``words``: the command, for the log file beside it. Returns the benchmarks without a result.

    Raises CocuError for what is wrong before any work.
    """
    device = find_device(args.device)
    failures: dict[str, Failure] = {}
    benchmarks = read_benchmarks(args, failures, console)
    checkpoint = open_segmenter(args.checkpoint or latest())
    checkpoint.model.to(device)

    name = results_name(checkpoint.path)
    output = args.output or os.path.join("artifacts", "evaluation", name, "results.json")
    with log_to(os.path.join(os.path.dirname(output), LOG), words):
        _evaluate(args, benchmarks, checkpoint, device, output, failures, console)
    return failures


def _evaluate(
    args: argparse.Namespace,
    benchmarks: list[Benchmark],
    checkpoint: Opened,
    device: str,
    output: str,
    failures: dict[str, Failure],
    console: Console,
) -> None:
    """Evaluate and write ``output``; adds to ``failures``."""
    pictures = os.path.join(os.path.dirname(output), "pictures")
    millions = sum(parameter.numel() for parameter in checkpoint.model.parameters()) / 1e6
    _say(
        console,
        f"Evaluating {checkpoint.path} ({checkpoint.kind}, {millions:.1f} M parameters) on {device}, fp32",
    )

    results: list[Result] = []
    options = vars(args) | {"device": device}
    before = read_note(output)
    for benchmark in benchmarks:
        writer = ImageWriter(benchmark, args.save_predictions, pictures, args.visualize)
        if args.visualize:
            own_pictures(writer.pictures, checkpoint.sha256)
        try:
            cut, curve = with_threshold(checkpoint, benchmark, args, console)
            result = evaluate_one(checkpoint, cut, args, writer, console)
            results.append(dataclasses.replace(result, curve=curve))
        except CocuError as error:
            note(failures, benchmark.name, error, console)
        write_json(output, merge(before, as_json(results, failures, checkpoint, options)))
    write_json(output, merge(before, as_json(results, failures, checkpoint, options)))

    if results:
        console.print()
        print_results(results, results_name(checkpoint.path), console)
        _say(console, f"\n{output} has the IoU of every class")
    if args.visualize and results:
        _say(console, f"Pictures are in {pictures}")


def results_name(name: str) -> str:
    """What a checkpoint's results are kept under: last.ckpt of every run would be called last otherwise.

    >>> results_name("artifacts/training/cocu_demo/checkpoints/last.ckpt"), results_name("open_clip:ViT-B-16/openai@sclip")
    ('cocu_demo-last', 'ViT-B-16-openai-sclip')
    """
    if is_name(name):
        source = parse(name).source
        options = name.removeprefix(source).lstrip("@")
        schema, _, rest = source.partition(":")
        model = rest.replace("/", "-") if schema == "open_clip" else _name_of(Path(rest))
        return "-".join([model, *filter(None, re.split("[,=]", options))])

    checkpoint = Path(name)
    run = checkpoint.absolute().parent
    if run.name == "checkpoints":
        return f"{run.parent.name}-{checkpoint.stem}"
    named = Path(_name_of(checkpoint))
    return named.name if named.suffix[1:].isdecimal() else named.stem  # model-1.5 and model-1.6 are two


def _name_of(folder: Path) -> str:
    """What a folder is called, also one that is named by dots."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def read_benchmarks(args: argparse.Namespace, failures: dict[str, Failure], console: Console) -> list[Benchmark]:
    """The benchmarks that were asked for. Raises CocuError for a bad description: before any work."""
    names = [name.strip() for name in args.benchmarks.split(",") if name.strip()]
    require(bool(names), "benchmarks: none is named")
    benchmarks = []
    for name in names:
        try:
            benchmarks.append(read_benchmark(name, args.data_root))
        except AbsentError as error:
            note(failures, Path(name).stem, error, console)

    twice = repeated([*failures, *(benchmark.name for benchmark in benchmarks)])
    require(twice is None, f"benchmarks: two are called {twice}; results are kept by name")
    return benchmarks


def note(failures: dict[str, Failure], name: str, error: CocuError, console: Console) -> None:
    """Record and print why a benchmark has no result."""
    failure = Failure("absent" if isinstance(error, AbsentError) else "failed", str(error))
    failures[name] = failure
    line = f"[bold red]{failure.status}:[/] {escape(name)}: {escape(failure.message)}"
    console.print(line, highlight=False, soft_wrap=True)


def _say(console: Console, line: str) -> None:
    """Print a line as it is: paths in it may be copied."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


# --- one benchmark ------------------------------------------------------------------------------------------------------


class ImageWriter:
    """Writes predictions and pictures of one benchmark as they come."""

    def __init__(self, benchmark: Benchmark, predictions: str | None, pictures: str, visualize: int) -> None:
        self.benchmark = benchmark
        self.visualize = visualize
        self.predictions = os.path.join(predictions, benchmark.name) if predictions else None
        self.pictures = os.path.join(pictures, benchmark.name)

    def write(self, prediction: Prediction) -> None:
        """What was asked for of one image."""
        name = prediction.name + ".png"
        if self.predictions:
            dtype = np.uint8 if len(self.benchmark.classes) <= 256 else np.uint16
            save_png(Image.fromarray(prediction.predicted.astype(dtype)), os.path.join(self.predictions, name))
        if prediction.index < self.visualize:
            save_png(comparison(prediction, self.benchmark), os.path.join(self.pictures, name))


def save_png(image: Image.Image, path: str) -> None:
    """Write a PNG and the folders above it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    image.save(path)


class RateColumn(ProgressColumn):
    """Images per second since the start: images come in bursts, a batch at a time."""

    def render(self, task: Task) -> Text:
        """The text for one task."""
        return Text(f"{task.completed / task.elapsed:.1f} images/s" if task.elapsed else "")


def with_threshold(
    checkpoint: Opened, benchmark: Benchmark, args: argparse.Namespace, console: Console
) -> tuple[Benchmark, Curve | None]:
    """The benchmark with the threshold of its background that ``--bg-threshold`` asks for, and what it was chosen by.

    Raises CocuError where none can be chosen.
    """
    if args.bg_threshold is None:
        return benchmark, None
    if not benchmark.background:
        _say(console, f"{benchmark.name}: has no background, so that --bg-threshold does not apply")
        return benchmark, None
    if args.bg_threshold != AUTO:
        return dataclasses.replace(benchmark, bg_threshold=args.bg_threshold), None

    curve = choose_threshold(checkpoint.model, benchmark, args.batch_size, args.limit)
    before = benchmark.bg_threshold
    _say(
        console, f"{benchmark.name}: bg_threshold {curve.best:.3f}, chosen without labels; its description has {before}"
    )
    shares = (f"{at:.1f}: {np.interp(at, curve.thresholds, curve.background):.0%}" for at in np.arange(1, 10) / 10)
    _say(console, f"  pixels that become background, by threshold: {', '.join(shares)}")
    return dataclasses.replace(benchmark, bg_threshold=curve.best), curve


def evaluate_one(
    checkpoint: Opened, benchmark: Benchmark, args: argparse.Namespace, writer: ImageWriter, console: Console
) -> Result:
    """Evaluate one benchmark with a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(benchmark.name), total=None, visible=False)

        def on_start(available: int, count: int) -> None:
            expected = "" if benchmark.val_images is None else f" of {benchmark.val_images:,} expected"
            title = benchmark.title or benchmark.name
            progress.console.print(f"{escape(title)}: {available:,} images found{expected}", highlight=False)
            progress.update(task, total=count, visible=True)

        def on_image(prediction: Prediction) -> None:
            writer.write(prediction)
            progress.advance(task)

        return evaluate(
            checkpoint.model,
            benchmark,
            batch_size=args.batch_size,
            limit=args.limit,
            groups_of=args.visualize,
            on_start=on_start,
            on_image=on_image,
        )
