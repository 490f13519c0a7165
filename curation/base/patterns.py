"""Patterns that name shards: braces, globs, several joined by ``::``, and addresses of every kind."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from braceexpand import braceexpand

from curation.base import files, remote
from curation.base.addresses import redacted
from curation.base.errors import CocuError
from curation.base.remote import attempt, open_filesystem

SEPARATOR = re.compile(r"::(?![^\[\]/]*\])")  # but not in http://[::1]:8000/


def split(pattern: str) -> list[str]:
    """The patterns that are joined by ``::``, as webdataset and open_clip join them.

    >>> split("a/{00..09}.tar::s3://b/*.tar"), split("http://[::1]:8000/0.tar")
    (['a/{00..09}.tar', 's3://b/*.tar'], ['http://[::1]:8000/0.tar'])
    """
    if pattern.startswith("pipe:") or _is_there(pattern):
        return [pattern]
    return [part for part in SEPARATOR.split(pattern) if part]


def resolve(pattern: str, folder: str, resolve_one: Callable[[str, str], str] = files.resolve) -> str:
    """``pattern`` with every path in it resolved by ``resolve_one``, from path and folder to path."""
    if pattern.startswith("pipe:"):
        return pattern
    parts = [part for part in SEPARATOR.split(pattern) if part]
    if len(parts) > 1 and _is_there(os.path.join(folder, pattern)):  # a name with :: in it
        parts = [pattern]
    return "::".join(resolve_one(part, folder) for part in parts)


def expand(pattern: str) -> list[str]:
    """The files that a pattern names, in the order of its parts and braces; the matches of a glob are sorted.

    A local name that is there as it stands means itself, whatever characters are in it. Brackets mean themselves where
    such names are there, and one of their characters otherwise. In a web address ? begins the query. Raises CocuError for
    a command (``pipe:``) and for braces that do not match, InputError when a remote folder cannot be listed.
    """
    paths: list[str] = []
    for part in split(pattern):
        if part.startswith("pipe:"):
            raise CocuError(f"shards: {part}: commands are not run; {_instead_of(part)}")
        for name in [part] if _is_there(part) else _braces(part):
            paths += _glob(name)
    return paths


def _is_there(path: str) -> bool:
    return not remote.is_remote(path) and os.path.lexists(path)


def _braces(pattern: str) -> list[str]:
    try:
        return list(braceexpand(pattern))
    except ValueError:
        raise CocuError(f"shards: {redacted(pattern)}: its braces do not match; write {{00000..00099}}") from None


def _glob(name: str) -> list[str]:
    """The matches of a name without braces; the name itself where nothing in it is a wildcard."""
    address, query = _query(name)
    path = address.partition("://")[2].partition("/")[2] if remote.is_remote(name) else address
    if _is_there(name) or not any(character in path for character in "*?["):
        return [name]
    if not any(character in path for character in "*?") and files.exists(name):
        return [name]
    matches = _matches(_with_literal_brackets(address)) or _matches(address.replace("[", "[[]"))
    return [match + query for match in matches]


def _with_literal_brackets(address: str) -> str:
    """A glob in which the brackets of folders and files that are there stand for themselves."""
    parts = address.split("/")
    escaped = list(parts)
    for number, part in enumerate(parts):
        if any(character in part for character in "*?"):
            break
        if "[" in part and files.exists("/".join(parts[: number + 1])):
            escaped[number] = part.replace("[", "[[]")
    return "/".join(escaped)


def _matches(pattern: str) -> list[str]:
    filesystem, inner = open_filesystem(pattern)
    matches = sorted(attempt(pattern, lambda: filesystem.glob(inner)))
    return [filesystem.unstrip_protocol(match) for match in matches] if remote.is_remote(pattern) else matches


def _query(name: str) -> tuple[str, str]:
    """An address and its query: after the ? of a web address, and ?versionId= of S3."""
    if remote.scheme(name) in remote.WEB:
        path, mark, query = name.partition("?")
    else:
        path, mark, query = name.partition("?versionId=") if remote.is_remote(name) else (name, "", "")
    return path, mark + query


def _instead_of(command: str) -> str:
    address = re.search(r"[a-z][a-z0-9]*://[^\s'\"]+", command)
    return f"give the address itself: {redacted(address[0])}" if address else "give the addresses of the tars"
