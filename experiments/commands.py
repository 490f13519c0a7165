"""Running the commands of other packages, each in a process of its own, as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from curation.base.errors import CocuError


class ExperimentError(CocuError):
    """Something about a comparison that the user can fix. The message is one line."""


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as a command line takes them: ``--key value`` for each.

    >>> flags({"data.batch_size": 64, "retrieval.include_anchor": False, "retrieval.search": None})
    ['--data.batch_size', '64', '--retrieval.include_anchor', 'false', '--retrieval.search', 'null']
    """
    words = []
    for key, value in options.items():
        as_yaml = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
        words += [f"--{key}", as_yaml]
    return words


def run_module(module: str, arguments: Sequence[str], log: Path, threads: int = 0) -> None:
    """Run ``python -m module`` on so many threads (0: all), its output appended to ``log``.

    Raises ExperimentError with its last line when it fails.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        command = [sys.executable, "-m", module, *arguments]
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f": {lines[-1]}" if lines else ""
        raise ExperimentError(f"python -m {module} ended with code {code}{reason} (see {log})")
