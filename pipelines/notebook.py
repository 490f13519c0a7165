"""Curation from a notebook: the command in a process of its own, its lines in the cell, its archives at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from curation.archive import ConceptArchive
from curation.base.errors import CocuError
from pipelines.curate import read_config

HEARD = 5  # seconds in which a run ends by itself that heard the interruption too
PATIENCE = 60  # seconds in which an interrupted run puts its things away


def curate(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    runner: str = "DirectRunner",
    settings: Mapping[str, Any] | None = None,
) -> ConceptArchive:
    """``cocu curate``, from a notebook: ``archive = curate("my-data.yaml", settings={"retrieval.neighbors": 16})``.

    data: a YAML file, ``demo``, or another packaged configuration; output: as the command chooses it, unless given;
    settings: values by key, as ``--help`` lists them. The run is a process of its own, so that the kernel lives on whatever
    becomes of it, and gives back all memory. Interrupting the cell ends the run as Ctrl-C does: the next call resumes.
    Raises CocuError where the run fails; its reason stands above.
    """
    overrides = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (settings or {}).items()}
    folder = os.fspath(output) if output is not None else read_config(os.fspath(data), overrides).output_folder
    words = ["--data", os.fspath(data), "--output", folder, "--runner", runner]
    for key, value in overrides.items():
        words.append(f"--{key}={value}")

    plain = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}  # Jupyter asks for colours
    plain["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-m", "pipelines.curate", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                print(line, end="", flush=True)
        except KeyboardInterrupt:
            _end(process)
            raise
    if process.returncode:
        raise CocuError(f"curation ended with exit code {process.returncode}; the lines above say why")
    return ConceptArchive.open(folder, allow_remote=True)


def _end(process: subprocess.Popen[str]) -> None:
    """End the run as Ctrl-C does, which it may have heard itself: Jupyter interrupts all processes of a kernel."""
    for number, seconds in ((None, HEARD), (signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        if number is not None:
            process.send_signal(number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue
        return
