"""Versions of Python and of the packages that can change a value, for the records of runs."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python and of each package that is installed, by name."""
    known = {"python": platform.python_version()}
    for package in packages:
        try:
            known[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return known
