"""The concept archives of a curation run, ready to be handed to other tools."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from curation.archive import joining
from curation.archive.entries import flatten
from curation.archive.reader import ArchiveReader
from curation.archive.sampling import Sampler

if TYPE_CHECKING:
    import datasets
    import pandas
    import polars


@dataclass(frozen=True)
class ConceptArchive(ArchiveReader):
    """The output folder of a finished curation run, local or remote. Use :meth:`open`.

    ``archive[key]`` is one archive, ``for row in archive`` goes through all of them in the order of the tars. The methods
    ``to_...`` return everything at once.
    """

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
