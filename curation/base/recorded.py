"""What the files of a finished run say of paths, names and keys: others may have written them, so they are data.

A folder of archives may come from anywhere. Nothing in it is expanded (no ``${ENV}``, no ``~``, no ``package:``), no name
in it becomes a path before it is checked, and no address in it is opened unless that was asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from curation.base import files
from curation.base.addresses import is_redacted
from curation.base.errors import CocuError, InputError, quoted

LONGEST_NAME = 240  # bytes, which leave room for the endings of files


def resolve_recorded(path: Any, folder: str) -> str:
    """A path as a manifest records it: taken to the letter, relative ones from ``folder``; URLs stay.

    >>> resolve_recorded("../data/${TOKEN}.tar", "/out/cc3m"), resolve_recorded("https://host/${TOKEN}", "/out")
    ('/out/data/${TOKEN}.tar', 'https://host/${TOKEN}')

    Raises CocuError for what is not a path.
    """
    if not _is_path(path):
        raise CocuError(f"{folder}: {quoted(path)} is recorded there as a path and is none; run cocu curate again")
    path = path.removeprefix("file://")
    return path if files.is_remote(path) else os.path.normpath(os.path.join(folder, path))


def _is_path(path: Any) -> bool:
    """Whether a recorded value is text that some file could have as its path."""
    try:
        parts = os.fsencode(path).split(b"/") if isinstance(path, str) else [b"\0"]
    except UnicodeEncodeError:  # half of a character
        return False
    return not any(b"\0" in part or len(part) > 1 << 12 for part in parts) and (
        "://" in path or max(map(len, parts)) < 256
    )


def check_openable(path: str, folder: str, allow_remote: bool) -> None:
    """Raises InputError unless an address that the run in ``folder`` recorded may be opened.

    Local files may, and whatever lies at the place that the folder itself was opened from; others where ``allow_remote``.
    """
    if is_redacted(path):
        raise InputError(
            f"{path}: recorded in {folder} without what follows the ?, which may be a secret; only a run with its own "
            "configuration can read it again, so run cocu curate again, or copy the tars"
        )
    if "://" in path and not allow_remote and not (files.is_remote(folder) and _origin(path) == _origin(folder)):
        raise InputError(
            f"{path}: {folder} names this address, and whoever wrote that folder chose it; to open it, add --allow-remote "
            "(in Python: allow_remote=True, in training: --data.allow_remote true)"
        )


def _origin(address: str) -> str:
    return "/".join(address.split("/", 3)[:3])


def is_name(name: Any) -> bool:
    """Whether a recorded value may be the name of a shard, and so of files: one part of a path, not too long.

    >>> is_name("00000"), is_name("../../x"), is_name(""), is_name(3)
    (True, False, False, False)
    """
    if not _is_path(name) or re.search(r"[/\\\0-\x1f\x7f]", name) or not name.strip("."):
        return False
    return len(os.fsencode(name)) <= LONGEST_NAME


def leaves_folder(key: str) -> bool:
    """Whether a key, as a path below some folder, would lead out of it, or is no path at all.

    >>> leaves_folder("train/000123"), leaves_folder("../x"), leaves_folder("/etc/x"), leaves_folder("a/../../x")
    (False, True, True, True)
    """
    parts = re.split(r"[/\\]", key)
    return parts[0] == "" or ".." in parts or "\0" in key or re.match("[a-zA-Z]:", key) is not None


def check_manifest(values: Mapping[str, Any], path: str) -> None:
    """Raises CocuError, naming the manifest at ``path``, where it holds anything but what a run writes."""

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise CocuError(f"{path}: {what}; run cocu curate again")

    require(isinstance(values.get("config"), dict), "has no config")
    config = values["config"]
    for key in ("image", "caption"):
        require(isinstance(config.get(key, ""), str), f"config.{key}: {quoted(config.get(key))} is not a text")
    several = config.get("captions") or []
    require(isinstance(several, list) and all(isinstance(name, str) for name in several), "config.captions: not names")
    require(isinstance(config.get("shards") or [], (str, list)), "config.shards: not a list of patterns")

    names = values.get("shards", [])
    require(isinstance(names, list), "shards: not a list of names")
    for name in names:
        require(is_name(name), f"shards: {quoted(name)} cannot be the name of a file")
    require(len(set(names)) == len(names), "shards: a name occurs twice")

    paths = values.get("paths", names)
    require(isinstance(paths, list), "paths: not a list")
    require(len(paths) == len(names) or "shards" not in values, f"paths: not one for each of {len(names)} shards")
    require(all(map(_is_path, paths)), "paths: one is not a path")
    for key in ("counts", "versions", "index", "seconds"):
        require(isinstance(values.get(key, {}), dict), f"{key}: not a mapping")
    for name, count in values.get("counts", {}).items():
        require(type(count) is int and 0 <= count < 1 << 62, f"counts.{name}: {quoted(count)} is not a count")
