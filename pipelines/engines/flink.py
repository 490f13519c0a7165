"""What Flink has to be told: where it runs, how many slots there are, and to go stage by stage."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Iterator

from curation.base.errors import CocuError
from pipelines.arguments import is_given, value
from pipelines.engines.job_server import JobServer, job_server, worker_options

HERE = ("[local]", "[auto]")  # inside the job server
KEPT = 24 * 3600 * 1000  # milliseconds that an idle worker process is kept
PATIENCE = 30  # seconds
# What Flink looks into in the JDK.
OPENED = [
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "lang.reflect", "net", "nio", "time", "util")
]


@contextlib.contextmanager
def options(arguments: list[str], workers: int, shards: int, folder: str, log: str) -> Iterator[list[str]]:
    """Beam's options for Flink: a cluster that ``--flink_master`` names, or one inside the job server.

    ``workers``: slots where there is no cluster; ``shards``: more slots than these are of no use; ``folder``: for what the
    job server needs, seen by all machines; ``log``: of the workers of this machine. Raises CocuError.
    """
    master = value(arguments, "--flink_master", HERE[0])
    is_here = master in HERE
    machines, slots = (1, workers) if is_here else cluster_slots(master)
    chosen = [f"--parallelism={min(slots, shards)}", f"--sdk_worker_parallelism={-(-slots // machines)}"]
    chosen += worker_options(arguments, folder, log if is_here else "/dev/null")
    chosen += batch_options(arguments)
    server = JobServer("flink", "--flink_job_server_jar", [f"--flink-master={master}"], OPENED)
    with job_server(server, [*chosen, *arguments], folder) as endpoint:
        yield [f"--job_endpoint={endpoint}", *chosen, *arguments]


def batch_options(arguments: list[str]) -> list[str]:
    """Stage after stage, unless ``arguments`` say otherwise.

    Flink would start all stages at once and hand their slots to the worker processes of a task manager in turn, so that one
    process may get two slots of a stage and another none. Stage after stage, the next free process takes the next shards;
    and after a failure only the stages that it hit are repeated. (All at once, the next free process never becomes free.)
    """
    chosen = [f"--environment_cache_millis={KEPT}"]
    if not is_given(arguments, "--execution_mode_for_batch"):
        chosen += ["--execution_mode_for_batch=BATCH_FORCED", "--load_balance_bundles"]
    return chosen


def cluster_slots(master: str) -> tuple[int, int]:
    """Task managers and slots of a cluster, by its REST address. Raises CocuError when it has none or does not answer."""
    address = master if master.startswith(("http://", "https://")) else f"http://{master}"
    try:
        with urllib.request.urlopen(f"{address}/overview", timeout=PATIENCE) as answer:
            overview = json.load(answer)
            machines, slots = int(overview["taskmanagers"]), int(overview["slots-total"])
    except (OSError, ValueError, KeyError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise CocuError(
            f"flink_master: no Flink answers at {address} ({reason}); is it the REST address, host:8081?"
        ) from None
    if not slots:
        raise CocuError(f"flink_master: the cluster at {address} has no task manager; start some")
    return machines, slots
