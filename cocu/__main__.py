"""``cocu COMMAND ...``, also as ``python -m cocu``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from cocu.commands import COMMANDS
from curation.base.configuration import did_you_mean
from curation.base.errors import CocuError
from curation.base.terminal import run_command
from curation.base.versions import versions


def usage() -> str:
    """The help of ``cocu`` itself."""
    width = max(map(len, COMMANDS)) + 2
    lines = "\n".join(f"  {name:<{width}}{command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: cocu COMMAND ...\n\nConcept Curation: find what captions omit, before training.\n\n"
        f"{lines}\n\ncocu COMMAND --help has the options of a command.\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if name in ("-V", "--version"):
        print(f"cocu {versions(['cocu'])['cocu']}")
        return 0

    def work() -> int:
        command = COMMANDS.get(name)
        if command is None:
            raise CocuError(f"unknown command {name}{did_you_mean(name, list(COMMANDS))}; cocu --help lists all")
        return int(_module(name, command.module).main([*command.leading, *rest]))

    return run_command(work)


def _module(name: str, module: str) -> ModuleType:
    """The module of a command. Raises CocuError where what it needs is not installed."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            raise CocuError(
                f"cocu {name}: works in a clone of the project only, it is not part of the package"
            ) from None
        raise CocuError(
            f"cocu {name}: {error.name} is not installed; run pip install 'cocu[train,dask,demo,browse]'"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
