"""Dask as the engine: a scheduler that is there, or a cluster of worker processes on this machine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from curation.base.errors import CocuError

RUNNER = "apache_beam.runners.dask.dask_runner.DaskRunner"  # Beam knows it by the full name only
CLOSING = 30  # seconds
SCHEDULER = ("--dask_client_address", "--dask_scheduler_file")


@contextlib.contextmanager
def options(arguments: list[str], workers: int, shards: int, folder: str | None = None) -> Iterator[list[str]]:
    """Beam's options for Dask. Unless ``arguments`` name a scheduler, ``workers`` processes run here while the block lasts.

    ``folder``: for their temporary files, in place of TMPDIR.
    Raises CocuError when Dask is not installed.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise CocuError("runner dask: Dask is not installed; run pip install 'cocu[dask]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors reach the user once, as one line
    # Beam's default, a hundred partitions, would put few shards on one worker.
    is_chosen = _names(arguments, "--dask_npartitions", "--dask_partition_size")
    partitions = [] if is_chosen else [f"--dask_npartitions={shards}"]
    if _names(arguments, *SCHEDULER):
        yield partitions + arguments
        return
    with dask.config.set({"temporary-directory": folder}):
        cluster = LocalCluster(workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL)
    try:
        with Client(cluster) as client:
            client.run(logging.disable, logging.WARNING)  # Beam warns of Google packages when it is imported
        yield [f"--dask_client_address={cluster.scheduler_address}", *partitions, *arguments]
    finally:
        try:
            cluster.close(timeout=CLOSING)
        except TimeoutError:  # the work is done: no reason to call it failed
            logging.getLogger(__name__).warning(
                "Dask's workers did not stop within %s s; they will end with this process", CLOSING
            )


def _names(arguments: list[str], *options: str) -> bool:
    return any(argument.split("=")[0] in options for argument in arguments)
