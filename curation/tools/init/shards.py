"""The tars that are meant, and one pattern for them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence

from curation.archive.source import matching
from curation.base import files
from curation.base.errors import CocuError


def find_shards(sources: Iterable[str]) -> list[str]:
    """The tars that files, patterns and folders name, in order.

    Raises CocuError for what is not there, and for a folder without tars, with what to do about it.
    """
    paths: list[str] = []
    for source in sources:
        if files.is_remote(source) or not os.path.isdir(source):
            paths += matching([source])
            continue
        tars = sorted(name for name in os.listdir(source) if re.search(r"\.tar(\.\w+)?$", name))
        if not tars:
            raise CocuError(f"{source}: {_instead(source)}")
        paths += [os.path.join(source, name) for name in tars]
    gone = [
        path
        for path in paths
        if not files.is_remote(path) and not path.startswith("pipe:") and not os.path.exists(path)
    ]
    if gone:
        raise CocuError(f"{gone[0]}: no such file or folder; name the tars, or the folder that they are in")
    others = [path for path in paths if not re.search(r"\.tar(\.\w+)?$", path.split("?")[0])]
    if others:
        what = f"pack what is there: cocu pack {shlex.quote(others[0])}"
        if others[0].endswith((".zip", ".7z", ".rar")):
            what = "unpack it, and pack the folder: cocu pack FOLDER"
        raise CocuError(f"{others[0]}: is no tar; give tars, or {what}")
    return list(dict.fromkeys(paths))


def _instead(folder: str) -> str:
    if os.path.isdir(os.path.join(folder, "img_emb")):
        return "holds embeddings, not tars; name it as embeddings: in a YAML file (docs/examples.md)"
    if any(os.path.isdir(os.path.join(folder, name)) for name in os.listdir(folder)):
        return f"holds no tars; name the folder in it that does, or pack pictures: cocu pack {shlex.quote(folder)}"
    return f"holds no tars; if it holds pictures, pack them: cocu pack {shlex.quote(folder)} -o 'data/{{}}.tar'"


def folder_of(paths: Sequence[str]) -> str:
    """The name of the folder that tars are in; of several, that of the folder that holds those."""
    folders = {
        os.path.dirname(path) if files.is_remote(path) else os.path.dirname(os.path.abspath(path)) for path in paths
    }
    try:
        return os.path.basename(os.path.commonpath(folders)) or "data"
    except ValueError:  # of different machines
        return "data"


def pattern_of(paths: Sequence[str]) -> str | list[str]:
    """One pattern for paths whose numbers follow each other; else the paths.

    >>> pattern_of(["data/00000.tar", "data/00001.tar", "data/00002.tar"]), pattern_of(["a.tar", "b.tar"])
    ('data/{00000..00002}.tar', ['a.tar', 'b.tar'])
    """
    if len(paths) == 1:
        return paths[0]
    numbers = [re.fullmatch(r"(.*?)(\d+)(\.tar(?:\.\w+)?(?:\?.*)?)", path) for path in paths]
    first, last = numbers[0], numbers[-1]
    if first is None or last is None or any(character in paths[0] for character in "{}*[:"):
        return list(paths)
    width = len(first[2])
    expected = [f"{first[1]}{number:0{width}d}{first[3]}" for number in range(int(first[2]), int(last[2]) + 1)]
    return f"{first[1]}{{{first[2]}..{last[2]}}}{first[3]}" if expected == list(paths) else list(paths)
