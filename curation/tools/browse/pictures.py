"""Thumbnails of a run's samples, read from its tars one by one, and what their sidecars say is visible."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any

from curation.archive.thumbnails import read_fields, small_jpeg
from curation.base import files
from curation.base.errors import CocuError, InputError
from curation.base.parquet import read_columns
from curation.run.run import Run, tar_of
from curation.tools.browse.tars import TarPlaces, find_places, read_place, read_places, write_places
from curation.tools.report.examples import read_sidecar, truth

SIDES = (160, 320, 1024)  # pixels of thumbnails
KEPT = 512  # thumbnails in memory, of some 20 kB each
KEPT_PLACES = 64  # shards whose places are in memory, of some 400 kB each
LARGEST_SIDECAR = 1 << 20  # bytes of one that is looked into for a mark


class Pictures:
    """The pictures of a run. ``folder``: where places are kept between sessions."""

    def __init__(self, run: Run, folder: str) -> None:
        self.run = run
        self._folder = folder
        self._working = threading.Lock()  # one pass over a tar at a time
        self._places = lru_cache(KEPT_PLACES)(self._find)
        self.thumbnail = lru_cache(KEPT)(self._thumbnail)
        self._ready: set[int] = set()

    @property
    def are_there(self) -> bool:
        """Whether the run was made from tars, not from embeddings that were imported."""
        return not self.run.config.embeddings

    @cached_property
    def _extensions(self) -> list[str]:
        return self.run.config.image.lower().split(";")

    # --- places ---------------------------------------------------------------------------------------------------------

    def _keys(self, shard: int, kind: str) -> list[str]:
        path = self.run.of_shard(kind, self.run.shards[shard])
        if kind == "rejects" and not files.exists(path):
            return []
        return [key or "" for key in read_columns(path, {"key": None})["key"].to_pylist()]

    def _find(self, shard: int) -> TarPlaces:
        """The places of a shard's archives, and then of its rejects. Raises InputError for a tar that cannot be read."""
        with self._working:
            path = tar_of(self.run, self.run.shards[shard])
            version = files.digest(path, files.version(path), self._extensions)
            cached = os.path.join(self._folder, f"{shard}-{version}.npz")
            if os.path.exists(cached):
                places = read_places(cached)
            else:
                keys = [*self._keys(shard, "archives"), *self._keys(shard, "rejects")]
                places = find_places(path, keys, self._extensions)
                write_places(places, cached)
            self._ready.add(shard)
            return places

    def prepare(self, is_over: threading.Event) -> None:
        """Find the places of all local tars, one after another, until it is over; those that cannot be read are left."""
        for number, shard in enumerate(self.run.shards):
            if is_over.is_set() or not self.are_there:
                return
            if not files.is_remote(shard.path):
                try:
                    self._places(number)
                except CocuError:
                    continue

    def shows(self, shard: int, row: int, key: str, concept: tuple[str, ...]) -> bool | None:
        """Whether a sample shows a concept, as it is matched by; None where its sidecar does not tell, or not yet."""
        if shard not in self._ready:
            return None
        offset, size = self._places(shard).sidecar[row].tolist()
        if offset < 0 or size > LARGEST_SIDECAR:
            return None
        visible = truth(self.sidecar(shard, row, key))
        return None if visible is None else concept in visible

    # --- contents -------------------------------------------------------------------------------------------------------

    def _content(self, shard: int, row: int, key: str, extensions: Iterable[str], places: Any) -> bytes:
        path = tar_of(self.run, self.run.shards[shard])
        if places[row][0] >= 0:
            return read_place(path, places[row])
        fields = read_fields(path, [key], extensions).get(key, {})  # the tar is compressed
        return next((fields[name] for name in extensions if name in fields), b"")

    def _thumbnail(self, shard: int, row: int, key: str, side: int) -> bytes:
        """A JPEG of at most ``side`` x ``side`` pixels. ``row``: of the shard's archives and then rejects.

        Raises InputError where there is none, or it cannot be decoded.
        """
        if not self.are_there:
            raise InputError(f"{self.run.folder}: was made from imported embeddings, which come without images")
        content = self._content(shard, row, key, self._extensions, self._places(shard).image)
        if not content:
            raise InputError(f"{self.run.shards[shard].path}: the image of {key} is gone")
        return small_jpeg(content, side)

    def sidecar(self, shard: int, row: int, key: str) -> dict[str, Any]:
        """The json sidecar of a sample; empty where it has none, or its tar cannot be read."""
        if not self.are_there:
            return {}
        try:
            places = self._places(shard)
            if places.are_known and places.sidecar[row][0] < 0:
                return {}
            return read_sidecar(self._content(shard, row, key, ["json"], places.sidecar))
        except InputError:
            return {}
