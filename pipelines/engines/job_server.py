"""A job server of Beam for Flink or Spark: a program in Java that runs while a pipeline needs it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

from curation.base import files
from curation.base.errors import CocuError
from pipelines.arguments import beam_options, is_given, require_known, value

FOLDER = ".engines"  # where ``make engines`` keeps the job servers
STARTING, ANSWERING, ENDING = 600, 30, 15  # seconds; a busy machine takes minutes to start Java
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux' prctl


class JobServer(NamedTuple):
    """How the job server of one engine is started."""

    runner: str  # flink or spark
    jar_option: str  # that names the jar
    arguments: list[str]  # of the program
    java_options: list[str]


@contextlib.contextmanager
def job_server(server: JobServer, arguments: list[str], folder: str) -> Iterator[str]:
    """The address, host:port, of a job server that runs while the block lasts; Beam's options ``arguments`` are checked.

    With ``--job_endpoint`` it is one that is there already. ``folder`` gets its log, which stays when the block fails.
    Raises CocuError when Java or the jar is missing, when a port is taken, when the server does not start, and for an
    option that nobody knows.
    """
    from apache_beam.options.pipeline_options import JobServerOptions, PipelineOptions, PortableOptions

    options = PipelineOptions(arguments)
    endpoint = options.view_as(PortableOptions).job_endpoint
    if endpoint:
        _check(arguments, endpoint, ANSWERING)
        yield endpoint
        return

    mine = options.view_as(JobServerOptions)
    java = find_java(server.runner, mine.job_server_java_launcher)
    jar = find_jar(server, arguments)
    for name in ("job_port", "artifact_port", "expansion_port"):
        _require_free(name, getattr(mine, name))
    port = mine.job_port or free_port()
    log = os.path.join(folder, f"{server.runner}-job-server.log")
    with contextlib.ExitStack() as stack:
        artifacts = mine.artifacts_dir or os.path.join(folder, "artifacts")
        # Engines inside the job server unpack libraries and keep data where Java has its temporary files.
        scratch = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        command = [java, f"-Djava.io.tmpdir={scratch}", *server.java_options, *mine.job_server_jvm_properties]
        command += ["-jar", jar, *server.arguments]
        command += [f"--job-port={port}", f"--artifact-port={mine.artifact_port}"]
        command += [f"--expansion-port={mine.expansion_port}", f"--artifacts-dir={artifacts}"]
        stream = stack.enter_context(open(log, "wb"))
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,  # a run that was killed must not go on writing
            start_new_session=True,  # Ctrl-C is for us: the server has to cancel the job first
        )
        stack.callback(_end, process)
        _wait(process, port, log, server.runner)
        _check(arguments, f"localhost:{port}", STARTING)
        yield f"localhost:{port}"


def find_java(runner: str, launcher: str = "java") -> str:
    """The path of Java: ``launcher``, or that of JAVA_HOME. Raises CocuError."""
    home = os.environ.get("JAVA_HOME")
    candidates = [launcher] if launcher != "java" or not home else [os.path.join(home, "bin", "java"), launcher]
    for candidate in candidates:
        if path := shutil.which(candidate):
            return path
    raise CocuError(
        f"runner {runner}: there is no Java ({' and '.join(candidates)}); install version 11 or 17, or set JAVA_HOME"
    )


def find_jar(server: JobServer, arguments: list[str]) -> str:
    """The path of a job server's jar: the one that is named, or the one that ``make engines`` keeps. Raises CocuError."""
    kept = os.path.join(FOLDER, f"{server.runner}-job-server.jar")
    jar = value(arguments, server.jar_option, kept)
    if os.path.isfile(jar):
        return jar
    remedy = f"run make engines, or name one with {server.jar_option}" if jar == kept else "is there a typing error?"
    raise CocuError(f"runner {server.runner}: {jar}: no such job server; {remedy}")


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(name: str, port: int) -> None:
    if port and _listens(port):
        raise CocuError(f"{name}: something listens on port {port} already; give another one, or leave {name} out")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def die_with_parent() -> None:
    """For ``preexec_fn``: a program that ends when the process that started it was killed, where the system can do that."""
    with contextlib.suppress(AttributeError, OSError):  # only Linux can
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGTERM)


def _wait(process: subprocess.Popen[bytes], port: int, log: str, runner: str) -> None:
    """Wait until the server listens. Raises CocuError when it ends before, or never listens."""
    limit = time.monotonic() + STARTING
    while time.monotonic() < limit:
        if _listens(port):
            return
        if process.poll() is not None:
            raise CocuError(f"runner {runner}: the job server ended at once; {log} says why")
        time.sleep(0.1)
    raise CocuError(f"runner {runner}: the job server did not start within {STARTING} seconds; {log} may say why")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(ENDING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _check(arguments: list[str], endpoint: str, seconds: float) -> None:
    """Raises CocuError for an option that neither Beam nor the job server knows, and when none answers in ``seconds``."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    try:
        with grpc.insecure_channel(endpoint) as channel:
            service = beam_job_api_pb2_grpc.JobServiceStub(channel)
            question = beam_job_api_pb2.DescribePipelineOptionsRequest()
            answer = service.DescribePipelineOptions(question, timeout=seconds, wait_for_ready=True)
    except grpc.RpcError as error:
        reason = error.code().name
        raise CocuError(
            f"job_endpoint: nothing answers at {endpoint} ({reason}); start a job server there, or leave job_endpoint out"
        ) from None
    require_known(arguments, [*beam_options(), *(f"--{option.name}" for option in answer.options)])


# --- workers --------------------------------------------------------------------------------------------------------------


def worker_options(arguments: list[str], folder: str, log: str = os.devnull) -> list[str]:
    """Beam's options for worker processes of ours, unless ``arguments`` choose other workers.

    Engines start a worker by the path of one program. It is written into ``folder``, which all machines must see, like the
    Python environment, under the same path; workers end when it is removed. What they print goes to ``log``.
    """
    if is_given(arguments, "--environment_type", "--environment_config", "--environment_options"):
        return []
    if files.is_remote(folder):
        raise CocuError(
            f"environment_type: the program that starts workers cannot be put into {folder}; give --environment_type "
            "PROCESS or EXTERNAL and --environment_config, as docs/scaling.md says"
        )
    # A name of its own for each run: what an engine still does for a run that was killed must not find this one's.
    path = os.path.join(os.path.abspath(folder), f"worker-{secrets.token_hex(4)}.sh")
    boot = f"{shlex.quote(sys.executable)} -m pipelines.engines.boot --script {shlex.quote(path)}"
    lines = [
        "#!/bin/sh",
        f"cd {shlex.quote(os.getcwd())} || exit 1",
        f"export PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', ''))}",
        f'exec {boot} "$@" 2>>{shlex.quote(log)}',
    ]
    with open(path, "w") as stream:
        stream.write("\n".join(lines) + "\n")
    os.chmod(path, 0o755)
    return ["--environment_type=PROCESS", f"--environment_config={json.dumps({'command': path})}"]
