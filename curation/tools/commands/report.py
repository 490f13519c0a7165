"""``cocu report OUT``: write ``OUT/report.html``."""

from __future__ import annotations

import argparse

from curation.base.options import CommandParser
from curation.base.terminal import add_remote_option, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(prog="cocu report", description="Write OUT/report.html: a finished run on one page.")
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run")
    parser.add_argument(
        "--map",
        choices=("pca", "umap"),
        help="also draw where images lie among each other (umap: pip install umap-learn)",
    )
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        from curation.run.run import open_run

        run = open_run(args.folder, args.allow_remote)
        from curation.tools.report import write  # imports torch, which a folder that is not there does without

        print(write(run, args.map))

    return run_command(work)
