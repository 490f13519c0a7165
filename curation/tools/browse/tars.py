"""Where the pictures and the truth of a shard's samples lie in its tar: found in one pass, kept beside the catalogue.

A picture is then read alone, from anywhere in a tar of any size.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from curation.archive.members import Place, locate_members, tar_errors
from curation.base import files
from curation.base.ragged import Ragged
from curation.tools.report.examples import read_sidecar, truth

LARGEST_SIDECAR = 1 << 20  # bytes
NOWHERE = Place(-1, 0)


@dataclass(frozen=True)
class TarPlaces:
    """Of n samples of a shard: where image and json sidecar lie, and the concepts that the sidecar says are visible."""

    image: np.ndarray  # (n, 2) int64: offset, -1 for none, and size
    sidecar: np.ndarray  # (n, 2) int64
    has_truth: np.ndarray  # (n,) bool
    visible: Ragged  # n lists of concept ids

    def shows(self, row: int, concept: int) -> bool | None:
        """Whether a sample shows a concept; None where its sidecar does not tell."""
        if not self.has_truth[row]:
            return None
        return concept in self.visible.values[self.visible.offsets[row] : self.visible.offsets[row + 1]]


def find_places(
    path: str, keys: Sequence[str], extensions: Sequence[str], ids: Mapping[tuple[str, ...], int]
) -> TarPlaces:
    """One pass over a tar for these keys; of samples with one key the first is meant, as everywhere.

    extensions: of images, the first that a sample has wins; ids: concept ids by what concepts are matched by. A compressed
    tar has no places. Raises InputError for a tar that cannot be read.
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

    visible: list[list[int]] = [[] for _ in keys]
    has_truth = np.zeros(len(keys), bool)
    with files.open_file(path) as stream:
        for row in np.flatnonzero((sidecar[:, 0] >= 0) & (sidecar[:, 1] <= LARGEST_SIDECAR)).tolist():
            stream.seek(int(sidecar[row, 0]))
            names = truth(read_sidecar(stream.read(int(sidecar[row, 1]))))
            has_truth[row] = names is not None
            visible[row] = sorted({ids[name] for name in names or () if name in ids})
    return TarPlaces(image, sidecar, has_truth, Ragged.from_lists(visible))


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
    np.savez(
        temporary,
        image=places.image,
        sidecar=places.sidecar,
        has_truth=places.has_truth,
        offsets=places.visible.offsets,
        concepts=places.visible.values,
    )
    os.replace(temporary, path)


def read_places(path: str) -> TarPlaces:
    """Read places back."""
    with np.load(path) as part:
        visible = Ragged(part["offsets"], part["concepts"])
        return TarPlaces(part["image"], part["sidecar"], part["has_truth"], visible)
