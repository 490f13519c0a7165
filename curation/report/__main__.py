"""``python -m curation.report OUT``: write ``OUT/report.html``."""

from __future__ import annotations

import argparse
import sys

from curation.errors import CurationError
from curation.outputs import open_outputs
from curation.report import write


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.report", description="Write OUT/report.html: a finished curation as one page."
    )
    parser.add_argument("folder", help="output folder of a finished curation")
    given = parser.parse_args(arguments)
    try:
        print(write(open_outputs(given.folder)))
    except CurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
