"""Why an archive holds what it holds: what was retrieved for its image, and which of those captions mention a concept."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from curation.base.ragged import Ragged
from curation.expansion import EXPANSIONS
from curation.run.curator import Curator, open_curator
from curation.run.indexes import check_retrieved, indexed_shards
from curation.run.run import Run
from curation.tools.browse.catalogue import Catalogue
from curation.tools.finder import image_embedding
from curation.tools.report.examples import rows_of


class Neighbour(NamedTuple):
    """A sample that was retrieved, of the run itself or of the one of ``retrieval.data``."""

    row: int  # of the index
    cosine: float
    shard: int
    at: int  # row in the shard
    key: str
    caption: str
    concepts: frozenset[int]  # that its caption mentions
    is_self: bool


def mentioning(concepts: np.ndarray, neighbours: Ragged) -> list[list[int]]:
    """For each of P concepts, which of L neighbours' captions mention it, by number.

    concepts (P,): ids; neighbours: L lists of ids.

    >>> mentioning(np.array([4, 6]), Ragged.from_lists([[4], [5], [4, 6]]))
    [[0, 2], [2]]
    """
    return [np.unique(neighbours.owners[neighbours.values == concept]).tolist() for concept in concepts]


@dataclass(frozen=True)
class Evidence:
    """Looks up what was retrieved for an image, as curation did."""

    run: Run
    catalogue: Catalogue

    @property
    def retrieves(self) -> bool:
        """Whether archives of the run come from what was retrieved."""
        return EXPANSIONS[self.run.config.archive.expansion].retrieves is not None

    @cached_property
    def source(self) -> Run:
        """The run whose images are retrieved. Raises CocuError where it is no longer the one of then."""
        return check_retrieved(self.run)

    @cached_property
    def _curator(self) -> Curator:
        curator = open_curator(self.run)
        return replace(curator, index=curator.index and curator.index.one_by_one())

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0] + [rows for _, rows in indexed_shards(self.run)])

    @property
    def is_own(self) -> bool:
        """Whether the run's own images are retrieved, so that a row of the index is a row of the run."""
        return not self.run.config.retrieval.data

    def position(self, row: int) -> tuple[int, int]:
        """Shard and row there of a row of the index."""
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    @property
    def rows(self) -> int:
        """Rows of the index."""
        return int(self._starts[-1])

    def key_and_caption(self, shard: int, at: int) -> tuple[str, str]:
        """Of a sample of the run that is retrieved from."""
        path = self.source.of_shard("embeddings", self.source.shards[shard])
        (sample,) = rows_of(path, [at], ["key", "caption"])
        return sample["key"], sample["caption"]

    def neighbours(self, row: int) -> list[Neighbour]:
        """What was retrieved for a row of the run, the nearest first."""
        if not self.retrieves:
            return []
        _ = self.source  # that rows of the index mean what they did
        image = image_embedding(self.run, *self.catalogue.position(row))
        ids, cosines = self._curator.neighbours(image, np.array([row if self.is_own else -1]))
        held = ids[0] >= 0
        mentions = self._curator.mentions.concepts.take(ids[0][held])
        return [
            self._neighbour(number, cosine, row, mentions.slice(at, at + 1).values)
            for at, (number, cosine) in enumerate(zip(ids[0][held].tolist(), cosines[0][held].tolist(), strict=True))
        ]

    def _neighbour(self, number: int, cosine: float, row: int, concepts: np.ndarray) -> Neighbour:
        shard, at = self.position(number)
        if self.is_own:
            key, caption = self.catalogue.key(number), self.catalogue.caption(number)
        else:
            key, caption = self.key_and_caption(shard, at)
        is_self = self.is_own and number == row
        return Neighbour(number, cosine, shard, at, key, caption, frozenset(concepts.tolist()), is_self)


def archive_of(run: Run, shard: int, at: int) -> list[dict[str, object]]:
    """The archive of a row of a shard, entries as they are stored."""
    from curation.archive import read_archive

    rows: pa.Table = read_archive(run.of_shard("archives", run.shards[shard])).slice(at, 1)
    concepts: list[dict[str, object]] = rows["concepts"].to_pylist()[0]
    return concepts
