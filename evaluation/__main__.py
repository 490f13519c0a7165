"""``python -m evaluation``: zero-shot segmentation benchmarks."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from curation.base.terminal import FAILED, run_command
from evaluation.benchmark import packaged
from evaluation.suite import evaluate_all
from evaluation.threshold import AUTO

EPILOG = """\
examples:
  python -m evaluation --checkpoint artifacts/run/last.ckpt --benchmarks voc,ade20k --data-root /data
  python -m evaluation --checkpoint groupvit-folder --benchmarks mine.yaml --visualize 8 --save-predictions out

A benchmark whose files are absent is reported, the others are evaluated all the same, and the exit code is 1.
"""


def positive(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


def threshold(text: str) -> float | str:
    """A number from 0 to 1, or auto."""
    if text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number from 0 to 1 nor {AUTO}")
    return value


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation",
        description="Zero-shot segmentation: mIoU of a GroupViT or a CLIP on packaged benchmarks and on your own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        help="our folder, a Lightning .ckpt, a Hugging Face folder, or a CLIP untrained for segmentation: "
        "open_clip:MODEL/TAG or local-dir:FOLDER, with another reading as @sclip, @naclip or @maskclip (default: newest "
        ".ckpt in artifacts/)",
    )
    parser.add_argument(
        "--benchmarks", required=True, help=f"comma-separated: any of {', '.join(packaged())}, and YAML files"
    )
    parser.add_argument("--data-root", default="data", help="folder of the packaged benchmarks' data (default: data)")
    parser.add_argument("--output", help="results (default: artifacts/evaluation/<checkpoint>/results.json)")
    parser.add_argument(
        "--save-predictions", metavar="DIR", help="write DIR/<benchmark>/<id>.png: class index per pixel"
    )
    parser.add_argument(
        "--visualize",
        metavar="N",
        type=positive,
        default=0,
        help="draw the first N images of each benchmark into pictures/<benchmark>/ beside the results",
    )
    parser.add_argument(
        "--limit", metavar="N", type=positive, help="evaluate only the first N images of each benchmark"
    )
    parser.add_argument(
        "--bg-threshold",
        metavar="T",
        type=threshold,
        help="in place of the benchmark's: a number from 0 to 1, or auto, which chooses one by the images, without labels, "
        "and reports the curve that it was chosen by",
    )
    parser.add_argument("--batch-size", type=positive, default=16, help="windows encoded together (default: 16)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: FAILED if evaluate_all(args, Console()) else 0)


if __name__ == "__main__":
    sys.exit(main())
