"""The options of Beam on the command line: which there are, and what is given."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from curation.base.configuration import did_you_mean
from curation.base.errors import CocuError


def is_given(arguments: list[str], *names: str) -> bool:
    """Whether one of these options is among the arguments.

    >>> is_given(["--parallelism=4", "--flink_master", "host:8081"], "--flink_master")
    True
    """
    return any(argument.split("=")[0] in names for argument in arguments)


def value(arguments: list[str], name: str, default: str) -> str:
    """The value of an option; the last one counts.

    >>> value(["--parallelism=4", "--parallelism", "8"], "--parallelism", "1")
    '8'
    """
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument(name, dest="value", default=default)
    return str(parser.parse_known_args(arguments)[0].value)


def beam_options() -> list[str]:
    """The names of all options that the imported modules of Beam define."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(allow_abbrev=False)
    for section in PipelineOptions.__subclasses__():
        section._add_argparse_args(parser)
    return [name for action in parser._actions for name in action.option_strings]


def require_known(arguments: list[str], names: Iterable[str]) -> None:
    """Raises CocuError for an option that is not among ``names``: Beam itself would ignore it."""
    known = set(names)
    for argument in arguments:
        name = argument.split("=")[0]
        if argument.startswith("-") and name not in known:
            raise CocuError(f"unknown option {name}{did_you_mean(name, sorted(known))}")
