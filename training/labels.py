"""What a dense model is told of each image: concepts of its caption, some of its archive, and what else may be there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation.base.errors import CocuError
from training.datamodule import ArchiveDataModule
from training.negatives import NONE, SampleConcepts, concept_ids
from training.stream import DrawnShard, Pair, Stream, TrainingSample, TrainingShard, held_concepts

NOTHING = SampleConcepts(np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True)
class LabelStream(Stream):
    """Samples whose ``concepts`` are labels.

    ``drawn`` is what the caption mentions and what the sampler drew, ``held`` what does not count against the image.
    """

    def _draw(self, shard: TrainingShard, epoch: int) -> DrawnShard | None:
        drawn = super()._draw(shard, epoch)
        if drawn is None or shard.archive is None:
            return drawn
        of_caption = self.sampler_in(epoch).method.of_caption
        captions = drawn.archives if of_caption else shard.archive.read(shard.source.name, mentioned=True)

        ids = concept_ids(drawn.archives.names)[drawn.draw.concepts]  # (N, M)
        held = [sample.held for sample in drawn.concepts] if drawn.concepts else [NOTHING.held] * len(ids)
        rows = zip(held_concepts(captions), ids, held, strict=True)
        return drawn._replace(concepts=[SampleConcepts(positives(*row[:2]), row[2]) for row in rows])

    def _sample(self, shard: TrainingShard, pair: Pair, drawn: DrawnShard | None, epoch: int) -> TrainingSample:
        sample = super()._sample(shard, pair, drawn, epoch)
        told = sample.concepts if drawn is not None and not sample.lacks_archive and sample.concepts else NOTHING
        return sample._replace(
            concepts=told, prompts=[sample.caption]
        )  # no prompt is read: the captions stand for them


def positives(mentioned: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Concept ids, each once: those of the caption and those that were drawn, without NONE."""
    both = np.union1d(mentioned, drawn)
    return both[both != NONE]


class LabelDataModule(ArchiveDataModule):
    """The same data, with labels of images in place of prompts.

    ``data.sampler`` draws positives beside those of the caption (kind caption: none), and ``data.negatives: outside`` makes
    unknowns of what else the archive holds.
    """

    stream = LabelStream

    @property
    def vocabulary(self) -> list[str]:
        """Every concept of the runs, sorted. Raises RuntimeError before :meth:`setup`, CocuError where there are none."""
        if not self.shards:
            raise RuntimeError("the data has no vocabulary before setup")
        runs = {shard.archive.folder: shard.archive for shard in self.shards if shard.archive}
        if not runs:
            raise CocuError(
                "data.archives: missing; the places of a CLIP learn concepts, which captions alone do not name"
            )
        return sorted({name for run in runs.values() for name in run.vocabulary})
