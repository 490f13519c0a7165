"""Command lines of one style: options are never abbreviated, and a wrong one is one line that names the nearest."""

from __future__ import annotations

import argparse
import re
import sys
from typing import Any, NoReturn

from curation.base.configuration import did_you_mean
from curation.base.terminal import print_error

WRONG = 2  # exit code
EMPTY = "is an empty text; is a variable of the shell not set?"


class CommandParser(argparse.ArgumentParser):
    """The parser of every command but training's, which is Lightning's."""

    def __init__(self, prog: str, description: str, epilog: str | None = None, **options: Any) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """As argparse does; an argument without a text is an error."""
        if arg_string == "" and not action.option_strings:
            raise argparse.ArgumentError(action, EMPTY)
        return super()._get_value(action, arg_string)

    def error(self, message: str) -> NoReturn:
        """Print one line with the nearest option and where help is, and exit with 2."""
        unknown = re.search(r"unrecognized arguments: .*?(--?[\w.-]+)", message)
        long = [name for name in self._option_string_actions if len(name) > 2]  # nobody means -o by --to
        near = did_you_mean(unknown[1], long) if unknown else ""
        print_error(f"{self.prog}: {' '.join(message.split())}{near}; {self.prog} --help has all options")
        sys.exit(WRONG)


def positive(text: str) -> int:
    """A whole number above 0."""
    return _at_least(1, text)


def count(text: str) -> int:
    """A whole number, 0 or more."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
    return value


positive.__name__ = count.__name__ = "whole number"  # in messages of argparse
