"""What a run's archives hold, by concept, word and key: files beside no run, built once, mapped and looked up since.

They lie in ``$XDG_CACHE_HOME/cocu/browse``, so that a run is only ever read, and are built again when the run was.
"""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from curation.base import files
from curation.base.errors import CocuError, OutputError
from curation.run.run import Run
from curation.tools.browse.build import POSTINGS, Advance, build
from curation.tools.browse.postings import in_all, starts_of, words_of

VERSION = 1  # of the files; another one is built anew


@dataclass(frozen=True)
class Postings:
    """The archives that hold one concept, the best score first: n entries. Arrays are mapped, not read."""

    row: np.ndarray  # (n,) int32
    score: np.ndarray  # (n,) float32
    support: np.ndarray  # (n,) int16
    companion: np.ndarray  # (n,) int32: id of the best other concept in its cluster, -1 for none
    said: np.ndarray  # (n,) bool: the caption mentions the concept

    def __len__(self) -> int:
        """n."""
        return len(self.row)


@dataclass(frozen=True)
class Catalogue:
    """The catalogue of a run of N archives over V concepts. Use :func:`open_catalogue`."""

    folder: str
    shard_rows: list[int]

    def _array(self, name: str) -> np.ndarray:
        return np.load(os.path.join(self.folder, f"{name}.npy"), mmap_mode="r")

    def _batches(self, name: str) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.memory_map(os.path.join(self.folder, f"{name}.arrow")))

    def __len__(self) -> int:
        """N."""
        return int(self.starts[-1])

    # --- rows -----------------------------------------------------------------------------------------------------------

    @cached_property
    def starts(self) -> np.ndarray:
        """The first row of every shard, and N: (S + 1,) int64."""
        return starts_of(np.array(self.shard_rows, np.int64))

    @cached_property
    def _rows(self) -> list[pa.RecordBatch]:
        reader = self._batches("rows")
        return [reader.get_batch(number) for number in range(reader.num_record_batches)]

    def position(self, row: int) -> tuple[int, int]:
        """The number of the shard that holds a row, and the row within it. Raises CocuError for no row of the run."""
        if not 0 <= row < len(self):
            raise CocuError(f"row {row}: the run has {len(self):,} archives")
        shard = int(np.searchsorted(self.starts, row, side="right")) - 1
        return shard, row - int(self.starts[shard])

    def key(self, row: int) -> str:
        """The key of a row."""
        shard, at = self.position(row)
        return str(self._rows[shard]["key"][at])

    def caption(self, row: int) -> str:
        """The caption of a row."""
        shard, at = self.position(row)
        return str(self._rows[shard]["caption"][at])

    # --- lookups --------------------------------------------------------------------------------------------------------

    @cached_property
    def _postings(self) -> dict[str, np.ndarray]:
        return {name: self._array(f"concept-{name}") for name in POSTINGS}

    @cached_property
    def concept_starts(self) -> np.ndarray:
        """Where the entries of each concept begin, (V + 1,) int64."""
        return np.array(self._array("concept-starts"))

    @property
    def concept_counts(self) -> np.ndarray:
        """How many archives hold each concept, (V,) int64."""
        return np.diff(self.concept_starts)

    def postings(self, concept: int) -> Postings:
        """The archives that hold a concept."""
        inside = slice(*self.concept_starts[concept : concept + 2].tolist())
        return Postings(**{name: column[inside] for name, column in self._postings.items()})

    @cached_property
    def _words(self) -> tuple[pa.Array, np.ndarray, np.ndarray]:
        return self._batches("words").read_all()["word"].combine_chunks(), *map(
            self._array, ("word-starts", "word-row")
        )

    def rows_saying(self, query: str) -> np.ndarray:
        """The rows whose captions hold every word of a query, ascending."""
        names, starts, rows = self._words
        lists = []
        for word in dict.fromkeys(words_of(pa.array([query]))[0].to_pylist()):
            at = _first(len(names), lambda number, word=word: names[number].as_py() >= word)
            if at == len(names) or names[at].as_py() != word:
                return np.zeros(0, np.int64)
            lists.append(rows[starts[at] : starts[at + 1]])
        return in_all(lists)

    @cached_property
    def _key_order(self) -> np.ndarray:
        return self._array("key-order")

    def rows_of_key(self, prefix: str) -> np.ndarray:
        """The rows whose keys begin so, in the order of the keys; a key that is the prefix itself comes first."""
        order = self._key_order
        if not prefix:
            return order[:0]
        first = _first(len(order), lambda at: self.key(int(order[at])) >= prefix)
        beyond = _first(len(order), lambda at: self.key(int(order[at]))[: len(prefix)] > prefix)
        return order[first:beyond]

    @cached_property
    def rejects(self) -> pa.Table:
        """What could not be used: kind, shard, row, key, reason, in the order of the shards."""
        return self._batches("rejects").read_all()


def _first(size: int, is_reached: Any) -> int:
    """The first number below ``size`` for which a condition that stays true holds; ``size`` for none."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_reached(middle) else (middle + 1, high)
    return low


# --- opening ------------------------------------------------------------------------------------------------------------


def cache_folder() -> str:
    """``$XDG_CACHE_HOME/cocu/browse``, or ``~/.cache/cocu/browse``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "cocu", "browse")


def open_catalogue(run: Run, cache: str | None = None, advance: Advance = lambda shards: None) -> Catalogue:
    """The catalogue of a finished run, built first where there is none, or where the run was made again since.

    ``cache``: the folder of catalogues. ``advance`` is told how many shards are done. Raises CocuError, and OutputError
    where the folder cannot be written to.
    """
    folder = os.path.join(cache or cache_folder(), files.digest(files.base(run.folder)))
    identity = files.digest(VERSION, files.version(run.manifest), [shard.name for shard in run.shards])
    try:
        os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            note = files.read_note(os.path.join(folder, "catalogue.json"))
            if note.get("identity") != identity:
                note = _build(run, folder, identity, advance)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror or error}); make room there, or give another --cache"
        ) from None
    return Catalogue(folder, note["rows"])


def _build(run: Run, folder: str, identity: str, advance: Advance) -> dict[str, Any]:
    """Build beside and put in place whole."""
    temporary = f"{folder}.{secrets.token_hex(4)}"
    os.mkdir(temporary, 0o700)
    try:
        note = {"identity": identity, "run": files.base(run.folder), **build(run, temporary, advance)}
        files.write_json(os.path.join(temporary, "catalogue.json"), note)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return note
