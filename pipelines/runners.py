"""Which engine runs the pipeline."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import environments

from curation.base.errors import CocuError
from curation.run.progress import read_progress
from curation.run.run import Run
from curation.run.stages import plan
from pipelines import dask
from pipelines.beam import build

GRACE = 3  # seconds


def run_pipeline(run: Run, runner: str, workers: int | None = None, beam_arguments: list[str] | None = None) -> None:
    """Run the pipeline to its end.

    ``runner``: DirectRunner (worker processes on this machine, one a core unless ``workers`` says otherwise), inprocess
    (no other processes, for debugging), dask, portable, or the name of any other Beam runner; ``beam_arguments`` are its
    options. Raises CocuError with the one line that tells what went wrong.
    """
    logging.basicConfig(force=True, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The error of a worker reaches the user once, as the CocuError below, not as Beam's logs of its stack.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    count = min(workers or os.cpu_count() or 1, len(run.shards))
    with tempfile.TemporaryDirectory() as folder:
        watch = _WorkerWatch(run, folder)
        with _engine(runner, count, beam_arguments or [], watch, len(run.shards)) as (engine, options), watch:
            try:
                pipeline = beam.Pipeline(runner=engine, options=options)
                build(pipeline, run)
                state = pipeline.run().wait_until_finish()
            except Exception as error:
                raise CocuError(_one_line(error, run, watch.log)) from error
    if state not in ("DONE", None):
        raise CocuError(f"runner {runner}: the pipeline ended as {state}; see the runner's log")


@contextlib.contextmanager
def _engine(
    runner: str, workers: int, arguments: list[str], watch: _WorkerWatch, shards: int
) -> Iterator[tuple[Any, PipelineOptions]]:
    """Beam's runner and options, and what has to run beside it."""
    if runner == "inprocess":
        yield FnApiRunner(), PipelineOptions(arguments)
    elif runner == "DirectRunner":
        # Beam's own DirectRunner would try Prism first, which downloads a program; and its option
        # --direct_running_mode=multi_processing would put another worker program in place of ours.
        program = f"{shlex.quote(sys.executable)} -m pipelines.worker {shlex.quote(watch.alive)}"
        command = f"exec {program} 2>>{shlex.quote(watch.log)}"
        worker = environments.SubprocessSDKEnvironment.from_command_string(command_string=command)
        options = [f"--direct_num_workers={workers}", *arguments]
        yield FnApiRunner(default_environment=worker), PipelineOptions(options)
    elif runner == "dask":
        with dask.options(arguments, workers, shards) as options:
            yield dask.RUNNER, PipelineOptions(options)
    elif runner == "portable":
        # Where they are not given: a job server in this process, and workers in this process too.
        yield "PortableRunner", PipelineOptions(["--job_endpoint=embed", "--environment_type=LOOPBACK", *arguments])
    else:
        yield runner, PipelineOptions(arguments)


class _WorkerWatch:
    """Ends the run when a worker process dies: Beam itself may wait for its answer for ever.

    Beam's threads that mind the workers raise when a process ends. While the pipeline runs, that ends the other workers,
    by taking away the file ``alive`` that they look for, and then this process.
    """

    def __init__(self, run: Run, folder: str) -> None:
        self._outputs, self._folder = run, folder
        self.log, self.alive = os.path.join(folder, "workers.log"), os.path.join(folder, "alive")
        self._over = threading.Event()

    def __enter__(self) -> _WorkerWatch:
        for path in (self.log, self.alive):
            open(path, "w").close()
        threading.excepthook = self._on_exception
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        threading.excepthook = threading.__excepthook__

    def _on_exception(self, hook: threading.ExceptHookArgs) -> None:
        name = hook.thread.name if hook.thread else ""
        if name.startswith("run_worker"):
            if not self._over.wait(GRACE):  # the pipeline may be about to say why by itself
                self._end()
        elif not name.startswith(("beam_control_read", "read_grpc_client_inputs")):
            threading.__excepthook__(hook)

    def _end(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.alive)
        if self._over.wait(GRACE):  # without workers Beam may come to an end of its own
            return
        message = _one_line(RuntimeError("a worker died"), self._outputs, self.log)
        shutil.rmtree(self._folder, ignore_errors=True)
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)


def _one_line(error: Exception, run: Run, log: str) -> str:
    """The message of the CocuError that a worker raised, dug out of Beam's report of it; or what else is known."""
    text = f"CocuError: {error}" if isinstance(error, CocuError) else str(error)
    found = re.findall(r"CocuError: (.*)", text)
    if found:
        return re.sub(r" \[while running .*", "", found[-1].split("\\n")[0]).strip()
    begun = [
        f"{note['part']} ({stage.name})"
        for stage in plan(run)
        for note in read_progress(run, stage.name)
        if note["state"] == "running"
    ]
    if begun:
        last = _last_line(log)
        return f"a worker died at {', '.join(begun)}{last and f' ({last})'}; run the same command again to go on"
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _last_line(path: str) -> str:
    with open(path, errors="replace") as stream:
        lines = [line.strip() for line in stream if line.strip() and "terminate called" not in line]
    return lines[-1] if lines else ""
