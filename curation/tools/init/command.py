"""The command line of ``cocu init``."""

from __future__ import annotations

import argparse
import os
import shlex

from rich.console import Console

from curation.base.errors import CocuError
from curation.base.options import CommandParser
from curation.base.terminal import printable, run_command

EPILOG = """\
examples:
  cocu init data/*.tar
  cocu init data -o photographs.yaml
  cocu init 'https://example.org/cc3m/{00000..00331}.tar'

The name of the file is that of the run: my-data.yaml for tars in the folder data, whose archives will be in
artifacts/my-data. Nothing that is there is overwritten.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu init",
        description="Write a configuration for curation, with comments, after a look at the data.",
        epilog=EPILOG,
    )
    parser.add_argument("sources", nargs="*", metavar="TARS|FOLDER", help="tars, patterns, or folders (default: data)")
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write (default: my-FOLDER.yaml)")
    parser.add_argument(
        "--encoder",
        metavar="MODEL[/TAG]",
        default="ViT-B-16/openai",
        help="open_clip's name and weights, hf-hub:ORG/NAME or local-dir:FOLDER (default: %(default)s)",
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: init(args, Console(highlight=False, soft_wrap=True)))


def init(args: argparse.Namespace, console: Console) -> None:
    """Look at the data and write the file. Raises CocuError."""
    from curation.tools.init.settings import checked, configuration, run_name  # imports pyarrow
    from curation.tools.init.shards import find_shards, folder_of
    from curation.tools.init.survey import look

    paths = find_shards(args.sources or ["data"])
    path = args.output or f"my-{run_name(folder_of(paths)).removeprefix('my-')}.yaml"
    if not path.endswith((".yaml", ".yml")):
        raise CocuError(f"--output: {path} must end in .yaml")
    if os.path.lexists(path):
        raise CocuError(f"{path}: is there already, and is not overwritten; remove it, or name another file with -o")

    survey = look(paths)
    text = configuration(survey, path, args.encoder)
    checked(text, path, paths)
    try:
        with open(path, "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise CocuError(f"{path}: cannot be written ({error.strerror}); name another file with -o") from None
    for line in survey.lines():
        console.print(printable(line), markup=False)
    console.print(f"Written: {printable(path)}\nNext: cocu curate {shlex.quote(path)}", markup=False)
