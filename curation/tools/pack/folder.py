"""Images in a folder and the folders in it, with captions beside them. Links that lead out of the folder stay unread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curation.base.errors import one_line
from curation.tools.pack.entry import (
    EXTENSIONS,
    LARGEST,
    OTHERS,
    CaptionColumns,
    Content,
    Entry,
    Unusable,
    caption_in,
    content_of,
    extension_of,
    read_sidecar,
    unusable,
)

BESIDE = (".txt", ".caption")  # endings of files with the caption of an image: in place of its own, or behind it


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images, and what lies beside them.

    ``excluded``: a folder that is passed over, because the tars are written there. ``captions``: several fields of the json
    sidecars that hold captions, or ``txt`` for the file.
    """

    root: Path
    excluded: Path | None = None
    captions: tuple[str, ...] = ()
    _names: dict[Path, dict[str, str]] = field(default_factory=dict, compare=False)  # of the folder asked for last

    def entries(self) -> Iterator[Entry]:
        """Every image, sorted by folder and name; hidden files and folders are passed over."""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(self.root / folder) as listing:
                    items = sorted(listing, key=lambda item: item.name)
            except OSError as error:
                yield unusable(folder or ".", f"folder cannot be read ({error.strerror})")
                continue
            names = {item.name.lower(): item.name for item in items}
            inner = []
            for item in items:
                name = f"{folder}{item.name}"
                if item.name.startswith("."):
                    continue
                if item.is_dir(follow_symlinks=False):
                    if self.excluded is None or Path(item.path).resolve() != self.excluded:
                        inner.append(f"{name}/")
                elif item.is_symlink() and os.path.isdir(item.path):
                    yield unusable(name, "a link to a folder, which is not followed")
                elif extension_of(item.name) in EXTENSIONS:
                    yield self._entry(name, self._beside(name, names), None)
                elif extension_of(item.name) in OTHERS:
                    yield unusable(name, f"format {extension_of(item.name)} is not one that curation reads")
            waiting += reversed(inner)

    def entry(self, name: str, caption: Any) -> Entry:
        """The image of this name, with a caption; where that is None, with the one that lies beside it."""
        if caption is not None:
            return self._entry(name, {}, caption)
        folder = (self.root / name).parent
        if folder not in self._names:
            self._names.clear()
            self._names[folder] = {item.lower(): item for item in os.listdir(folder)} if folder.is_dir() else {}
        return self._entry(name, self._beside(name, self._names[folder]), None)

    def _beside(self, name: str, names: dict[str, str]) -> dict[str, str]:
        """The files with caption ("txt") and sidecar ("json") of an image; ``names``: of its folder, by lower case."""
        folder, _, own = name.rpartition("/")
        stem = own[: -len(extension_of(own)) - 1]
        prefix = f"{folder}/" if folder else ""
        candidates = {"txt": [start + ending for start in (stem, own) for ending in BESIDE], "json": [stem + ".json"]}
        return {
            kind: prefix + names[next(c for c in options if c.lower() in names).lower()]
            for kind, options in candidates.items()
            if any(c.lower() in names for c in options)
        }

    def _entry(self, name: str, beside: dict[str, str], caption: Any) -> Entry:
        def load() -> Content:
            image = self.read(name)
            sidecar = read_sidecar(self.read(beside["json"])) if "json" in beside else {}
            text = caption
            if text is None and self.captions:
                beside_texts = {"txt": self.read(beside["txt"])} if "txt" in beside else {}
                text = CaptionColumns(
                    {name: beside_texts.get(name) or caption_in(sidecar, (name,)) for name in self.captions}
                )
            elif text is None:
                text = self.read(beside["txt"]) if "txt" in beside else caption_in(sidecar)
            return content_of(image, text, sidecar)

        return Entry(name, f"{[self._mark(file) for file in (name, *beside.values())]}{caption}", load)

    def _mark(self, name: str) -> str:
        try:
            status = os.stat(self.root / name)
        except (OSError, ValueError):
            return "none"
        return f"{status.st_size}:{status.st_mtime_ns}"

    def read(self, name: str) -> bytes:
        """The content of a file. Raises Unusable for what is missing, too large, no file, or outside the folder."""
        try:
            path = os.path.realpath(self.root / name)
            if not Path(path).is_relative_to(self.root.resolve()):
                raise Unusable("lies outside the folder")
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("not a file")
            if status.st_size > LARGEST:
                raise Unusable(f"larger than {LARGEST >> 20} MB")
            with open(path, "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            raise Unusable("no such file") from None
        except (OSError, ValueError) as error:
            raise Unusable(f"cannot be read ({getattr(error, 'strerror', None) or one_line(error, 100)})") from None
