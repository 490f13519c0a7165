"""Completion of commands and options in bash and zsh, as a script that a shell reads."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

from cocu.commands import COMMANDS
from curation.base.errors import CocuError

SHELLS = ("bash", "zsh")


def script(arguments: Sequence[str]) -> str:
    """The script for the shell that is named. Raises CocuError for another one."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise CocuError(f"--completion: name one shell, {' or '.join(SHELLS)}")
    import shtab  # nothing else needs it

    text = str(shtab.complete(everything(), arguments[0])) + "\n"
    return text.replace(
        "complete -o bashdefault", "complete -o bashdefault -o default"
    )  # files, where nothing else fits


def everything() -> argparse.ArgumentParser:
    """One parser with all commands and their options. Commands whose packages are not installed have no options."""
    root = argparse.ArgumentParser(prog="cocu")
    root.add_argument("--version", action="store_true", help="print the version")
    root.add_argument("--completion", choices=SHELLS, help="print the script that completes commands and options")
    commands = root.add_subparsers()
    for name, command in COMMANDS.items():
        child = commands.add_parser(name, help=command.summary)
        try:
            parser = importlib.import_module(command.module).build_parser()
        except ModuleNotFoundError:
            continue
        _copy(parser, child)
    return root


def _copy(parser: argparse.ArgumentParser, child: argparse.ArgumentParser) -> None:
    """Give ``child`` what can be completed: names of options, and files or choices as values."""
    import shtab

    for action in parser._actions:
        names = [name for name in action.option_strings if not name.endswith("+")]
        summary = str(action.help or "").partition(";")[0].partition(" (")[0].replace("%", "%%")
        if action.dest == "help" or action.help == argparse.SUPPRESS:
            continue
        if names and action.nargs == 0:
            child.add_argument(*names, action="store_true", help=summary)
            continue
        choices = None if isinstance(action.choices, dict) else action.choices
        copy = child.add_argument(
            *(names or [action.dest]), nargs=None if names else "*", choices=choices, help=summary
        )
        if not choices:
            copy.complete = shtab.FILE  # type: ignore[attr-defined]
