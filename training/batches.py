"""Batches of an epoch: samples decoded, augmented and tokenised by worker processes, from any step of any epoch on."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from curation.base.errors import CocuError
from segmenters.groupvit import Texts
from segmenters.text import arrange
from training.augmentation import Transform, seed_everything
from training.negatives import Concepts, stack
from training.plan import Plan
from training.stream import Sample, Stream

COUNTED = ("rejected", "without archive", "unusable", "replaced")  # what may happen to a sample


class Batch(NamedTuple):
    """B samples with M prompts each, as tensors."""

    pixels: Tensor  # (B, 3, H, W) float32
    captions: Texts  # B
    prompts: Texts  # B·M
    counts: dict[str, int]  # samples left out, replaced or without an archive since the reader's last batch
    concepts: Concepts | None = None  # where prompts may be excused, see training/negatives.py

    def pin_memory(self) -> Batch:
        """Part of torch's interface: copies to the GPU need not wait."""
        concepts = self.concepts and Concepts(*(ids.pin_memory() for ids in self.concepts))
        return Batch(self.pixels.pin_memory(), pinned(self.captions), pinned(self.prompts), self.counts, concepts)


def pinned(texts: Texts) -> Texts:
    """The same in pinned memory."""
    return Texts(tuple(matrix.pin_memory() for matrix in texts.matrices), texts.places.pin_memory())


class UndecodableError(CocuError):
    """An image that cannot be decoded."""


def decode(sample: Sample, transform: Transform) -> Tensor:
    """Pixels (3, H, W) of a sample, augmented as its seed says. Raises UndecodableError naming it."""
    seed_everything(sample.seed)
    try:
        with Image.open(io.BytesIO(sample.image)) as image:
            return transform(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
        raise UndecodableError(f"{sample.where}: image cannot be decoded ({reason})") from None


def collate(
    samples: list[Sample],
    transform: Transform,
    context: int,
    required: bool,
    counts: Counter[str],
    outside: bool = False,
) -> Batch:
    """A batch of samples. An image that cannot be decoded is an error where ``required``, else its sample is replaced by
    the next one of the batch, and counted. ``counts`` go to the batch, and are set back. With ``outside``, the batch
    says what its prompts are about and what archives hold."""
    pixels: list[Tensor | None] = []
    for sample in samples:
        try:
            pixels.append(decode(sample, transform))
        except UndecodableError:
            if required:
                raise
            pixels.append(None)
    good = [place for place, image in enumerate(pixels) if image is not None]
    if not good:
        raise UndecodableError(f"{samples[0].where}: neither this image nor any other of its batch can be decoded")
    counts["replaced"] += len(samples) - len(good)
    places = [next((place for place in good if place >= index), good[-1]) for index in range(len(samples))]
    chosen = [samples[place] for place in places]
    counted = {name: count for name, count in counts.items() if count}
    counts.clear()
    return Batch(
        torch.stack([pixels[place] for place in places]),
        arrange([sample.caption for sample in chosen], context),
        arrange([prompt for sample in chosen for prompt in sample.prompts], context),
        counted,
        stack([sample.drawn for sample in chosen], [sample.held for sample in chosen]) if outside else None,
    )


@dataclass
class Batches(IterableDataset):
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
        part, skipped = self.plan.resumed(info.id if info else 0, self.done)
        reader = self.rank * self.plan.workers + part
        counts: Counter[str] = Counter()
        samples = self.stream.read(self.plan.spans(self.epoch, self.rank, part), self.epoch, reader, counts)
        transform, size = self.transform(), self.plan.batch_size
        for number in range(self.plan.batches_each):
            batch = [next(samples, None) for _ in range(size)]
            if batch[-1] is None:
                raise CocuError("data: samples have vanished from the tars since the run began; start it again")
            if number >= skipped:
                yield collate(batch, transform, self.context, self.stream.required, counts, self.stream.outside)
            counts.clear()


class Loader:
    """The training batches of a rank, epoch after epoch.

    ``done()`` tells how many batches the run has trained on: iteration goes on from there, so that a run that was killed
    continues with the batches that the uninterrupted run would have had.
    """

    def __init__(self, batches: Batches, processes: int, done: Callable[[], int]) -> None:
        self._batches, self._processes, self._done = batches, processes, done

    def __len__(self) -> int:
        """Steps of an epoch."""
        return self._batches.plan.steps

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the epoch that the run is in."""
        epoch, done = divmod(self._done(), len(self))
        batches = replace(self._batches, epoch=epoch, done=done)
        yield from DataLoader(
            batches, batch_size=None, num_workers=self._processes, pin_memory=torch.cuda.is_available()
        )
