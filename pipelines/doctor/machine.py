"""What this machine has, as far as this process may use it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from curation.base.memory import usable_memory
from curation.base.processors import usable_processors
from pipelines.doctor.finding import GIB, NOTE, OK, WRONG, Finding, size

SHARED = "/dev/shm"
LEAST_SHARED = 1 << 30  # bytes, below which workers of training are short of it
LEAST_DISK = 2 << 30


class Machine(NamedTuple):
    """What a run may use."""

    cores: int
    memory: int  # bytes
    gpus: tuple[int, ...]  # bytes of the memory of each

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        import torch  # takes seconds

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        memories = tuple(int(torch.cuda.get_device_properties(number).total_memory) for number in range(count))
        return cls(usable_processors(), usable_memory(), memories)


def machine_findings(machine: Machine, folder: str) -> Iterator[Finding]:
    """Cores, memory, GPUs, shared memory and disks; ``folder``: where output would go."""
    everything = os.cpu_count() or machine.cores
    limits = "" if machine.cores == everything else f" of {everything}, by affinity or control group"
    yield Finding(OK, "cores", f"{machine.cores}{limits}")
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = "" if machine.memory == physical else f" of {size(physical)}, by control group"
    yield Finding(OK if machine.memory >= 4 * GIB else NOTE, "memory", f"{size(machine.memory)}{limits}")
    yield _gpu_finding(machine)
    if os.path.isdir(SHARED):
        free = shutil.disk_usage(SHARED).free
        short = "; little for workers of training: docker run --shm-size=8g" if free < LEAST_SHARED else ""
        yield Finding(NOTE if short else OK, SHARED, f"{size(free)} free{short}")
    for what, path in (("disk", existing(folder)), ("TMPDIR", tempfile.gettempdir())):
        yield _disk_finding(what, path)


def _gpu_finding(machine: Machine) -> Finding:
    import torch

    if machine.gpus:
        names = ", ".join(torch.cuda.get_device_name(number) for number in range(len(machine.gpus)))
        return Finding(OK, "GPU", f"{names} ({size(min(machine.gpus))} of memory each)")
    if os.path.exists("/dev/nvidiactl") and torch.version.cuda is None:
        return Finding(
            NOTE, "GPU", f"there is one, but torch {torch.__version__} was built for CPUs: pip install torch anew"
        )
    if os.path.exists("/dev/nvidiactl"):
        return Finding(
            NOTE, "GPU", f"there is one, but torch (CUDA {torch.version.cuda}) does not see it: look at the driver"
        )
    return Finding(OK, "GPU", "none; the encoder runs on the cores")


def _disk_finding(what: str, path: str) -> Finding:
    free = shutil.disk_usage(path).free
    if not os.access(path, os.W_OK):
        return Finding(WRONG, what, f"{path} cannot be written; work in another folder, or set TMPDIR")
    return Finding(NOTE if free < LEAST_DISK else OK, what, f"{size(free)} free at {path}")


def existing(path: str) -> str:
    """The folder itself, or the nearest one above that is there."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
