"""``python -m pipelines.engines.fetch``: job servers of Flink and Spark, and a small cluster of each, into ``.engines/``.

Maven puts each job server into one jar; the clusters are in apache-flink-libraries and pyspark of PyPI. What is there stays
as it is. Nothing is installed: delete the folder to be rid of it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from curation.base.errors import CocuError
from curation.base.terminal import run_command
from pipelines.engines.job_server import FOLDER, find_java

# The newest that Maven served us whole. Python's Beam may be newer: both sides speak the same protocol.
BEAM, SERVICE = "2.70.0", "2.65.0"
FLINK, SPARK = "1.19.3", "3.5.9"
CLUSTERS = {"flink": f"apache-flink-libraries=={FLINK}", "spark": f"pyspark=={SPARK}"}
LONGEST = 300  # characters of a message


def fetch_job_server(engine: str, target: Path) -> None:
    """Build the job server of ``engine``, flink or spark, as the jar ``target``. Raises CocuError when Maven fails."""
    find_java(engine)
    maven = shutil.which("mvn")
    if not maven:
        raise CocuError("there is no Maven (mvn); install it, or give JAR=FILE, a job server that you have")
    print(f"{target}: Maven fetches Beam {BEAM} for {engine} (a few minutes the first time)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        jar = os.path.join(folder, target.name)
        values = {"beam": BEAM, "service": SERVICE, "flink": FLINK.rpartition(".")[0], "spark": SPARK}
        values |= {"work": folder, "jar": jar}
        command = [maven, "-q", "-B", "-f", str(Path(__file__).with_name("job_server.xml")), "package", f"-P{engine}"]
        command += [f"-D{name}={value}" for name, value in values.items()]
        _run(command, "Maven failed", "give JAR=FILE, a job server that you have")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(jar, f"{target}.partial")
        os.replace(f"{target}.partial", target)


def fetch_cluster(engine: str, target: Path) -> None:
    """Unpack the programs of ``engine`` into the folder ``target``. Raises CocuError when pip fails."""
    print(f"{target}: pip fetches {CLUSTERS[engine]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", folder]
        _run([*pip, CLUSTERS[engine]], "pip failed", f"the tests need it, --runner {engine} does not")
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (programs,) = Path(folder).glob("*/deps")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.move(programs, partial)
        os.replace(partial, target)


def keep_jar(jar: str, folder: Path) -> str:
    """Copy a job server that the user has into ``folder``; returns the engine that its name tells. Raises CocuError."""
    path = Path(jar)
    if not path.is_file():
        raise CocuError(f"{jar}: no such file")
    engines = [engine for engine in CLUSTERS if engine in path.name]
    if len(engines) != 1:
        raise CocuError(f"{jar}: its name does not say whether it is for flink or for spark; rename it")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder / f"{engines[0]}-job-server.jar")
    return engines[0]


def _run(command: list[str], failure: str, remedy: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in (result.stdout + result.stderr).splitlines() if "ERROR" in line]
        reason = lines[0][:LONGEST] if lines else f"exit code {result.returncode}"
        raise CocuError(f"{failure}: {reason}; {remedy}")


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.engines.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", default=FOLDER, help="where to (default: %(default)s)")
    parser.add_argument("--jar", action="append", default=[], help="a job server that you have, for flink or for spark")
    args = parser.parse_args(arguments)
    return run_command(lambda: fetch(Path(args.folder), args.jar))


def fetch(folder: Path, jars: list[str]) -> None:
    """Fetch what is missing in ``folder``: for the engines of ``jars``, or, without any, for all. Raises CocuError."""
    for engine in [keep_jar(jar, folder) for jar in jars] or CLUSTERS:
        jar_file, cluster = folder / f"{engine}-job-server.jar", folder / engine
        if not jar_file.exists():
            fetch_job_server(engine, jar_file)
        if not cluster.exists():
            fetch_cluster(engine, cluster)


if __name__ == "__main__":
    sys.exit(main())
