"""``cocu eval``: zero-shot segmentation benchmarks."""

from __future__ import annotations

import argparse
import contextlib
import sys

from curation.base.logs import SpokenConsole, add_loudness, speak
from curation.base.options import CommandParser, positive
from curation.base.terminal import FAILED, run_command
from evaluation.benchmark import AbsentError, packaged, read_benchmark
from evaluation.options import threshold
from segmenters.paths import require_checkpoint

EPILOG = """\
examples:
  cocu eval --checkpoint artifacts/run/last.ckpt --benchmarks voc,ade20k --data-root /data
  cocu eval --checkpoint groupvit-folder --benchmarks mine.yaml --visualize 8 --save-predictions out

A benchmark whose files are absent is reported, the others are evaluated all the same, and the exit code is 1.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu eval",
        description="Zero-shot segmentation: mIoU of a GroupViT or a CLIP on packaged benchmarks and on your own.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "--checkpoint",
        help="the folder of a training run, which is its last checkpoint; a Lightning .ckpt, our folder, a Hugging Face "
        "folder, or a CLIP untrained for segmentation: "
        "open_clip:MODEL/TAG or local-dir:FOLDER, with another reading as @sclip, @naclip or @maskclip (default: newest "
        ".ckpt in artifacts/)",
    )
    parser.add_argument(
        "--benchmarks",
        "--benchmark",
        metavar="NAMES",
        required=True,
        help=f"comma-separated: any of {', '.join(packaged())}, and YAML files",
    )
    parser.add_argument("--data-root", default="data", help="folder of the packaged benchmarks' data (default: data)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="results (default: artifacts/evaluation/<checkpoint>/results.json)"
    )
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
    add_loudness(parser)
    return parser


def check_paths(args: argparse.Namespace) -> None:
    """Raises CocuError for what is plainly wrong, before anything heavy is imported: unknown benchmarks, no checkpoint."""
    ours = packaged()
    for name in map(str.strip, args.benchmarks.split(",")):
        if name and name not in ours:
            with contextlib.suppress(AbsentError):  # others are evaluated all the same
                read_benchmark(name, args.data_root)
    require_checkpoint(args.checkpoint)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)
    words = ["cocu", "eval", *(sys.argv[1:] if arguments is None else arguments)]
    console = SpokenConsole(quiet=args.quiet)
    is_verbose = args.verbose
    del args.quiet, args.verbose  # of which no result follows: it records the others

    def work() -> int:
        check_paths(args)
        from evaluation.suite import evaluate_all  # imports torch, which --help does without

        with speak(is_verbose):
            return FAILED if evaluate_all(args, console, words) else 0

    return run_command(
        work, "interrupted; results of the benchmarks before are kept, name the others with --benchmarks"
    )


if __name__ == "__main__":
    sys.exit(main())
