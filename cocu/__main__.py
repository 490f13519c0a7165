"""``cocu COMMAND ...``, also as ``python -m cocu``."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from cocu.commands import COMMANDS

OPTIONS = ("--help", "--version", "--completion")
# Their threads may wait for a dead worker, or load an encoder, amid which Python's own end crashes.
THREADED = ("curate", "browse")
CLONE = Path(__file__).resolve().parent.parent  # or site-packages


def usage() -> str:
    """The help of ``cocu`` itself."""
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: cocu COMMAND ...\n\nConcept Curation: find what captions omit, before training.\n\n"
        f"{lines}\n\ncocu COMMAND --help has the options of a command. cocu --completion bash (or zsh) prints a script "
        "that\ncompletes them, for ~/.bashrc (or ~/.zshrc):  source <(cocu --completion bash)\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:  # before the command has begun, or when it has ended
        print("interrupted", file=sys.stderr)
        return 130


def _run(arguments: list[str] | None) -> int:
    from curation.base.terminal import run_command  # these imports take longest, and Ctrl-C may come amid them

    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0

    def work() -> int:
        if name in ("-V", "--version"):
            from curation.base.versions import versions

            print(f"cocu {versions(['cocu'])['cocu']}")
            return 0
        if name == "--completion":
            from cocu.completion import script

            print(script(rest), end="")
            return 0
        return int(module_of(name).main(rest))

    code = run_command(work)
    if arguments is None and name in THREADED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def module_of(name: str) -> ModuleType:
    """The module of a command. Raises CocuError for an unknown one, and where it is not part of the package."""
    from curation.base.configuration import did_you_mean
    from curation.base.errors import CocuError

    if name not in COMMANDS:
        kind, choices = ("option", OPTIONS) if name.startswith("-") else ("command", COMMANDS)
        raise CocuError(f"unknown {kind} {name}{did_you_mean(name, list(choices))}; cocu --help lists all")
    module = COMMANDS[name].module
    top = module.partition(".")[0]
    if (CLONE / top).is_dir() and str(CLONE) not in sys.path:
        sys.path.append(str(CLONE))  # an editable installation knows the packages only, not experiments
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (top, module):
            raise
        raise CocuError(f"cocu {name}: works in a clone of the project only, it is not part of the package") from None


if __name__ == "__main__":
    sys.exit(main())
