"""``cocu show OUT [KEY...]``: print archives readably."""

from __future__ import annotations

import argparse

from rich.console import Console

from curation.base.options import CommandParser, positive
from curation.base.terminal import add_remote_option, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu show",
        description="Print archives: caption, captions of the visual neighbours, concepts as bars coloured by cluster.",
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run")
    parser.add_argument("keys", nargs="*", metavar="KEY", help="samples to show (default: the first few)")
    parser.add_argument(
        "--count", metavar="N", type=positive, default=3, help="how many when no key is given (default: 3)"
    )
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        from curation.run.run import open_run

        run = open_run(args.folder, args.allow_remote)
        from curation.tools.show import show  # imports torch, which a folder that is not there does without

        show(run, args.keys, args.count, Console())

    return run_command(work)
