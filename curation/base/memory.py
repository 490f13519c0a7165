"""How much memory this process may use: that of the machine, or of its control group."""

from __future__ import annotations

import os
from collections.abc import Callable

from curation.base.processors import CGROUPS, control_groups, read_or_nothing


def usable_memory() -> int:
    """Bytes of memory that this process may use at most."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limited(machine, read_or_nothing("/proc/self/cgroup"), read_or_nothing)


def limited(machine: int, membership: str, read: Callable[[str], str | None]) -> int:
    """The least of the machine's bytes and the limits of a process' control groups.

    ``membership``: its /proc/self/cgroup; ``read``: content of a file, empty when it is missing.

    >>> limited(1 << 40, "0::/job", {"/sys/fs/cgroup/job/memory.max": "1073741824"}.get)
    1073741824
    """
    paths = [f"{folder}/memory.max" for folder in control_groups(membership, "", [CGROUPS])]
    mounts = [f"{CGROUPS}/memory"]
    paths += [f"{folder}/memory.limit_in_bytes" for folder in control_groups(membership, "memory", mounts)]
    limits = [(read(path) or "").strip() for path in paths]
    return min([machine, *(int(limit) for limit in limits if limit.isdigit() and int(limit) > 0)])
