"""The data of a training run: curated shards, read side by side with their archives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from curation.archive import ConceptArchive, Filter, Sampler, list_sources
from curation.base.errors import CocuError
from training.augmentation import Augmentation, plain_transform
from training.batches import Batch, Batches, Loader, collate
from training.negatives import NEGATIVES
from training.plan import Plan, Span
from training.stream import Sample, Shard, Stream, count_rows


class ArchiveDataModule(LightningDataModule):
    """Images, captions and concept archives of one or several data sets."""

    def __init__(
        self,
        archives: list[str] | str | None = None,
        shards: list[str] | None = None,
        image: str = "jpg;png;jpeg;webp",
        caption: str = "txt;text",
        sampler: Sampler = Sampler(),
        filter: Filter = Filter(),
        negatives: str = "all",
        augmentation: Augmentation = Augmentation(),
        batch_size: int = 256,
        workers: int = 4,
        shuffle: int = 5000,
        require_archives: bool = True,
        allow_remote: bool = False,
        validation_shards: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            archives: output folders of finished curation runs, such as artifacts/cc12m; several are mixed sample by sample.
            shards: tars without archives (braces or globs), trained on by their captions; needs require_archives: false.
            image: image fields of ``shards`` and ``validation_shards``; the first that is present wins.
            caption: caption fields of the same.
            sampler: how concepts are drawn from an archive each time that a sample is seen.
            filter: which concepts of an archive count; the caption stands in for those that are too few.
            negatives: which prompts of other samples count against an image: all, as published, or those outside, about
                concepts that its archive does not hold (whatever the filter), so that what it may show is not denied.
            augmentation: what is done to the images.
            batch_size: samples of one step on one device.
            workers: processes that read for each device; 0 reads in the training process itself.
            shuffle: samples in the shuffle buffer of each worker; the order of shards is random anyway.
            require_archives: a sample without an archive is an error; if false, its caption serves, and it is counted.
            allow_remote: read the tars of archives at the addresses that these name, even if they are not local.
            validation_shards: tars that are not trained on, for retrieval accuracy; else one batch of the training data.
            seed: of the order, the augmentation and the draws from archives.
        """
        super().__init__()
        self.folders = [archives] if isinstance(archives, str) else list(archives or [])
        self.tars, self.image, self.caption = list(shards or []), image, caption
        self.sampler, self.filter, self.augmentation, self.batch_size = sampler, filter, augmentation, batch_size
        self.workers, self.shuffle, self.seed = workers, shuffle, seed
        self.allow_remote = allow_remote
        self.require_archives, self.validation_shards = require_archives, list(validation_shards or [])
        if negatives not in NEGATIVES:
            raise CocuError(f"data.negatives: {negatives!r} is not one of {', '.join(NEGATIVES)}")
        self.negatives = negatives
        for name, value, least in (("batch_size", batch_size, 2), ("workers", workers, 0), ("shuffle", shuffle, 0)):
            if value < least:
                raise CocuError(f"data.{name}: {value} must be at least {least}")
        if not self.folders and not self.tars:
            raise CocuError("data.archives: missing; name the output folder of make curate, such as artifacts/cc12m")
        if not self.folders and negatives == "outside":
            raise CocuError("data.negatives: outside needs archives; name them in data.archives, or set it to all")
        if self.tars and require_archives:
            raise CocuError("data.shards: these tars have no archives; set data.require_archives to false to use them")
        self.shards: tuple[Shard, ...] = ()
        self.plan: Plan | None = None

    def setup(self, stage: str) -> None:
        """Find the shards, count their samples, and split them over ranks and workers.

        Raises CocuError for data that is missing, and PlanError where there is too little of it.
        """
        if self.plan is not None:
            return
        runs = [ConceptArchive.open(folder, self.allow_remote) for folder in self.folders]
        if self.filter != Filter():
            runs = [replace(run, filters=(self.filter,)) for run in runs]
        self.shards = tuple(Shard(source, run) for run in runs for source in run.sources) + tuple(
            Shard(source, None) for source in list_sources(self.tars, self.image, self.caption)
        )
        rows = count_rows(self.shards, self.require_archives)
        ranks = self.trainer.world_size if self.trainer else 1
        self.plan = Plan(tuple(rows), self.batch_size, ranks, max(self.workers, 1), self.seed)

    def train_dataloader(self) -> Loader:
        """Batches of the epoch that the trainer is in, from the step on that it is at."""
        config, trainer = self.trainer.lightning_module.model.config, self.trainer
        outside = self.negatives == "outside"
        stream = Stream(self.shards, self.sampler, self.shuffle, self.seed, self.require_archives, outside)
        transform = partial(self.augmentation.transform, config.image_size)
        batches = Batches(stream, self.plan, transform, config.text_context, trainer.global_rank)
        progress = trainer.fit_loop.epoch_loop.batch_progress.total
        return Loader(batches, self.workers, lambda: progress.ready)

    def val_dataloader(self) -> DataLoader:
        """Pictures as they are, with their captions: all of ``validation_shards``, or one batch of the training data."""
        config, trainer = self.trainer.lightning_module.model.config, self.trainer
        held_out = [Shard(source, None) for source in list_sources(self.validation_shards, self.image, self.caption)]
        first = self.shards[0]
        pairs = Pairs(
            Stream(tuple(held_out) or (Shard(first.source, None),), Sampler("top", 1), 0, 0, False),
            None if held_out else 1,
            self.batch_size,
            config.image_size,
            config.text_context,
            trainer.global_rank,
            trainer.world_size,
        )
        return DataLoader(pairs, batch_size=None)

    test_dataloader = val_dataloader


class Pairs(IterableDataset):
    """Whole batches of images and captions for validation, shared out over the ranks; every rank gets as many."""

    def __init__(
        self, stream: Stream, limit: int | None, batch_size: int, image_size: int, context: int, rank: int, ranks: int
    ) -> None:
        self._stream, self._limit, self._size = stream, limit, batch_size
        self._image_size, self._context, self._rank, self._ranks = image_size, context, rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        """Read and decode."""
        counts: Counter[str] = Counter()
        spans = [Span(shard, 0, 1 << 60) for shard in range(len(self._stream.shards))]
        transform, number = plain_transform(self._image_size), 0
        group: list[Sample] = []
        for sample in self._stream.read(spans, 0, 0, counts):
            group.append(sample)
            if len(group) < self._size * self._ranks:
                continue
            yield collate(group[self._rank :: self._ranks], transform, self._context, False, counts)
            group, number = [], number + 1
            if number == self._limit:
                return
        if number == 0 and len(group) >= 2 * self._ranks:  # less than one batch: all of it
            share = len(group) // self._ranks
            yield collate(group[self._rank :: self._ranks][:share], transform, self._context, False, counts)
