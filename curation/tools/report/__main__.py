"""``cocu report OUT``: write ``OUT/report.html``."""

from __future__ import annotations

import argparse
import sys

from curation.base.terminal import add_remote_option, run_command
from curation.run.run import open_run
from curation.tools.report import write
from curation.tools.report.map import METHODS


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="cocu report", description="Write OUT/report.html: a finished run on one page."
    )
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument(
        "--map", choices=METHODS, help="also draw where images lie among each other (umap: pip install umap-learn)"
    )
    add_remote_option(parser)
    args = parser.parse_args(arguments)
    return run_command(lambda: print(write(open_run(args.folder, args.allow_remote), args.map)))


if __name__ == "__main__":
    sys.exit(main())
