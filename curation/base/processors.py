"""How many processors this process may use: those of the machine, of its affinity, and of its control group."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator

CGROUPS = "/sys/fs/cgroup"


def usable_processors() -> int:
    """Processors that this process may use, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return limited(affinity, read_or_nothing("/proc/self/cgroup"), read_or_nothing)


def limited(affinity: int, membership: str, read: Callable[[str], str]) -> int:
    """The processors that a process may use, at least 1: of a part of one it may use that.

    ``affinity``: processors that it may run on; ``membership``: its /proc/self/cgroup; ``read``: content of a file, empty
    when it is missing.

    >>> limited(8, "0::/job", {"/sys/fs/cgroup/job/cpu.max": "250000 100000"}.get)
    3
    """
    quotas = [_processors(read(f"{folder}/cpu.max") or "") for folder in control_groups(membership, "", [CGROUPS])]
    mounts = [f"{CGROUPS}/cpu", f"{CGROUPS}/cpu,cpuacct", f"{CGROUPS}/cpuacct,cpu"]
    for folder in control_groups(membership, "cpu", mounts):
        quota, period = (read(f"{folder}/cpu.cfs_{name}_us") or "" for name in ("quota", "period"))
        quotas.append(_processors(f"{quota.strip()} {period.strip()}"))
    return max(1, math.ceil(min([affinity, *quotas])))


def _processors(text: str) -> float:
    """Processors of a line of cpu.max: quota and period in microseconds; infinite for "max", -1 and what is no quota."""
    quota, _, period = text.strip().partition(" ")
    if not (quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0):
        return math.inf
    return int(quota) / int(period)


def control_groups(membership: str, controller: str, mounts: list[str]) -> Iterator[str]:
    """The folders of a control group and of those that it is in; each may have a quota.

    In a container its own group is mounted as the root, whatever path the membership gives.
    """
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for mount in mounts:
            for length in range(len(parts), -1, -1):
                yield "/".join([mount, *parts[:length]])


def read_or_nothing(path: str) -> str:
    """The content of a file; nothing where it cannot be read."""
    try:
        with open(path) as stream:
            return stream.read()
    except OSError:
        return ""
