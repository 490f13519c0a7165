"""``cocu verify OUT``: is a finished run what it says it is?"""

from __future__ import annotations

import argparse

from curation.base.options import CommandParser, count
from curation.base.terminal import add_remote_option, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu verify",
        description="Check counts, schemas, order, bounds and fingerprints, and compute a sample of archives again.",
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run")
    parser.add_argument(
        "--sample", metavar="N", type=count, default=100, help="archives to compute again (default: 100)"
    )
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code: 0 when all is OK."""
    args = build_parser().parse_args(arguments)

    def work() -> int:
        from curation.run.run import open_run

        run = open_run(args.folder, args.allow_remote)
        from curation.tools.verify import report  # imports torch, which a folder that is not there does without

        return report(run, args.sample)

    return run_command(work)
