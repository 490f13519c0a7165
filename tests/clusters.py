"""Small clusters of Flink and Spark on this machine, from what ``make engines`` fetched."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pipelines.engines import flink, spark
from pipelines.engines.job_server import FOLDER, die_with_parent, find_java, free_port

ROOT = Path(__file__).parent.parent
ENGINES = ROOT / FOLDER
FLINK_MEMORY = {
    "jobmanager.memory.process.size": "600m",
    "taskmanager.memory.task.heap.size": "256m",
    "taskmanager.memory.framework.heap.size": "64m",
    "taskmanager.memory.framework.off-heap.size": "64m",
    "taskmanager.memory.task.off-heap.size": "0m",
    "taskmanager.memory.managed.size": "64m",
    "taskmanager.memory.network.min": "64m",
    "taskmanager.memory.network.max": "64m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "64m",
    "taskmanager.memory.jvm-overhead.max": "64m",
    "taskmanager.cpu.cores": "1",
}


class Cluster(NamedTuple):
    """A cluster that runs."""

    master: str
    workers: list[subprocess.Popen]  # task managers of Flink, workers of Spark


def missing(engine: str) -> str:
    """Why the tests of an engine cannot run here; empty when they can."""
    try:
        find_java(engine)
    except Exception as error:
        return str(error)
    parts = [ENGINES / f"{engine}-job-server.jar", ENGINES / engine]
    return "" if all(part.exists() for part in parts) else f"no {FOLDER}/ with {engine}; run make engines"


def wait_for(condition, seconds: float = 600) -> None:
    """Wait until a condition holds."""
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


@contextmanager
def java(log: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen]:
    """A program in Java that runs while the block lasts, with all that it started. Temporary files are beside its log."""
    scratch = log.with_suffix(".tmp")
    scratch.mkdir()
    environment |= {"TMPDIR": str(scratch), "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={scratch} -XX:-UsePerfData"}
    command = [find_java("test"), "-Xmx384m", *arguments]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env=os.environ | environment,
        )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """End a program and all that it started, at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listens(port: int) -> bool:
    """Whether a program of this machine waits for connections there."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def ask(address: str) -> dict:
    """What a REST address answers; nothing while it does not."""
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return {}


@contextmanager
def flink_cluster(folder: Path, machines: int = 2, slots: int = 1) -> Iterator[Cluster]:
    """A job manager of Flink and some task managers, of ``slots`` slots each."""
    rest, rpc = free_port(), free_port()
    names = ("jobmanager.rpc.address", "jobmanager.bind-host", "rest.address", "rest.bind-address")
    values = {name: "localhost" for name in (*names, "taskmanager.host", "taskmanager.bind-host")} | FLINK_MEMORY
    values |= {"jobmanager.rpc.port": str(rpc), "rest.port": str(rest), "taskmanager.numberOfTaskSlots": str(slots)}
    values |= {"heartbeat.timeout": "30000", "heartbeat.interval": "3000"}  # soon, but not on a busy machine too soon
    values |= {"restart-strategy.type": "fixed-delay", "restart-strategy.fixed-delay.attempts": "3"}
    (folder / "conf").mkdir(parents=True)
    (folder / "conf" / "config.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))

    program = ["-cp", f"{ENGINES / 'flink' / 'lib'}/*"]
    runtime, conf = "org.apache.flink.runtime", ["--configDir", str(folder / "conf")]
    manager = [*flink.OPENED, *program, f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", *conf]
    worker = [*flink.OPENED, *program, f"{runtime}.taskexecutor.TaskManagerRunner", *conf]
    with ExitStack() as stack:
        stack.enter_context(java(folder / "manager.log", *manager))
        workers = [stack.enter_context(java(folder / f"worker{n}.log", *worker)) for n in range(machines)]
        overview = f"http://localhost:{rest}/overview"
        wait_for(lambda: ask(overview).get("slots-available") == machines * slots)
        yield Cluster(f"localhost:{rest}", workers)


@contextmanager
def spark_cluster(folder: Path, machines: int = 2, slots: int = 1) -> Iterator[Cluster]:
    """A master of Spark and some workers, of ``slots`` cores each."""
    port, web = free_port(), free_port()
    programs = ENGINES / "spark"
    environment = {"SPARK_HOME": str(programs), "SPARK_SCALA_VERSION": "2.12"}
    deploy = [*spark.OPENED, "-cp", f"{programs / 'jars'}/*"]
    master = ["org.apache.spark.deploy.master.Master", "--host", "localhost", "--port", str(port)]
    worker = ["org.apache.spark.deploy.worker.Worker", f"spark://localhost:{port}"]
    worker += ["--cores", str(slots), "--memory", "1100m"]
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = folder / "manager.log"
        web_ui = ["--webui-port", str(web)]
        stack.enter_context(java(log, *deploy, *master, *web_ui, **environment, SPARK_LOCAL_IP="127.0.0.1"))
        workers = []
        for number in range(machines):
            host = f"127.0.0.{number + 1}"  # machines with different names, as far as Spark can see
            more = ["--host", host, "--webui-port", str(free_port()), "--work-dir", str(folder / f"work{number}")]
            log = folder / f"worker{number}.log"
            workers.append(stack.enter_context(java(log, *deploy, *worker, *more, **environment, SPARK_LOCAL_IP=host)))
        status = f"http://localhost:{web}/json/"
        wait_for(lambda: ask(status).get("aliveworkers") == machines)
        yield Cluster(f"spark://localhost:{port}", workers)
