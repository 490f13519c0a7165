"""Where the pictures and sidecars of a shard's samples lie in its tar: found in one pass, kept beside the catalogue.

A picture is then read alone, from anywhere in a tar of any size.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.archive.members import Place, locate_members, tar_errors
from curation.base import files

NOWHERE = Place(-1, 0)


@dataclass(frozen=True)
class TarPlaces:
    """Where image and json sidecar of n samples of a shard lie."""

    image: np.ndarray  # (n, 2) int64: offset, -1 for none, and size
    sidecar: np.ndarray  # (n, 2) int64

    @property
    def are_known(self) -> bool:
        """Whether any is known, so that what has none is not there; of a compressed tar there are none."""
        return bool((self.image[:, 0] >= 0).any())


def find_places(path: str, keys: Sequence[str], extensions: Sequence[str]) -> TarPlaces:
    """One pass over a tar for these keys; of samples with one key the first is meant, as everywhere.

    extensions: of images, the first that a sample has wins. A compressed tar has no places. Raises InputError for a tar
    that cannot be read.
    """
    rows = {key: row for row, key in reversed(list(enumerate(keys)))}
    image = np.full((len(keys), 2), NOWHERE, np.int64)
    sidecar = np.full((len(keys), 2), NOWHERE, np.int64)
    seen: set[str] = set()
    with files.open_file(path) as stream, tar_errors(path):
        for key, fields in locate_members(stream):
            if key in rows and key not in seen:
                seen.add(key)
                image[rows[key]] = next((fields[name] for name in extensions if name in fields), NOWHERE)
                sidecar[rows[key]] = fields.get("json", NOWHERE)
    return TarPlaces(image, sidecar)


def read_place(path: str, place: np.ndarray) -> bytes:
    """The content of a member at (offset, size); nothing where there is none."""
    if place[0] < 0:
        return b""
    with files.open_file(path) as stream:
        stream.seek(int(place[0]))
        return stream.read(int(place[1]))


# --- kept between sessions ----------------------------------------------------------------------------------------------


def write_places(places: TarPlaces, path: str) -> None:
    """Write places as an npz file; it appears whole, or not at all."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{secrets.token_hex(4)}.npz"
    np.savez(temporary, image=places.image, sidecar=places.sidecar)
    os.replace(temporary, path)


def read_places(path: str) -> TarPlaces:
    """Read places back."""
    with np.load(path) as part:
        return TarPlaces(part["image"], part["sidecar"])
