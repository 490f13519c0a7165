"""Shared memory, through which worker processes hand over batches: without enough of it they hang."""

from __future__ import annotations

import os
import shutil

from curation.base.errors import CocuError

FOLDER = "/dev/shm"
PREFETCHED = 2  # batches that each worker has ready, torch's default


class SharedMemoryError(CocuError):
    """Too little shared memory for the batches. The message is one line with the remedy."""


def check_shared_memory(batch: int, workers: int, folder: str = FOLDER) -> None:
    """Raises SharedMemoryError where ``workers`` have no room for what they prefetch; batch: bytes of one.

    ``folder``: where the system keeps it. Systems without one need no check.
    """
    if not workers or not os.path.isdir(folder):
        return
    free = shutil.disk_usage(folder).free
    needed = batch * PREFETCHED * workers
    if free < needed:
        raise SharedMemoryError(
            f"{folder}: {free / 2**20:,.0f} MB are free, but {workers} workers need {needed / 2**20:,.0f} MB for batches "
            f"of {batch / 2**20:,.0f} MB; start Docker with --shm-size {round(1.5 * needed / 2**20)}m, lower "
            "data.batch_size or data.workers, or set data.workers to 0"
        )
