"""``cocu train``: light to import, for whoever asks for something else."""

from __future__ import annotations

import sys
from typing import Any

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


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    from training.cli import main as train  # imports Lightning

    words = underscored(sys.argv[1:] if arguments is None else arguments)
    return train(with_subcommand(words), prog=PROG)


def build_parser() -> Any:
    """The parser of ``cocu train fit``, whose options can be completed."""
    from training.cli import parser_of

    return parser_of("fit", PROG)
