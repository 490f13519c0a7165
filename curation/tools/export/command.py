"""``cocu export OUT --format NAME``: archives in the forms that other programs read."""

from __future__ import annotations

import argparse
import dataclasses
import os
import textwrap
import typing

from curation.archive import ConceptArchive, Filter
from curation.base import files
from curation.base.configuration import attribute_docs
from curation.base.options import CommandParser, positive
from curation.base.terminal import add_remote_option, printable, run_command
from curation.tools.export.export import FORMATS, TEXT, Export

DUPLICATES = "duplicates"  # a list in place of archives
EXAMPLES = """\
examples:
  cocu export artifacts/cc12m --format webdataset --to data/cc12m
  cocu export artifacts/cc12m --format jsonl --top 5 --support 2
  cocu export artifacts/cc12m --format csv --omitted --top 3 --text "{caption}. Also: {concepts}"
  cocu export artifacts/cc12m --format archives --concept fox --concept wolf --to artifacts/foxes
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu export",
        description="Write concept archives in other formats. The archives themselves are not changed.",
        epilog=f"formats:\n{_formats()}\n\n{EXAMPLES}",
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run, local or a URL")
    parser.add_argument(
        "--format", required=True, choices=(*FORMATS, DUPLICATES), help="what to write: see the formats below"
    )
    parser.add_argument(
        "-o", "--output", "--to", dest="to", metavar="FOLDER", help="folder to write into (default: OUT/export/FORMAT)"
    )
    add_filter_options(parser)
    parser.add_argument(
        "--concept", action="append", help="only the archives that hold this concept; several: one of them"
    )
    add_remote_option(parser)
    parser.add_argument("--text", default=TEXT, help="the title of csv (default: %(default)r)")
    parser.add_argument(
        "--identities",
        action="store_true",
        help="of archives: also write by what pictures are known in another download (cocu match), which reads the tars",
    )
    parser.add_argument("--workers", type=positive, default=1, help="processes (default: 1)")
    return parser


def _formats() -> str:
    """Every format with its sentence, wrapped."""
    indent = " " * 14
    sentences = {name: row.sentence for name, row in FORMATS.items()}
    sentences[DUPLICATES] = (
        "duplicates.csv: shard and key of every image that is near-identical to another one, and of that one, which is "
        "kept: what to delete"
    )
    lines = [
        textwrap.fill(f"  {name:<12}{sentence}", 120, subsequent_indent=indent) for name, sentence in sentences.items()
    ]
    return "\n".join(lines)


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """An option for every condition of a filter."""
    texts = attribute_docs(Filter)
    kinds = typing.get_type_hints(Filter)
    for field in dataclasses.fields(Filter):
        if kinds[field.name] is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=texts[field.name])
        else:
            kind = next(
                kind for kind in (float, int) if kind in (typing.get_args(kinds[field.name]) or [kinds[field.name]])
            )
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=texts[field.name])


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    conditions = {field.name: getattr(args, field.name) for field in dataclasses.fields(Filter)}

    def work() -> None:
        archive = ConceptArchive.open(args.folder, args.allow_remote).filter(**conditions)
        archive = archive.filter(concept=args.concept) if args.concept else archive
        folder = args.to or files.join(args.folder, "export", args.format)
        if args.format == DUPLICATES:
            from curation.tools.copies import write_list  # imports FAISS

            print(f"{printable(folder)}: {write_list(archive, folder):,} images to delete, in duplicates.csv")
            return
        folder = folder if files.is_remote(folder) else os.path.abspath(folder)  # csv is read from anywhere
        count = Export(archive, folder, args.format, args.text, args.identities).write(args.workers)
        print(f"{printable(folder)}: {count:,} samples of {len(archive.shards):,} shards as {args.format}")

    return run_command(work)
