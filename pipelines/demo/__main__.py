"""``cocu demo [FOLDER]``: make the demo world."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console

from curation.base.options import CommandParser, positive
from curation.base.terminal import run_command
from pipelines.demo.progress import make_with_progress
from pipelines.demo.world import FOLDER, WorldConfig


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu demo",
        description="Make the demo world: scenes with captions and masks, in shards and in PASCAL VOC's layout.",
    )
    defaults = WorldConfig()
    parser.add_argument(
        "folder", metavar="FOLDER", nargs="?", default=FOLDER, help=f"output folder (default: {FOLDER})"
    )
    parser.add_argument(
        "--shards", metavar="N", type=int, default=defaults.shards, help=f"number of tars (default: {defaults.shards})"
    )
    parser.add_argument(
        "--scenes", metavar="N", type=int, default=defaults.scenes, help=f"scenes per tar (default: {defaults.scenes})"
    )
    parser.add_argument(
        "--validation",
        metavar="N",
        type=int,
        default=defaults.validation,
        help=f"scenes of the benchmark (default: {defaults.validation})",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=defaults.seed, help="random seed (default: 0)")
    parser.add_argument(
        "--workers",
        "--processes",
        metavar="N",
        dest="processes",
        type=positive,
        default=2,
        help="processes that draw (default: 2)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        config = WorldConfig(args.shards, args.scenes, args.validation, args.seed)
        if not make_with_progress(args.folder, Console(), config, args.processes):
            print(f"{args.folder}: already made, nothing to do")

    return run_command(work, "interrupted; nothing is left behind")


if __name__ == "__main__":
    sys.exit(main())
