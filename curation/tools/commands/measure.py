"""``cocu measure OUT``: do archives find what captions omit?"""

from __future__ import annotations

import argparse

from rich.console import Console

from curation.base.options import CommandParser, count
from curation.base.terminal import add_remote_option, run_command

FREQUENT = 10  # concepts that the second table leaves out


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu measure",
        description="Compare archives, by every expansion and ranking, with what json sidecars or a file say is visible.",
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run")
    parser.add_argument(
        "--fields",
        metavar="NAMES",
        default="objects,stuff",
        help="comma-separated: sidecar fields that list visible concepts (default: objects,stuff)",
    )
    parser.add_argument(
        "--truth",
        metavar="FILE",
        help="in place of sidecars: jsonl, csv, parquet or json with key and concepts or captions, or COCO's json",
    )
    parser.add_argument(
        "--without",
        type=count,
        default=FREQUENT,
        metavar="K",
        help=f"measure again without the K most frequent concepts; 0: do not (default: {FREQUENT})",
    )
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        from curation.run.run import open_run

        run = open_run(args.folder, args.allow_remote)
        from curation.tools.measure import report  # imports torch, which a folder that is not there does without

        report(run, args, Console())

    return run_command(work)
