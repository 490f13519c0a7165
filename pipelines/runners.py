"""Which engine runs the pipeline."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import environments

from curation.errors import CurationError
from curation.outputs import Outputs
from pipelines.beam import build


def run(outputs: Outputs, runner: str, workers: int | None = None, beam_arguments: list[str] | None = None) -> None:
    """Run the pipeline to its end.

    ``runner``: DirectRunner (worker processes on this machine, one a core unless ``workers`` says otherwise), inprocess
    (no other processes, for debugging), or the name of any other Beam runner, which takes ``beam_arguments``.
    Raises CurationError with the one line that tells what went wrong.
    """
    logging.basicConfig(force=True, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Beam logs the stack of every failing worker; the error itself reaches the user once, below.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger("root").addFilter(lambda entry: entry.name != "root" or entry.levelno >= logging.CRITICAL)
    engine, options = _engine(runner, min(workers or os.cpu_count() or 1, len(outputs.shards)), beam_arguments or [])
    try:
        pipeline = beam.Pipeline(runner=engine, options=options)
        build(pipeline, outputs)
        result = pipeline.run()
        state = result.wait_until_finish()
    except Exception as error:
        raise CurationError(_one_line(error)) from error
    if state not in ("DONE", None):
        raise CurationError(f"runner {runner}: the pipeline ended as {state}; see the runner's log")


def _engine(runner: str, workers: int, arguments: list[str]) -> tuple[Any, PipelineOptions]:
    if runner == "inprocess":
        return FnApiRunner(), PipelineOptions(arguments)
    if runner == "DirectRunner":
        # Beam's own DirectRunner would try Prism first, which downloads a program; and its option
        # --direct_running_mode=multi_processing would put another worker program in place of ours.
        command = f"{sys.executable} -m pipelines.worker"
        worker = environments.SubprocessSDKEnvironment.from_command_string(command_string=command)
        options = [f"--direct_num_workers={workers}", *arguments]
        return FnApiRunner(default_environment=worker), PipelineOptions(options)
    return runner, PipelineOptions(arguments)


def _one_line(error: Exception) -> str:
    """The message of the CurationError that a worker raised, dug out of Beam's report of it."""
    if isinstance(error, CurationError):
        return str(error)
    found = re.findall(r"CurationError: (.*)", str(error))
    if found:
        return re.sub(r" \[while running .*", "", found[-1].split("\\n")[0]).strip()
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
