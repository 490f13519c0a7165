"""Pictures on their way to the encoder: decoded and cut on the CPU, as bytes; normalised where the encoder is.

What an encoder's preprocessing does to numbers, after what it does to pictures, is done for a whole batch on the device: a
quarter of the bytes are copied there, and the cores that decode are spared it. The values are the same, bit for bit.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from curation.base import images
from curation.base.devices import to_device
from curation.samples import Reject, Sample
from curation.thumbnails import thumbnail

TO_TENSOR = ("ToTensor", "MaybeToTensor")  # torchvision's and open_clip's
THREADS = 2  # that decode where no processes do

Decoded = tuple[Sample, np.ndarray]


class Normalisation(NamedTuple):
    """Mean and standard deviation of each channel, in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float32 of pixels (B, H, W, 3) uint8, on their device: what ToTensor and Normalize make of each."""
        parts = (torch.tensor(values).view(-1, 1, 1) for values in ((255.0,), self.mean, self.std))
        scale, mean, std = (to_device(values, pixels.device) for values in parts)
        channels = pixels.permute(0, 3, 1, 2).contiguous().float()  # (B, 3, H, W)
        return channels.div_(scale).sub_(mean).div_(std)


@dataclass(frozen=True)
class Decoder:
    """Makes pixels of samples. ``cut``: from a picture to one of the model's input, or to a tensor; ``side``: of that."""

    cut: Callable[[Image.Image], Any]
    side: int

    def __call__(self, sample: Sample | Reject) -> Decoded | Reject:
        """The sample with a thumbnail in place of its image, and its pixels (H, W, 3) uint8, or what ``cut`` makes; or why
        there are none."""
        if isinstance(sample, Reject):
            return sample
        try:
            picture = images.decode(sample.image, self.side)
        except images.ImageError as error:
            return Reject(sample.key, f"image cannot be decoded ({error})")
        pixels = self.cut(picture)
        known = replace(sample, image=b"", thumbnail=thumbnail(picture))
        return known, np.array(pixels)  # numpy's arrays travel between processes by value


def split(preprocess: Any) -> tuple[Callable[[Image.Image], Any], Normalisation | None]:
    """What a preprocessing does to pictures, and the normalisation that follows; all of it and None where it is another."""
    steps = getattr(preprocess, "transforms", [])
    names = [type(step).__name__ for step in steps]
    if len(steps) < 2 or names[-2] not in TO_TENSOR or names[-1] != "Normalize":
        return preprocess, None
    last = steps[-1]
    return type(preprocess)(steps[:-2]), Normalisation(tuple(map(float, last.mean)), tuple(map(float, last.std)))


# --- who decodes ----------------------------------------------------------------------------------------------------------


def decoding_pool(processes: int) -> AbstractContextManager[Executor]:
    """Threads that decode while the block lasts; or so many processes, kept for the life of this one."""
    return nullcontext(_processes(processes)) if processes else ThreadPoolExecutor(THREADS)


@lru_cache(maxsize=1)
def _processes(count: int) -> ProcessPoolExecutor:
    # Spawned, since a fork of a process that has begun to use a GPU cannot go on.
    return ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
