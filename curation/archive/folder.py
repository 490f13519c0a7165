"""The concept archives of a curation run: found by shard and by key, filtered, sampled, joined and handed to other tools.

Nothing is read before it is asked for, and no more of it than one shard at a time, except by the methods ``to_...``, which
return everything.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive import joining
from curation.archive.entries import Filter, entries, flatten, is_omitted, keep
from curation.archive.keys import Footer, locate, read_footers, read_keys
from curation.archive.parquet import SCHEMA, read_archive
from curation.archive.sampling import Sampler
from curation.archive.shard import ShardArchives, read_caption_concepts, shard_archives
from curation.archive.source import Source, list_sources
from curation.base import files
from curation.base.errors import CocuError, UnknownKey
from curation.base.parquet import open_parquet

if TYPE_CHECKING:
    import datasets
    import pandas
    import polars

Row = dict[str, Any]  # key, caption and concepts, a list of {concept, score, global, local, cluster, support}


@dataclass(frozen=True)
class ConceptArchive:
    """The output folder of a finished curation run, local or remote. Use :meth:`open`.

    ``archive[key]`` is one archive, ``for row in archive`` goes through all of them in the order of the tars.
    """

    folder: str
    manifest: dict[str, Any]
    filters: tuple[Filter, ...] = ()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ConceptArchive:
        """Open an output folder, a path or a URL that fsspec knows. Raises CocuError when it holds no finished run."""
        folder = os.fspath(folder)
        manifest = files.join(folder, "manifest.json")
        if not files.exists(manifest):
            raise CocuError(f"{folder}: no manifest.json, so no finished curation; run make curate first")
        values = files.read_json(manifest)
        if not isinstance(values.get("config"), dict):
            raise CocuError(f"{manifest}: has no config; run make curate again")
        return cls(folder, values)

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
    def sources(self) -> list[Source]:
        """The tars that were curated, in order.

        Raises CocuError when there are none (embeddings were imported), or they are no longer there.
        """
        config = self.manifest["config"]
        if not config.get("shards"):
            raise CocuError(f"{self.folder}: was made from imported embeddings, not from tars; give the tars as shards")
        patterns = [config["shards"]] if isinstance(config["shards"], str) else config["shards"]
        resolved = [files.resolve(item, files.base(self.folder)) for item in patterns]
        return list_sources(resolved, config["image"], config["caption"])

    @cached_property
    def _footers(self) -> list[Footer]:
        return read_footers(self.path("archives", name) for name in self.shards)

    @property
    def rows(self) -> list[int]:
        """Archives of each shard, in the order of :attr:`shards`. Raises CocuError when a file is missing."""
        return [footer.rows for footer in self._footers]

    @cached_property
    def vocabulary(self) -> list[str]:
        """Every concept of the vocabulary, by concept id."""
        with open_parquet(files.join(self.folder, "vocabulary.parquet")) as file:
            names: list[str] = file.read(["concept"])["concept"].to_pylist()
        return names

    def __len__(self) -> int:
        """The number of archives."""
        return sum(self.rows)

    def __bool__(self) -> bool:
        """An archive is there, even one without rows."""
        return True

    # --- reading ----------------------------------------------------------------------------------------------------------

    def filter(
        self, score: float = -math.inf, support: int = 0, top: int | None = None, omitted: bool = False
    ) -> ConceptArchive:
        """The same archives with fewer concepts; the arguments are those of :class:`Filter`. Filters apply in turn.

        An archive of which nothing is left stays, with no concepts.
        """
        return dataclasses.replace(self, filters=(*self.filters, Filter(score, support, top, omitted)))

    def table(self, name: str) -> pa.Table:
        """The archives of a shard: key, caption, concepts, in the order of the tar."""
        table = read_archive(self.path("archives", name))
        for item in self.filters:
            offsets, flat = entries(table)
            score, support = flat.field("score").to_numpy(), flat.field("support").to_numpy()
            omitted = self._omitted(name, table) if item.omitted else np.ones(len(score), bool)
            table = keep(table, item.kept(offsets, score, support, omitted))
        return table

    def _omitted(self, name: str, table: pa.Table) -> np.ndarray:
        offsets, flat = entries(table)
        names = flat.field("concept")
        captions = self.read(name, mentioned=True)
        ids = pc.index_in(names.dictionary, pa.array(captions.names, pa.string()))
        return is_omitted(offsets, ids.to_numpy()[names.indices.to_numpy()], captions.offsets, captions.concepts)

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
        archives = shard_archives(read_archive(self.path("archives", name)))
        vocabulary = files.join(self.folder, "vocabulary.parquet")
        return read_caption_concepts(self.path("embeddings", name), vocabulary, archives)

    def rejected(self, name: str) -> set[str]:
        """Keys of the samples of a shard that could not be used."""
        path = self.path("rejects", name)
        if not files.exists(path):
            return set()
        with open_parquet(path) as file:
            return set(file.read(["key"])["key"].to_pylist())

    # --- by key -----------------------------------------------------------------------------------------------------------

    def _locate(self, keys: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of every key. Raises UnknownKey for a key that no shard holds."""
        shards, rows = locate(keys, self._footers, lambda shard: read_keys(self.path("archives", self.shards[shard])))
        if (shards < 0).any():
            missing = keys[int(np.flatnonzero(shards < 0)[0])]
            raise UnknownKey(f"{self.folder}: no archive has the key {missing}; rejected samples are in rejects/")
        return shards, rows

    def __contains__(self, key: str) -> bool:
        """Whether there is an archive of this key."""
        try:
            self._locate([key])
        except UnknownKey:
            return False
        return True

    def __getitem__(self, key: str) -> Row:
        """The archive of a key. Raises UnknownKey, which is a KeyError and a CocuError. Use :meth:`select` for many."""
        row: Row = self.select([key]).to_pylist()[0]
        return row

    def select(self, keys: Iterable[str]) -> pa.Table:
        """The archives of these keys, in their order. Raises UnknownKey for a key that no shard holds."""
        shards, rows = self._locate(list(keys))
        parts, places = [SCHEMA.empty_table()], [np.zeros(0, np.int64)]
        for shard in np.unique(shards):
            places.append(np.flatnonzero(shards == shard))
            parts.append(self.table(self.shards[shard]).take(pa.array(rows[places[-1]])))
        return pa.concat_tables(parts).take(pa.array(np.argsort(np.concatenate(places))))

    def prompts(
        self, keys: Iterable[str], sampler: Sampler = Sampler(), seed: int = 0, epoch: int = 0
    ) -> list[list[str]]:
        """M prompts for every key, as the trainer draws them in this epoch. Raises UnknownKey."""
        keys = list(keys)
        shards, rows = self._locate(keys)
        found: list[list[str]] = [[]] * len(keys)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            archives = self.read(self.shards[shard], sampler.kind == "caption").take(rows[places])
            for place, drawn in zip(places, archives.prompts(sampler, seed, epoch), strict=True):
                found[place] = drawn
        return found

    # --- other tools ------------------------------------------------------------------------------------------------------

    def join(
        self,
        samples: Iterable[joining.Sample],
        sampler: Sampler | None = None,
        seed: int = 0,
        epoch: int | Callable[[], int] = 0,
        required: bool = True,
    ) -> Iterator[joining.Sample]:
        """Webdataset samples with their archives: ``wds.WebDataset(tars).compose(archive.join)``.

        See :func:`curation.archive.joining.attach`; a ``decode`` comes after it, with ``partial=True``.
        """
        return joining.attach(samples, self, sampler, seed, epoch, required)

    def to_arrow(self, flat: bool = False) -> pa.Table:
        """All archives, a row each; or ``flat``, a row for every concept of every archive."""
        tables = [flatten(table) if flat else table for table in (SCHEMA.empty_table(), *self.tables())]
        return pa.concat_tables(tables)

    def to_pandas(self, flat: bool = False) -> pandas.DataFrame:
        """As :meth:`to_arrow`, for pandas; ``concepts`` are arrays of dicts, so ``flat`` is often handier."""
        return self.to_arrow(flat).to_pandas()

    def to_polars(self, flat: bool = False) -> polars.DataFrame:
        """As :meth:`to_arrow`, for polars."""
        import polars

        frame = polars.from_arrow(self.to_arrow(flat))
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_datasets(self, streaming: bool = False) -> datasets.Dataset | datasets.IterableDataset:
        """For Hugging Face datasets: in memory, or ``streaming`` shard by shard, split over workers by shard."""
        from curation.archive.huggingface import dataset

        return dataset(self, streaming)
