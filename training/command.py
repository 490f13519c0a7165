"""``cocu train``: light to import, for whoever asks for something else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from curation.base import files
from curation.base.configuration import require, require_one_of
from curation.base.options import EMPTY
from curation.base.terminal import run_command

PROG = "cocu train"
SUBCOMMANDS = ("fit", "validate", "test")


def underscored(arguments: list[str]) -> list[str]:
    """Arguments whose options are spelt as Lightning has them: hyphens, as other commands of ours have, do too.

    >>> underscored(["--save-every=10", "--trainer.max-epochs", "a-b"])
    ['--save_every=10', '--trainer.max_epochs', 'a-b']
    """
    split = (word.partition("=") for word in arguments)
    return [
        "--" + name.removeprefix("--").replace("-", "_") + equals + value
        if name.startswith("--")
        else name + equals + value
        for name, equals, value in split
    ]


def with_subcommand(arguments: list[str]) -> list[str]:
    """Arguments with what is to be done in front: to fit, unless they say so themselves.

    >>> with_subcommand(["--config", "x.yaml"]), with_subcommand(["validate", "--ckpt_path", "best"])
    (['fit', '--config', 'x.yaml'], ['validate', '--ckpt_path', 'best'])
    """
    return arguments if arguments and arguments[0] in SUBCOMMANDS else ["fit", *arguments]


def values_of(arguments: list[str], *options: str) -> Iterator[str]:
    """What options are given, as ``--option value`` or ``--option=value``.

    >>> list(values_of(["--config", "a.yaml", "--config=b.yaml", "--output", "c"], "--config"))
    ['a.yaml', 'b.yaml']
    """
    for word, following in pairwise([*arguments, ""]):
        name, equals, value = word.partition("=")
        if name in options:
            yield value if equals else following


def check_paths(arguments: list[str]) -> None:
    """Raises CocuError for paths that are not there, which need not wait until Lightning is imported."""
    first = arguments[0] if arguments else ""
    require(not arguments or bool(first), f"{PROG}: the first argument {EMPTY}")
    require(
        not first.endswith((".yaml", ".yml")),
        f"{first}: a configuration is named by --config: {PROG} --config {first}",
    )
    if first and not first.startswith("-"):
        require_one_of(PROG, first, SUBCOMMANDS)
    for path in values_of(arguments, "--config", "-c"):
        require(bool(path), f"--config {EMPTY}")
        problem = "is a folder" if os.path.isdir(path) else "no such file"
        require(os.path.isfile(path), f"{path}: {problem}; name a YAML file of training")
    for folder in values_of(arguments, "--data.archives"):
        is_list = folder.startswith("[")
        if folder and not is_list and not files.is_remote(folder) and not os.path.exists(folder):
            from curation.archive import ConceptArchive

            ConceptArchive.open(folder)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    words = underscored(sys.argv[1:] if arguments is None else arguments)

    def work() -> int:
        for module in ("lightning", "jsonargparse"):  # of the extra: who has not got it, needs that first
            if find_spec(module) is None:
                raise ModuleNotFoundError(name=module)
        check_paths(words)
        from training.cli import main as train  # imports Lightning

        return train(with_subcommand(words), prog=PROG)

    return run_command(work)


def build_parser() -> Any:
    """The parser of ``cocu train fit``, whose options can be completed."""
    from training.cli import parser_of

    return parser_of("fit", PROG)
