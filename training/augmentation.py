"""Images as the model sees them: random crops and colours in training (docs/method.md §5), whole pictures in validation."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor

from curation.base.errors import one_line

Transform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """The arguments of timm's ``create_transform``; the defaults are the paper's.

    timm leaves the colour jitter out where there is a policy such as RandAugment: one of the two is applied.

    Attributes:
        smallest_crop: share of the picture that the random crop has at least.
        largest_crop: share of the picture that the random crop has at most.
        flip: probability of a horizontal flip.
        color_jitter: strength of brightness, contrast and saturation changes, used where ``policy`` is null.
        policy: timm's name of an augmentation policy, such as rand-m9-mstd0.5-inc1; null for none.
        erasing: probability that a random rectangle is filled with noise.
    """

    smallest_crop: float = 0.08
    largest_crop: float = 1.0
    flip: float = 0.5
    color_jitter: float = 0.4
    policy: str | None = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25

    def __post_init__(self) -> None:
        """Check every value."""
        if not 0 < self.smallest_crop <= self.largest_crop <= 1:
            raise ValueError(
                f"augmentation: smallest_crop {self.smallest_crop} and largest_crop {self.largest_crop} must be in (0, 1], "
                "in this order"
            )
        for name in ("flip", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augmentation.{name}: {getattr(self, name)} is not a probability")
        if self.color_jitter < 0:
            raise ValueError(f"augmentation.color_jitter: {self.color_jitter} must not be negative")
        self._check_policy()

    def _check_policy(self) -> None:
        """Raises ValueError for a policy that timm does not know; it says so with an assertion, in a worker."""
        try:
            self.transform(32)
        except Exception as error:  # of any kind: what timm makes of a wrong string is not documented
            reason = f" ({one_line(error, 100)})" if str(error) else ""
            raise ValueError(
                f"augmentation.policy: {self.policy!r} is not a policy of timm{reason}; rand-m9-mstd0.5-inc1 is one, "
                "null is none"
            ) from None

    def transform(self, size: int) -> Transform:
        """Picture to pixels (3, size, size) float32, random."""
        return create_transform(
            size,
            is_training=True,
            scale=(self.smallest_crop, self.largest_crop),
            hflip=self.flip,
            color_jitter=self.color_jitter,
            auto_augment=self.policy,
            re_prob=self.erasing,
            re_mode="pixel",
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        )


def plain_transform(size: int) -> Transform:
    """Picture to the pixels (3, size, size) float32 of its centre, the same every time."""
    return create_transform(
        size,
        is_training=False,
        crop_pct=1.0,
        interpolation="bicubic",
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )


def seed_everything(seed: int) -> None:
    """Seed the generators that timm's transforms draw from; not those of devices."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
