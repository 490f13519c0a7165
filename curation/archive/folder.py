"""The concept archives of a curation run, ready to be handed to other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curation.archive import display, joining
from curation.archive.entries import flatten
from curation.archive.reader import ArchiveReader, Key
from curation.archive.sampling import Sampler

if TYPE_CHECKING:
    import datasets
    import pandas
    import polars


@dataclass(frozen=True)
class ConceptArchive(ArchiveReader):
    """The output folder of a finished curation run, local or remote. Use :meth:`open`.

    ``archive[key]`` is one archive, ``for row in archive`` goes through all of them in the order of the tars; ``show`` and
    ``head`` are for looking. The methods ``to_...`` return everything at once.
    """

    def __repr__(self) -> str:
        """What it holds, in a line."""
        return display.line(self)

    def _repr_html_(self) -> str:
        return display.table(self)

    def head(self, count: int = 5) -> display.Rows:
        """The first archives, as a list that a terminal and a notebook show; no more shards are read than they need."""
        rows: list[dict[str, Any]] = []
        shards: list[str] = []
        for name in self.shards:
            if len(rows) >= count:
                break
            rows += self.table(name).slice(0, count - len(rows)).to_pylist()
            shards += [name] * (len(rows) - len(shards))
        return display.Rows(self, rows, shards)

    def show(self, *keys: Key) -> display.Rows:
        """The archives of these keys, or of pairs (shard, key), likewise: with pictures in a notebook.

        Raises UnknownKey and AmbiguousKey.
        """
        numbers, _ = self._locate(list(keys))
        return display.Rows(self, self.select(keys).to_pylist(), [self.shards[number] for number in numbers])

    def join(
        self,
        samples: Iterable[joining.RawSample],
        sampler: Sampler | None = None,
        seed: int = 0,
        epoch: int | Callable[[], int] = 0,
        required: bool = True,
    ) -> Iterator[joining.RawSample]:
        """Webdataset samples with their archives: ``wds.WebDataset(tars).compose(archive.join)``.

        See :func:`curation.archive.joining.attach`; a ``decode`` comes after it, with ``partial=True``.
        """
        return joining.attach(samples, self, sampler, seed, epoch, required)

    def to_arrow(self, flat: bool = False) -> pa.Table:
        """All archives, a row each; or ``flat``, a row for every concept of every archive."""
        tables = [flatten(table) if flat else table for table in (self.schema.empty_table(), *self.tables())]
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
        from curation.archive.huggingface import stream, whole

        return stream(self) if streaming else whole(self.to_arrow())
