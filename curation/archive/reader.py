"""Reading the concept archives of a curation run: by shard and by key, filtered, selected, as prompts.

Nothing is read before it is asked for, and no more of it than one shard at a time.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.entries import Filter, Holding, duplicates_in, entries, keep
from curation.archive.keys import Footer, locate, read_footers, read_keys
from curation.archive.parquet import archive_schema, read_archive
from curation.archive.sampling import Sampler
from curation.archive.shard import ShardArchives, read_caption_concepts, shard_archives
from curation.archive.source import Source, shard_name
from curation.base import files
from curation.base.configuration import did_you_mean, parse_bytes
from curation.base.errors import AmbiguousKey, CocuError, UnknownKey, quoted
from curation.base.parquet import read_columns
from curation.base.patterns import expand, split
from curation.base.ragged import is_in
from curation.base.recorded import check_manifest, check_openable, resolve_recorded

Row = dict[str, Any]  # key, caption and concepts, a list of {concept, score, global, local, cluster, support}
Key = str | tuple[str, str]  # a key, or the name of its shard and the key


@dataclass(frozen=True)
class ArchiveReader:
    """The output folder of a finished curation run, local or remote. Use :meth:`open`."""

    folder: str
    manifest: dict[str, Any]
    filters: tuple[Filter | Holding, ...] = ()
    allow_remote: bool = False

    @classmethod
    def open(cls, folder: str | os.PathLike[str], allow_remote: bool = False) -> Self:
        """Open an output folder, a path or a URL that fsspec knows. Raises CocuError when it holds no finished run.

        ``allow_remote``: the tars may be read at the addresses that the folder names, wherever these are. Leave it out for
        folders whose origin you do not trust; local files, and what lies beside a remote folder, can be read anyway.
        """
        folder = os.fspath(folder)
        manifest = files.join(folder, "manifest.json")
        if not files.exists(manifest):
            raise CocuError(f"{folder}: no manifest.json, so no finished curation; run cocu curate first")
        values = files.read_json(manifest)
        check_manifest(values, manifest)
        return cls(folder, values, allow_remote=allow_remote)

    # --- what there is ----------------------------------------------------------------------------------------------------

    def path(self, kind: str, name: str) -> str:
        """The Parquet file of a shard: ``kind`` is archives, embeddings or rejects."""
        return files.join(self.folder, kind, name + ".parquet")

    @cached_property
    def shards(self) -> list[str]:
        """The names of the shards, in order: those of the tars, without ``.tar``."""
        if "shards" in self.manifest:
            return list(self.manifest["shards"])
        written = files.files_in(files.join(self.folder, "archives"))
        return [name.removesuffix(".parquet") for name in written if name.endswith(".parquet")]

    @cached_property
    def paths(self) -> list[str]:
        """The tars that were curated, in the order of :attr:`shards`, as the run recorded them; they may be gone."""
        folder = files.base(self.folder)
        if "paths" in self.manifest:
            paths = [resolve_recorded(path, folder) for path in self.manifest["paths"]]
            if len(paths) != len(self.shards):
                raise CocuError(
                    f"{self.folder}: {len(paths)} tars for {len(self.shards)} shards; run cocu curate again"
                )
            return paths

        # Runs before 0.2 recorded patterns, which may match more files by now, or none: only the names count.
        recorded = self.manifest["config"].get("shards") or []
        joined = [recorded] if isinstance(recorded, str) else recorded
        patterns = [resolve_recorded(part, folder) for item in joined for part in split(str(item))]
        for pattern in patterns:
            check_openable(pattern, self.folder, self.allow_remote)
        matches = {shard_name(path): path for pattern in patterns for path in expand(pattern)}
        guess = os.path.dirname(patterns[0]) if patterns else ""
        return [matches.get(name, files.join(guess, f"{name}.tar")) for name in self.shards]

    @cached_property
    def sources(self) -> list[Source]:
        """The tars that were curated, in order, as the run recorded them.

        Raises CocuError when there are none (embeddings were imported), and InputError for an address that must not be
        opened unasked.
        """
        config = self.manifest["config"]
        if not config.get("shards"):
            raise CocuError(f"{self.folder}: was made from imported embeddings, not from tars; give the tars as shards")
        for path in self.paths:
            check_openable(path, self.folder, self.allow_remote)
        largest = parse_bytes(str(config.get("max_member", "256M")), "max_member")
        fields = config.get("image", ""), config.get("caption", ""), largest, tuple(config.get("captions") or ())
        return [Source(name, path, *fields) for name, path in zip(self.shards, self.paths, strict=True)]

    @property
    def schema(self) -> pa.Schema:
        """The columns of the archives: with ``captions`` and ``sources`` where images may have several captions, and
        ``duplicate_of`` where near-identical images count once."""
        config = self.manifest["config"]
        counts_once = (config.get("retrieval") or {}).get("duplicates", "keep") != "keep"
        return archive_schema(bool(config.get("captions")), counts_once)

    @cached_property
    def _footers(self) -> list[Footer]:
        return read_footers(self.path("archives", name) for name in self.shards)

    @property
    def rows(self) -> list[int]:
        """Archives of each shard, in the order of :attr:`shards`. Raises CocuError when a file is missing.

        With ``filter(concept=...)`` every shard is read for them, once.
        """
        return self._kept_counts if self._drops else [footer.rows for footer in self._footers]

    @cached_property
    def _kept_counts(self) -> list[int]:
        return [len(self._filtered(name)[1]) for name in self.shards]

    @property
    def _drops(self) -> bool:
        """Whether archives may be left out."""
        return any(isinstance(condition, Holding) for condition in self.filters)

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every concept of the vocabulary, by concept id."""
        path = files.join(self.folder, "vocabulary.parquet")
        names: list[str] = read_columns(path, {"concept": pa.string()})["concept"].to_pylist()
        return names

    def __len__(self) -> int:
        """The number of archives."""
        return sum(self.rows)

    def __bool__(self) -> bool:
        """An archive is there, even one without rows."""
        return True

    # --- by shard ---------------------------------------------------------------------------------------------------------

    def filter(self, *values: Any, concept: str | Iterable[str] | None = None, **conditions: Any) -> Self:
        """The same archives with fewer concepts; the conditions are those of :class:`Filter`. Filters apply in turn.

        An archive of which nothing is left stays, with no concepts: ``archive.filter(support=2, top=5)``.
        ``concept``, a name or several, keeps only the archives that hold one of them, with all of their concepts, once the
        other conditions are met: ``archive.filter(concept="fox", omitted=True)`` are the images whose captions omit a fox.
        Raises CocuError for an unknown condition, and for a concept that is not in the vocabulary.
        """
        known = [*(field.name for field in dataclasses.fields(Filter)), "concept"]
        for name in conditions:
            if name not in known:
                raise CocuError(f"filter: unknown condition {name}{did_you_mean(name, known)}")

        applied: list[Filter | Holding] = [Filter(*values, **conditions)] if values or conditions else []
        if concept is not None:
            names = (concept,) if isinstance(concept, str) else tuple(concept)
            self._check_concepts(names)
            applied.append(Holding(names))
        return dataclasses.replace(self, filters=(*self.filters, *applied))

    def _check_concepts(self, names: Sequence[str]) -> None:
        if not files.exists(files.join(self.folder, "vocabulary.parquet")):
            return  # archives alone do not say which concepts there are
        for name in names:
            if name not in self.vocabulary:
                raise CocuError(
                    f"filter: {quoted(name)} is no concept of the vocabulary{did_you_mean(name, self.vocabulary)}"
                )

    def table(self, name: str) -> pa.Table:
        """The archives of a shard: key, caption, concepts, in the order of the tar."""
        return self._filtered(name)[0]

    def _filtered(self, name: str) -> tuple[pa.Table, np.ndarray]:
        """The archives of a shard that the filters keep, and their rows (N,) int64 in its file."""
        table = read_archive(self.path("archives", name))
        rows = np.arange(table.num_rows)
        for condition in self.filters:
            if condition == Filter():
                continue  # it lets everything pass
            if isinstance(condition, Holding):
                kept = np.flatnonzero(condition.holds(table))
                table, rows = table.take(pa.array(kept)), rows[kept]
                continue
            archives, structs = entries(table)
            score = structs.field("score").to_numpy()
            support = structs.field("support").to_numpy()
            omitted = self._omitted(name, table, rows) if condition.omitted else np.ones(len(score), bool)
            passes = condition.passes(archives, score, support, omitted)
            if condition.distinct:
                passes &= ~duplicates_in(table)[archives.owners]
            table = keep(table, passes)
        return table, rows

    def duplicates_left_out(self, name: str) -> np.ndarray | None:
        """Which images of a shard the filters leave out as duplicates of others, bool (N,); None for none."""
        if not any(isinstance(condition, Filter) and condition.distinct for condition in self.filters):
            return None
        return duplicates_in(read_archive(self.path("archives", name)))

    def _omitted(self, name: str, table: pa.Table, rows: np.ndarray) -> np.ndarray:
        """Which entries of the archives in some rows of a shard its captions do not mention: bool (P,)."""
        archives, structs = entries(table)
        concepts = structs.field("concept")
        captions = self._mentioned(name)
        ids = pc.index_in(concepts.dictionary, pa.array(captions.names, pa.string())).to_numpy()
        return ~is_in(archives.with_values(ids[concepts.indices.to_numpy()]), captions.lists.take(rows))

    def _mentioned(self, name: str) -> ShardArchives:
        """The concepts that the captions of a shard mention, in place of its archives, whatever the filters."""
        archives = shard_archives(read_archive(self.path("archives", name)))
        vocabulary = files.join(self.folder, "vocabulary.parquet")
        return read_caption_concepts(self.path("embeddings", name), vocabulary, archives)

    def rows_of(self, name: str) -> np.ndarray:
        """The rows (N,) int64 of a shard's files that :meth:`table` has."""
        return self._filtered(name)[1] if self._drops else np.arange(self._footers[self.shards.index(name)].rows)

    def left_out(self, name: str) -> set[str]:
        """Keys of the archives of a shard that ``filter(concept=...)`` leaves out."""
        if not self._drops:
            return set()
        every = read_keys(self.path("archives", name))
        return set(np.delete(np.array(every.to_pylist(), object), self._filtered(name)[1]).tolist())

    def tables(self) -> Iterator[pa.Table]:
        """The archives of every shard, one shard at a time."""
        return map(self.table, self.shards)

    def __iter__(self) -> Iterator[Row]:
        """Every archive, one shard in memory at a time."""
        for table in self.tables():
            yield from table.to_pylist()

    def read(self, name: str, mentioned: bool = False) -> ShardArchives:
        """The archives of a shard as arrays; with ``mentioned``, the concepts that its captions mention in their place."""
        if not mentioned:
            return shard_archives(self.table(name))
        captions = self._mentioned(name)
        return captions.take(self._filtered(name)[1]) if self._drops else captions

    def rejected(self, name: str) -> set[str]:
        """Keys of the samples of a shard that could not be used."""
        path = self.path("rejects", name)
        if not files.exists(path):
            return set()
        return set(read_columns(path, {"key": pa.string()})["key"].to_pylist())

    # --- by key -----------------------------------------------------------------------------------------------------------

    def _locate(self, keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
        """Shard of every key, and row in :meth:`table` of it.

        Raises UnknownKey for a key that no shard holds or the filters leave out, AmbiguousKey where several shards hold it.
        """
        names = [key if isinstance(key, str) else key[1] for key in keys]
        numbers = {name: number for number, name in enumerate(self.shards)}
        chosen = np.array([-1 if isinstance(key, str) else numbers.get(key[0], len(numbers)) for key in keys], np.int64)
        last = np.where(chosen < 0, len(numbers), chosen)
        shards, rows = locate(names, self._footers, self._keys, np.maximum(chosen, 0), last)
        if (shards < 0).any():
            missing = keys[int(np.flatnonzero(shards < 0)[0])]
            shown = missing if isinstance(missing, str) else f"{missing[1]} in shard {missing[0]}"
            raise UnknownKey(f"{self.folder}: no archive has the key {shown}; rejected samples are in rejects/")

        if self.manifest.get("counts", {}).get("repeated_keys") != 0:
            others, _ = locate(names, self._footers, self._keys, shards + 1, np.where(chosen < 0, len(numbers), -1))
            for position in np.flatnonzero(others >= 0):
                one, other = self.shards[shards[position]], self.shards[others[position]]
                raise AmbiguousKey(
                    f"{self.folder}: the key {names[position]} is in the shards {one} and {other}; "
                    f"ask for one of them, as ({one!r}, {names[position]!r})"
                )
        return shards, self._positions(keys, shards, rows) if self._drops else rows

    def _positions(self, keys: Sequence[Key], shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The places of rows of files among those that the filters keep. Raises UnknownKey for one that they leave out."""
        positions = np.full(len(rows), -1)
        for shard in np.unique(shards):
            kept = self._filtered(self.shards[shard])[1]
            of_shard = np.flatnonzero((shards == shard) & np.isin(rows, kept))
            positions[of_shard] = np.searchsorted(kept, rows[of_shard])
        if (positions < 0).any():
            missing = keys[int(np.flatnonzero(positions < 0)[0])]
            shown = missing if isinstance(missing, str) else f"{missing[1]} in shard {missing[0]}"
            raise UnknownKey(f"{self.folder}: the archive of {shown} holds none of the concepts of filter(concept=...)")
        return positions

    def _keys(self, shard: int) -> pa.Array:
        return read_keys(self.path("archives", self.shards[shard]))

    def __contains__(self, key: Key) -> bool:
        """Whether there is an archive of this key."""
        try:
            self._locate([key])
        except AmbiguousKey:
            return True
        except UnknownKey:
            return False
        return True

    def __getitem__(self, key: Key) -> Row:
        """The archive of a key, or of (shard, key). Use :meth:`select` for many.

        Raises UnknownKey, and AmbiguousKey for a key of several shards; both are a KeyError and a CocuError.
        """
        row: Row = self.select([key]).to_pylist()[0]
        return row

    def select(self, keys: Iterable[Key]) -> pa.Table:
        """The archives of these keys, or of pairs (shard, key), in their order. Raises UnknownKey and AmbiguousKey."""
        shards, rows = self._locate(list(keys))
        parts = [self.schema.empty_table()]
        positions = [np.zeros(0, np.int64)]
        for shard in np.unique(shards):
            of_shard = np.flatnonzero(shards == shard)
            positions.append(of_shard)
            parts.append(self.table(self.shards[shard]).take(pa.array(rows[of_shard])))
        return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(positions))))

    def prompts(
        self, keys: Iterable[Key], sampler: Sampler = Sampler(), seed: int = 0, epoch: int = 0
    ) -> list[list[str]]:
        """M prompts for every key, or (shard, key), as the trainer draws them in this epoch.

        Raises UnknownKey and AmbiguousKey.
        """
        keys = list(keys)
        shards, rows = self._locate(keys)
        drawn: list[list[str]] = [[]] * len(keys)
        for shard in np.unique(shards):
            positions = np.flatnonzero(shards == shard)
            archives = self.read(self.shards[shard], sampler.method.of_caption).take(rows[positions])
            for position, prompts in zip(positions, archives.prompts(sampler, seed, epoch), strict=True):
                drawn[position] = prompts
        return drawn
