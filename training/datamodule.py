"""The data of a training run: curated shards, read side by side with their archives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lightning import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from curation.archive import ConceptArchive, Filter, Sampler, Source, list_sources
from curation.base import files
from curation.base.configuration import require, require_one_of
from curation.base.errors import CocuError, listed
from segmenters.groupvit import GroupViTConfig
from training.augmentation import Augmentation, plain_transform
from training.batches import Batch, Batches, Loader, collate, grouped
from training.negatives import NEGATIVES
from training.plan import Plan, PlanError, Span, limited
from training.resume import batches_begun
from training.settings import OTHERWISE
from training.shared_memory import check_shared_memory
from training.stream import Stream, TrainingShard, count_pairs


class ArchiveDataModule(LightningDataModule):
    """Images, captions and concept archives of one or several data sets."""

    stream: type[Stream] = Stream  # how samples are read

    def __init__(
        self,
        archives: list[str] | str | None = None,
        shards: list[str] | None = None,
        image: str = "jpg;png;jpeg;webp",
        caption: str = "txt;text",
        captions: list[str] | None = None,
        sampler: Sampler = Sampler(),
        sampler_epochs: int | None = None,
        filter: Filter = Filter(),
        negatives: str = "all",
        excused: Filter = Filter(),
        augmentation: Augmentation = Augmentation(),
        batch_size: int = 256,
        workers: int = 4,
        shuffle: int = 5000,
        require_archives: bool = True,
        allow_remote: bool = False,
        validation_shards: list[str] | None = None,
        seed: int = 0,
        image_size: int = GroupViTConfig.image_size,
        text_context: int = GroupViTConfig.text_context,
    ) -> None:
        """Describe the data; nothing is read yet.

        Args:
            archives: output folders of finished curation runs, such as artifacts/cc12m; several are mixed sample by sample.
            shards: tars without archives (braces or globs), trained on by their captions; needs require_archives: false.
            image: image fields of ``shards`` and ``validation_shards``; the first that is present wins.
            caption: caption fields of the same; json:NAME is a text in a json sidecar.
            captions: in place of caption, fields that are all used: one caption is drawn each time that a sample is seen.
            sampler: how concepts are drawn from an archive each time that a sample is seen.
            sampler_epochs: in how many epochs it draws; after them concepts are those of captions alone. Null: in all.
            filter: which concepts of an archive count; the caption stands in for those that are too few.
            negatives: which prompts count against an image.
            excused: which concepts of its archive do not, with negatives outside; all by default.
            augmentation: what is done to the images.
            batch_size: samples of one step on one device.
            workers: processes that read for each device; 0 reads in the training process itself.
            shuffle: samples in the shuffle buffer of each worker; the order of shards is random anyway.
            require_archives: a sample without an archive is an error; if false, its caption serves, and it is counted.
            allow_remote: read the tars of archives at the addresses that these name, even if they are not local.
            validation_shards: tars that are not trained on, for retrieval accuracy; else one batch of the training data.
            seed: of the order, the augmentation and the draws from archives.
            image_size: side of the pictures that the model takes, in pixels.
            text_context: tokens of the longest text that the model takes.
        """
        super().__init__()
        self.folders = [archives] if isinstance(archives, str) else list(archives or [])
        self.tars = list(shards or [])
        self.validation_shards = list(validation_shards or [])
        self.image = image
        self.caption = caption
        self.captions = list(captions or [])
        self.sampler = sampler
        self.sampler_epochs = sampler_epochs
        self.filter = filter
        self.excused = excused
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.workers = workers
        self.shuffle = shuffle
        self.require_archives = require_archives
        self.allow_remote = allow_remote
        self.seed = seed
        self.image_size = image_size
        self.text_context = text_context

        require_one_of("data.negatives", negatives, NEGATIVES)
        self.negatives = NEGATIVES[negatives]
        for name, value, least in (("batch_size", batch_size, 2), ("workers", workers, 0), ("shuffle", shuffle, 0)):
            require(value >= least, f"data.{name}: {value} must be at least {least}")
        require(
            sampler_epochs is None or sampler_epochs >= 1,
            f"data.sampler_epochs: {sampler_epochs} must be at least 1; for captions alone data.sampler.kind is caption",
        )
        require(
            bool(self.folders or self.tars),
            "data.archives: missing; name the output folder of cocu curate, such as artifacts/cc12m",
        )
        require(
            bool(self.folders) or self.negatives.held is None,
            f"data.negatives: {negatives} needs archives; name them in data.archives, or set it to all",
        )
        require(
            excused == Filter() or self.negatives.held is not None,
            f"data.excused: with data.negatives {negatives} nothing is excused; set that to outside, or leave this out",
        )
        require(
            not excused.distinct,
            "data.excused.distinct: it says nothing of concepts; data.filter.distinct leaves images out",
        )
        require(
            not self.tars or not require_archives,
            "data.shards: these tars have no archives; set data.require_archives to false to use them",
        )
        require(
            replace(filter, distinct=False) == Filter() or not sampler.method.of_caption,
            f"data.filter: sampler {sampler.kind} draws from captions, which no filter applies to; leave data.filter out, "
            "or choose another data.sampler.kind",
        )
        self.shards: tuple[TrainingShard, ...] = ()
        self._plan: Plan | None = None

    def setup(self, stage: str) -> None:
        """Find the shards, count their samples, and split them over ranks and workers.

        Raises CocuError for data that is missing and for shared memory that is too small, and PlanError where there is too
        little data.
        """
        if self._plan is not None:
            return
        self._check_validation_shards()
        if stage == "fit":
            devices = getattr(self.trainer, "num_devices", 1)
            check_shared_memory(self.batch_size * 3 * self.image_size**2 * 4, self.workers * devices)
        opened = [ConceptArchive.open(folder, self.allow_remote) for folder in self.folders]
        runs = [replace(run, filters=(self.filter,)) for run in opened]
        bare = self._sources(self.tars)
        self.shards = (
            *(TrainingShard(source, run) for run in runs for source in run.sources),
            *(TrainingShard(source, None) for source in bare),
        )

        pairs = count_pairs(self.shards, self.require_archives)
        ranks = self.trainer.world_size if self.trainer else 1
        self._plan = Plan(tuple(pairs), self.batch_size, ranks, max(self.workers, 1), self.seed)

    @property
    def plan(self) -> Plan:
        """Which process reads which samples. Raises RuntimeError before :meth:`setup`."""
        if self._plan is None:
            raise RuntimeError("the data has no plan before setup")
        return self._plan

    def _check_validation_shards(self) -> None:
        """Raises CocuError for a tar of validation that is missing: before the first step, not at the first validation."""
        for source in self._sources(self.validation_shards):
            if not files.is_remote(source.path):
                require(files.exists(source.path), f"data.validation_shards: {source.path}: no such file")

    def _sources(self, tars: list[str]) -> list[Source]:
        return list_sources(tars, self.image, self.caption, self.captions)

    @property
    def steps(self) -> int:
        """Batches of an epoch on each device, by the trainer's limits. Raises RuntimeError before :meth:`setup`."""
        return limited(self.plan.steps, self._limit) if self.trainer else self.plan.steps

    @property
    def _limit(self) -> int | float:
        """Lightning's limit of an epoch: batches, or their share; overfit_batches is the one where it is set."""
        assert self.trainer is not None
        return self.trainer.overfit_batches or self.trainer.limit_train_batches  # type: ignore[attr-defined]

    # --- going on ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What decides which samples each step has; goes into checkpoints."""
        plan = self.plan
        return {
            "data": files.digest([[shard.source.name for shard in self.shards], plan.rows]),
            "devices": plan.ranks,
            "batch_size": plan.batch_size,
            "workers": plan.workers,
            "shuffle": self.shuffle,
            "seed": plan.seed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises PlanError for a run that goes on with another order of samples: some would be repeated, others skipped."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return
        for key, now in self.state_dict().items():
            before = state_dict[key]
            if now == before:
                continue
            if key == "data":
                raise PlanError(
                    f"data: this run has other tars, or other samples in them; give it those of before, {OTHERWISE}"
                )
            name = {"devices": "trainer.devices", "seed": "seed_everything"}.get(key, f"data.{key}")
            raise PlanError(f"{name}: this run has {before}, not {now}; set it to {before}, {OTHERWISE}")

    # --- batches ----------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Loader:
        """Batches of the epoch that the trainer is in, from the step on that it is at."""
        assert self.trainer is not None  # Lightning asks for data with a trainer
        stream = self.stream(
            self.shards,
            self.sampler,
            self.shuffle,
            self.seed,
            self.require_archives,
            self.negatives,
            self.excused,
            self.sampler_epochs,
        )
        transform = partial(self.augmentation.transform, self.image_size)
        batches = Batches(stream, self.plan, transform, self.text_context, self.trainer.global_rank)
        begun = partial(batches_begun, self.trainer)
        repeated = bool(self.trainer.overfit_batches)  # type: ignore[attr-defined]  # Lightning sets it outside the class
        return Loader(batches, self.workers, begun, self.steps, repeated)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Pictures as they are, with their captions: all of ``validation_shards``, or one batch of the training data."""
        assert self.trainer is not None  # Lightning asks for data with a trainer
        sources = self._sources(self.validation_shards) or [self.shards[0].source]
        shards = tuple(TrainingShard(source, None) for source in sources)
        batches = ValidationBatches(
            Stream(shards, Sampler("top", 1), shuffled=0, seed=0, required=False),
            None if self.validation_shards else 1,
            self.batch_size,
            self.image_size,
            self.text_context,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(batches, batch_size=None)

    test_dataloader = val_dataloader


@dataclass
class ValidationBatches(IterableDataset[Batch]):
    """Whole batches of images and captions, shared out over the ranks; every rank gets as many."""

    stream: Stream
    limit: int | None  # batches
    batch_size: int  # of each rank
    image_size: int
    context: int
    rank: int
    ranks: int

    def __iter__(self) -> Iterator[Batch]:
        """Read and decode. Raises CocuError where no sample can be used."""
        spans = [Span(shard, 0, 1 << 60) for shard in range(len(self.stream.shards))]
        outcomes = self.stream.read(spans, epoch=0, reader=0)
        transform = plain_transform(self.image_size)

        for number, group in enumerate(grouped(outcomes, self.batch_size * self.ranks)):
            if number == 0 and len(group.samples) < 2 * self.ranks:
                names = listed(shard.source.path for shard in self.stream.shards)
                raise CocuError(
                    f"data.validation_shards: {names}: {len(group.samples)} samples with image and caption; validation "
                    f"needs {2 * self.ranks}; see data.image and data.caption, or set trainer.limit_val_batches to 0"
                )
            share = len(group.samples) // self.ranks
            if share < self.batch_size and number > 0:
                return  # the rest of the samples is less than a batch; only if it is all, it is used
            own = group.samples[self.rank :: self.ranks][:share]
            yield collate(own, transform, self.context, False, group.left_out)
            if number + 1 == self.limit:
                return
