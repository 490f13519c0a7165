"""Which engine runs the pipeline."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from curation.base import files
from curation.base.errors import CocuError
from curation.base.processors import usable_processors
from curation.base.scratch import scratch
from pipelines import dask
from pipelines.engines import flink, spark

if TYPE_CHECKING:  # whoever asks for --help never needs them
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.runner import PipelineResult

    from curation.run.part import Part
    from curation.run.run import Run
    from pipelines.watch import WorkerWatch

# Beam's runner, an object or a name, and its options, while what has to run beside it is there.
Engine = AbstractContextManager[tuple[Any, "PipelineOptions"]]


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Import Beam inside: it warns of Google packages that nobody asked for."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def outside_notebooks() -> Iterator[None]:
    """Let Beam take a notebook's kernel for any other process.

    In one it would put the number of the cell before the name of every step, and for that load all that it has for
    notebooks, which ends with pandas 3: ``type object 'DataFrame' has no attribute 'first'``.
    """
    from apache_beam import pipeline
    from apache_beam.utils import interactive_utils

    owners = (pipeline, interactive_utils)
    before = [owner.is_in_ipython for owner in owners]
    for owner in owners:
        owner.is_in_ipython = lambda: False
    try:
        yield
    finally:
        for owner, function in zip(owners, before, strict=True):
            owner.is_in_ipython = function


@contextlib.contextmanager
def files_in(folder: str) -> Iterator[None]:
    """Make temporary files in a folder: a pipeline of Beam's makes one that stays behind when it is killed."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


class Request(NamedTuple):
    """What an engine is asked for."""

    workers: int
    shards: int
    arguments: list[str]  # Beam's options, as given on the command line
    watch: WorkerWatch
    folder: str  # of the run


class Runner(NamedTuple):
    """One way of running a pipeline."""

    engine: Callable[[Request], Engine]
    sentence: str
    module: str = ""  # of Beam, that defines its options
    has_job_server: bool = False  # which may know more options
    reshuffles: bool = False  # deals shards out evenly
    is_here: bool = False  # nothing of it goes on when this process has ended


@contextlib.contextmanager
def worker_processes(request: Request) -> Iterator[tuple[Any, PipelineOptions]]:
    """Worker processes of ours on this machine.

    Beam's own DirectRunner would try Prism first, which downloads a program; and its option
    --direct_running_mode=multi_processing would put another worker program in place of ours.
    """
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner
    from apache_beam.transforms import environments

    program = f"{shlex.quote(sys.executable)} -m pipelines.worker {shlex.quote(request.watch.alive)}"
    # A terminal sends Ctrl-C to workers too; this process deals with it, and they end with the file that it takes away.
    command = f"trap '' INT; exec {program} 2>>{shlex.quote(request.watch.log)}"
    worker = environments.SubprocessSDKEnvironment.from_command_string(command_string=command)
    options = [f"--direct_num_workers={request.workers}", *request.arguments]
    yield FnApiRunner(default_environment=worker), PipelineOptions(options)


@contextlib.contextmanager
def in_process(request: Request) -> Iterator[tuple[Any, PipelineOptions]]:
    """No other processes."""
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    yield FnApiRunner(), PipelineOptions(request.arguments)


@contextlib.contextmanager
def dask_cluster(request: Request) -> Iterator[tuple[Any, PipelineOptions]]:
    """A Dask scheduler that is there, or a cluster on this machine."""
    from apache_beam.options.pipeline_options import PipelineOptions

    with dask.options(request.arguments, request.workers, request.shards, request.watch.folder) as options:
        yield dask.RUNNER, PipelineOptions(options)


@contextlib.contextmanager
def portable(request: Request) -> Iterator[tuple[Any, PipelineOptions]]:
    """A job server; where none is named, one in this process, with its workers in this process too."""
    from apache_beam.options.pipeline_options import PipelineOptions

    options = ["--job_endpoint=embed", "--environment_type=LOOPBACK", *request.arguments]
    with files_in(request.watch.folder):  # a job server in this process leaves some behind
        yield "PortableRunner", PipelineOptions(options)


@contextlib.contextmanager
def java_engine(request: Request, engine: Any) -> Iterator[tuple[Any, PipelineOptions]]:
    """A job server in Java that runs while the block lasts: ``engine`` is :mod:`flink` or :mod:`spark`."""
    from apache_beam.options.pipeline_options import PipelineOptions

    with engine_folder(request) as folder:
        size = request.workers, request.shards
        with engine.options(request.arguments, *size, folder, request.watch.log) as options:
            yield "PortableRunner", PipelineOptions(options)


@contextlib.contextmanager
def engine_folder(request: Request) -> Iterator[str]:
    """A folder for what an engine needs while it runs, in the output folder, so that all machines see it.

    Workers end with the script in it that started them. When the block fails, the engine's log stays there.
    """
    if files.is_remote(request.folder):
        yield os.path.dirname(request.watch.log)
        return
    folder = os.path.abspath(os.path.join(request.folder, ".engine"))
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    try:
        yield folder
    except BaseException:
        _remove_all_but_logs(folder)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _remove_all_but_logs(folder: str) -> None:
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        elif not name.endswith(".log"):
            os.remove(path)
    with contextlib.suppress(OSError):  # the logs are there
        os.rmdir(folder)


RUNNERS = {
    "DirectRunner": Runner(worker_processes, "worker processes on this machine", is_here=True),
    "inprocess": Runner(in_process, "this process only, for debugging", is_here=True),
    "dask": Runner(dask_cluster, "a Dask cluster", dask.RUNNER.rpartition(".")[0]),
    "flink": Runner(partial(java_engine, engine=flink), "Flink", has_job_server=True, reshuffles=True),
    "spark": Runner(partial(java_engine, engine=spark), "Spark", has_job_server=True, reshuffles=True),
    "portable": Runner(portable, "a Beam job server"),
}


def runner_of(name: str) -> Runner:
    """The row of :data:`RUNNERS`; any other name is that of a Beam runner, with the options that it defines."""
    if name in RUNNERS:
        return RUNNERS[name]

    @contextlib.contextmanager
    def engine(request: Request) -> Iterator[tuple[Any, PipelineOptions]]:
        from apache_beam.options.pipeline_options import PipelineOptions

        yield name, PipelineOptions(request.arguments)

    return Runner(engine, f"Beam's {name}", name.rpartition(".")[0])


def reach_this_machine_directly() -> None:
    """Except this machine from proxies: gRPC, by which Beam talks to its workers here, would ask one for localhost."""
    for name in ("no_proxy", "no_grpc_proxy"):
        exceptions = [part for part in os.environ.get(name, os.environ.get(name.upper(), "")).split(",") if part]
        if name == "no_proxy" or exceptions:  # the second, where it is set, stands for the first
            missing = [host for host in ("localhost", "127.0.0.1", "::1") if host not in exceptions]
            os.environ[name] = ",".join(exceptions + missing)
    os.environ["NO_PROXY"] = os.environ["no_proxy"]


def run_pipeline(
    run: Run,
    runner: str,
    workers: int | None = None,
    beam_arguments: list[str] | None = None,
    part: Part | None = None,
) -> None:
    """Run the pipeline to its end.

    ``runner``: a name of :data:`RUNNERS`, or that of any other Beam runner; ``workers``: processes on this machine, by
    default one for each core that this process may use; ``beam_arguments``: the runner's options; ``part``: the shards of
    this process, where others have the rest. Raises CocuError with one line that says what went wrong.
    """
    reach_this_machine_directly()
    with quiet_import():
        import apache_beam as beam
        from apache_beam.runners.portability import fn_api_runner  # noqa: F401 - imported here, where nothing is heard

        from pipelines.beam import build
        from pipelines.watch import WorkerWatch, one_line_of

    logging.basicConfig(force=True, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # The error of a worker reaches the user once, as the CocuError below, not as Beam's logs of its stack.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    logging.getLogger().handlers[0].addFilter(lambda record: record.module != "portable_runner")
    shards = len((part or run).shards)
    count = min(workers or usable_processors(), shards)
    with scratch() as folder:
        chosen = runner_of(runner)
        watch = WorkerWatch(run, folder, only_log=chosen.has_job_server, is_here=chosen.is_here)
        request = Request(count, shards, beam_arguments or [], watch, run.folder)
        with outside_notebooks(), chosen.engine(request) as (engine, options), watch:
            try:
                with files_in(folder):
                    pipeline = beam.Pipeline(runner=engine, options=options)
                build(pipeline, run, part, chosen.reshuffles)
                state = wait(pipeline.run())
            except Exception as error:
                raise CocuError(one_line_of(error, run, watch.log)) from error
    if state not in ("DONE", None):
        raise CocuError(f"runner {runner}: the pipeline ended as {state}; see the runner's log")


def wait(result: PipelineResult) -> str | None:
    """Wait for a pipeline to end; returns its state. Ctrl-C ends it, wherever it runs."""
    try:
        state: str | None = result.wait_until_finish()
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):
            result.cancel()
        raise
    return state
