"""What Spark has to be told: where it runs, and one core and one task for one shard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.arguments import value
from pipelines.engines.job_server import JobServer, job_server, worker_options

KEPT = 24 * 3600 * 1000  # milliseconds that an idle worker process is kept
OPENED = [
    f"--add-opens=java.base/{name}=ALL-UNNAMED"
    for name in (
        "java.io",
        "java.lang",
        "java.lang.invoke",
        "java.net",
        "java.nio",
        "java.util",
        "java.util.concurrent",
        "sun.nio.ch",
    )
]


@contextlib.contextmanager
def options(arguments: list[str], workers: int, shards: int, folder: str, log: str) -> Iterator[list[str]]:
    """Beam's options for Spark: a cluster that ``--spark_master_url`` names, or ``workers`` cores of this machine.

    ``shards``: that many tasks has a stage, so that whichever core is free takes the next one; ``folder``: of what the job
    server needs, seen by all machines; ``log``: of the workers of this machine. Raises CocuError.
    """
    master = value(arguments, "--spark_master_url", f"local[{workers}]")
    is_here = master.startswith("local")
    chosen = [f"--sdk_worker_parallelism={workers if is_here else 1}", f"--environment_cache_millis={KEPT}"]
    chosen += worker_options(arguments, folder, log if is_here else "/dev/null")
    # Only names of shards pass through Spark: no machine is worth waiting for because it has them.
    java_options = [*OPENED, f"-Dspark.default.parallelism={shards}", "-Dspark.locality.wait=0s"]
    java_options += ["-Dspark.ui.enabled=false"]
    if not is_here:
        # The executor's JVM only passes names of shards on; a worker process of ours stands beside each.
        java_options += ["-Dspark.executor.cores=1", "-Dspark.executor.memory=512m"]
    server = JobServer("spark", "--spark_job_server_jar", [f"--spark-master-url={master}"], java_options)
    with job_server(server, [*chosen, *arguments], folder) as endpoint:
        yield [f"--job_endpoint={endpoint}", *chosen, *arguments]
