"""Batches of an epoch: samples decoded, augmented and tokenised by worker processes, from any step of any epoch on."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from curation.base import images
from curation.base.errors import CocuError
from segmenters.text import Texts, arrange
from training.augmentation import Transform, seed_everything
from training.negatives import Concepts, stack
from training.plan import Plan
from training.stream import LeftOut, Stream, TrainingSample

LACKS_ARCHIVE = "without archive"  # trained on by its caption alone
SHORT = 1024  # pixels that random crops need of the short side; very large pictures are shrunk, to twice that, first
LINGER = 60  # seconds that a worker process lives on when it is told to end
REPLACED = "replaced"  # by another sample of the batch, since its image cannot be decoded
COUNTED = (LeftOut.REJECTED, LACKS_ARCHIVE, LeftOut.UNUSABLE, REPLACED)  # what may happen to a sample


class Batch(NamedTuple):
    """B samples with M prompts each, as tensors."""

    pixels: Tensor  # (B, 3, H, W) float32
    captions: Texts  # B
    prompts: Texts  # B·M
    counts: dict[str, int]  # of COUNTED, since the reader's last batch
    concepts: Concepts | None = None  # where some prompts do not count, see training/negatives.py

    def pin_memory(self) -> Batch:
        """Part of torch's interface: copies to the GPU need not wait."""
        concepts = self.concepts and Concepts(*(ids.pin_memory() for ids in self.concepts))
        return Batch(self.pixels.pin_memory(), _pinned(self.captions), _pinned(self.prompts), self.counts, concepts)


def _pinned(texts: Texts) -> Texts:
    return Texts(*(tensor.pin_memory() for tensor in texts))


class UndecodableError(CocuError):
    """An image that cannot be decoded."""


def decode(sample: TrainingSample, transform: Transform) -> Tensor:
    """Pixels (3, H, W) of a sample, augmented as its seed says. Raises UndecodableError naming it."""
    seed_everything(sample.seed)
    try:
        picture = images.decode(sample.image, SHORT)
    except images.ImageError as error:
        raise UndecodableError(f"{sample.where}: image cannot be decoded ({error})") from None
    return transform(picture)


def collate(
    samples: Sequence[TrainingSample],
    transform: Transform,
    context: int,
    required: bool,
    left_out: Iterable[LeftOut] = (),
) -> Batch:
    """A batch of samples, which counts them and those that were ``left_out`` on the way to them.

    A sample whose image cannot be decoded is an error where ``required``, otherwise the next one of the batch is in its
    place too. Raises UndecodableError.
    """
    pixels: dict[int, Tensor] = {}  # by position in the batch
    for position, sample in enumerate(samples):
        try:
            pixels[position] = decode(sample, transform)
        except UndecodableError:
            if required:
                raise
    if not pixels:
        raise UndecodableError(f"{samples[0].where}: neither this image nor any other of its batch can be decoded")

    chosen = [next((good for good in pixels if good >= position), max(pixels)) for position in range(len(samples))]
    used = [samples[position] for position in chosen]
    concepts = [sample.concepts for sample in used if sample.concepts is not None]

    counts: Counter[str] = Counter(left_out)
    counts[LACKS_ARCHIVE] = sum(sample.lacks_archive for sample in samples)
    counts[REPLACED] = len(samples) - len(pixels)

    return Batch(
        torch.stack([pixels[position] for position in chosen]),
        arrange([sample.caption for sample in used], context),
        arrange([prompt for sample in used for prompt in sample.prompts], context),
        dict(+counts),  # those above zero
        stack(concepts) if concepts else None,
    )


class Group(NamedTuple):
    """Samples that are to be one batch, and what was left out on the way to them."""

    samples: list[TrainingSample]
    left_out: list[LeftOut]


def grouped(outcomes: Iterable[TrainingSample | LeftOut], size: int) -> Iterator[Group]:
    """The samples of a stream in groups of ``size``; the last one may be smaller, or have none."""
    group = Group([], [])
    for outcome in outcomes:
        if isinstance(outcome, LeftOut):
            group.left_out.append(outcome)
            continue
        group.samples.append(outcome)
        if len(group.samples) == size:
            yield group
            group = Group([], [])
    yield group


@dataclass
class Batches(IterableDataset[Batch]):
    """The batches of one rank in an epoch from step ``done`` on, of one worker where there are several."""

    stream: Stream
    plan: Plan
    transform: Callable[[], Transform]  # made in the worker: timm's transforms hold generators
    context: int
    rank: int = 0
    epoch: int = 0
    done: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Read, shuffle, decode."""
        info = get_worker_info()
        part, done = self.plan.resumed(info.id if info else 0, self.done)
        spans = self.plan.spans(self.epoch, self.rank, part)
        outcomes = self.stream.read(spans, self.epoch, reader=self.rank * self.plan.workers + part)
        transform = self.transform()

        groups = grouped(outcomes, self.plan.batch_size)
        for number, group in zip(range(self.plan.batches_each), groups, strict=False):
            if len(group.samples) < self.plan.batch_size:
                raise CocuError("data: samples have vanished from the tars since the run began; start it again")
            if number >= done:
                yield collate(group.samples, transform, self.context, self.stream.required, group.left_out)


class Loader:
    """The training batches of a rank, epoch after epoch.

    ``begun()`` tells how many batches the run has trained on: iteration starts there, so that a run that was killed
    continues with the batches that the uninterrupted run would have had. ``steps``: of an epoch, where a limit makes them
    fewer than there are; with ``repeated`` every epoch has the batches of the first.
    """

    def __init__(
        self, batches: Batches, processes: int, begun: Callable[[], int], steps: int, repeated: bool = False
    ) -> None:
        self._batches = batches
        self._processes = processes
        self._begun = begun
        self._steps = steps
        self._repeated = repeated

    def __len__(self) -> int:
        """Batches that there are in an epoch; of them, Lightning takes as many as its limit says."""
        return self._batches.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch that the run is in."""
        epoch, done = divmod(self._begun(), self._steps)
        batches = replace(self._batches, epoch=0 if self._repeated else epoch, done=done)
        yield from DataLoader(
            batches,
            batch_size=None,
            num_workers=self._processes,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=outlive_signals,
        )


def outlive_signals(worker: int) -> None:
    """Let a worker process live through Ctrl-C, which a terminal sends to all, and SIGTERM, which a scheduler does.

    The step that needs its batch is to end, and last.ckpt to be written.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:
    """End after LINGER seconds: the run may mean this very worker, because it is stuck."""
    timer = threading.Timer(LINGER, os._exit, (128 + number,))
    timer.daemon = True
    timer.start()
