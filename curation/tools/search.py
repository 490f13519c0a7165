"""``cocu search OUT "red fox"``: print the images of a run that are nearest to words, or to a picture."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from curation.base import files
from curation.base.options import CommandParser, positive
from curation.base.terminal import add_remote_option, plain_table, printable, run_command

SHOWN = 8  # concepts of each image


def show(folder: str, allow_remote: bool, words: str, image: str, count: int, console: Console) -> None:
    """Print the nearest images of a finished run: cosine, shard, key, caption, and the best concepts of the archive."""
    from curation.base.embeddings import normalise
    from curation.base.parquet import row_count
    from curation.run.run import open_run

    run = open_run(folder, allow_remote)
    if image:
        files.open_file(image).close()
    from curation.tools.finder import Finder  # imports torch, which paths that are not there do without

    finder = Finder(run)
    queries = ([finder.embed_picture(image)] if image else []) + ([finder.embed_words(words)] if words else [])
    rows, cosines = finder.nearest(normalise(sum(queries, np.zeros(1, np.float32))), count)

    starts = np.cumsum([0, *map(row_count, run.of_shards("archives"))])
    shards = np.searchsorted(starts, rows, side="right") - 1
    paths = [run.of_shard("archives", run.shards[number]) for number in shards]
    archives = read_rows(paths, rows - starts[shards])
    table = plain_table(
        ("cosine", "shard", "key", "caption", "concepts"), ("shard", "key", "caption", "concepts"), gap=2
    )
    for column in table.columns[3:]:
        column.no_wrap = False
    for cosine, number, archive in zip(cosines.tolist(), shards.tolist(), archives, strict=True):
        best = ", ".join(entry["concept"] for entry in archive["concepts"][:SHOWN])
        values = (run.shards[number].name, archive["key"], archive["caption"], best)
        table.add_row(f"{cosine:.3f}", *(escape(printable(value)) for value in values))
    console.print(table)


def read_rows(paths: list[str], rows: np.ndarray) -> list[dict[str, Any]]:
    """The archives at some rows of files, in order; each file is read once."""
    from curation.archive import read_archive

    archives: list[dict[str, Any]] = [{}] * len(paths)
    for path in dict.fromkeys(paths):
        positions = [position for position, other in enumerate(paths) if other == path]
        for position, archive in zip(positions, read_archive(path).take(rows[positions]).to_pylist(), strict=True):
            archives[position] = archive
    return archives


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu search", description="Print the images of a run that are nearest to words or to a picture."
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run")
    parser.add_argument("words", nargs="?", help='what to look for, such as "red fox"')
    parser.add_argument("--image", metavar="FILE", help="a picture to look for, alone or together with words")
    parser.add_argument("--count", metavar="N", type=positive, default=12, help="how many images (default: 12)")
    add_remote_option(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if not (args.words or args.image):
        parser.error("give words, or --image FILE")

    return run_command(
        lambda: show(args.folder, args.allow_remote, args.words or "", args.image or "", args.count, Console())
    )


if __name__ == "__main__":
    sys.exit(main())
