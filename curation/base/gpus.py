"""Which GPU a process computes on: the processes of a machine share them out among themselves.

Each process holds a lock in a folder of temporary files while it lives: on GPU 0 the first, on GPU 1 the second, and so on;
when all are held, on each a second time, and so on again. So no GPU has two processes while another has none, whatever
engine started them, and a process that dies gives its GPU back. They see what ``CUDA_VISIBLE_DEVICES`` shows them. Of the
instances of a divided GPU (MIG) CUDA uses the first that is visible and no other: each process makes one the only one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import MutableMapping, Sequence

from filelock import FileLock, Timeout

from curation.base.scratch import user_folder

VISIBLE = "CUDA_VISIBLE_DEVICES"

_held: dict[tuple[int, str], FileLock] = {}  # by process, since a fork inherits this table; and by name


def visible_gpus(environment: MutableMapping[str, str], count: int) -> list[str]:
    """Names of the ``count`` GPUs that CUDA sees, in its order, the same in every process that sees them.

    >>> visible_gpus({"CUDA_VISIBLE_DEVICES": "3,GPU-a1"}, 2), visible_gpus({}, 2)
    (['3', 'GPU-a1'], ['0', '1'])
    """
    entries = [entry.strip() for entry in environment.get(VISIBLE, "").split(",") if entry.strip()]
    return (entries or [str(number) for number in range(count)])[:count]


def take_instance(environment: MutableMapping[str, str] = os.environ) -> None:
    """Where several instances of divided GPUs are visible, leave this process one of them; else do nothing.

    Must come before CUDA starts in this process, which is when the variable is read.
    """
    entries = [entry.strip() for entry in environment.get(VISIBLE, "").split(",")]
    if len(entries) > 1 and all(entry.startswith("MIG-") for entry in entries):
        environment[VISIBLE] = entries[take(entries)]


def own_device(device: str) -> str:
    """The torch device of this process where ``device`` is cuda, any GPU: always the same. Others stay as they are."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{take(visible_gpus(os.environ, torch.cuda.device_count()))}"


def take(names: Sequence[str], folder: str | None = None) -> int:
    """The position among ``names`` of a GPU that no more processes hold than any other; held while this process lives.

    A process that asks again gets the one that it has. ``folder``: of the locks, by default one of this user.
    """
    for position, name in enumerate(names):
        if (os.getpid(), name) in _held:
            return position

    folder = folder or os.path.join(user_folder(), "gpus")
    os.makedirs(folder, exist_ok=True)
    for turn, (position, name) in ((turn, item) for turn in itertools.count() for item in enumerate(names)):
        lock = FileLock(os.path.join(folder, f"{re.sub(r'[^A-Za-z0-9-]', '_', name)}.{turn}"))
        with contextlib.suppress(Timeout):  # held by another process
            lock.acquire(blocking=False)
            _held[os.getpid(), name] = lock
            return position
    raise AssertionError("no GPU to take")
