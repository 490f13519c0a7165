"""The command line of packing."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from curation.base.options import CommandParser
from curation.base.terminal import RESUMABLE, run_command

EPILOG = """\
sources:
  a folder      images in it and in folders in it; captions in .txt files beside them, in captions.csv, .tsv, .jsonl, .json
                or .parquet (or metadata.csv, .jsonl, .parquet) in the folder, or in json sidecars; also what img2dataset
                writes as "files" or "parquet"
  a table       .csv, .tsv, .jsonl, .json or .parquet with file names and captions; file names are relative to the table
  a list        .txt with one file name per line, and maybe a tab and the caption
  a tar         that is unsorted, has dots in names, or has its captions in json

examples:
  cocu pack some-photos -o packed/{}.tar
  cocu pack captions.csv --images photos --caption-column title -o packed/{}.tar
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu pack",
        description="Pack images and captions into sorted tars with safe keys, ready to be curated.",
        epilog=EPILOG,
    )
    parser.add_argument("source", type=Path, help="folder, table, list or tar")
    parser.add_argument("-o", "--output", default="packed/{}.tar", help="the tars; {} is their number (%(default)s)")
    parser.add_argument("--captions", type=Path, help="table of captions for a folder (default: captions.* in it)")
    parser.add_argument("--images", type=Path, help="folder that the file names of a table are relative to")
    parser.add_argument("--image-column", help="column with file names or images (default: the first of a usual name)")
    parser.add_argument(
        "--caption-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column, or field of json, with captions (default: the same); once for each of several, txt for a file",
    )
    parser.add_argument("--count", type=int, default=10_000, help="samples in a tar, at most (default: 10,000)")
    parser.add_argument("--size", default="1G", help="bytes after which a new tar begins (default: 1G)")
    parser.add_argument("--name", help="name of the data set (default: that of the source)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        from curation.tools.pack.packing import pack

        pack(args, Console())

    return run_command(work, RESUMABLE)
