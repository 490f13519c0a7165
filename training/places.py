"""Losses that teach an image's places what its archive holds, from labels of the whole image. Pure functions.

Of each image, a concept is *positive* (its caption says it, or it is drawn from the archive), *unknown* (the archive holds
it: perhaps it is there) or *negative*. Positives should fit some place, negatives none, unknowns are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Pooling(NamedTuple):
    """A way from the logits of an image's places to one of the image."""

    function: Callable[[Tensor, float], Tensor]  # (B, C, N), sharpness -> (B, C)
    sentence: str


def smooth_maximum(logits: Tensor, sharpness: float) -> Tensor:
    """Between mean (sharpness 0) and maximum (large): (B, C) of logits (B, C, N), r the sharpness::

    1/r log 1/N Σ_n exp(r z_n)
    """
    if not sharpness:
        return logits.mean(-1)
    return ((sharpness * logits).logsumexp(-1) - math.log(logits.shape[-1])) / sharpness


def top_mean(logits: Tensor, sharpness: float) -> Tensor:
    """The mean of the largest N / sharpness places, at least one: (B, C) of logits (B, C, N)."""
    count = max(1, round(logits.shape[-1] / max(sharpness, 1.0)))
    return logits.topk(count, -1).values.mean(-1)


def noisy_or(logits: Tensor, sharpness: float) -> Tensor:
    """The logit of 1 - Π_n (1 - σ(z_n)): (B, C) of logits (B, C, N). ``sharpness`` has no meaning here."""
    none = F.logsigmoid(-logits).sum(-1)  # the logarithm of the probability that no place shows it
    some = torch.log(-torch.expm1(none.clamp(max=-1e-7)))
    return some - none


# The values of model.pooling; adding one here is all that configuration, errors and --help need.
POOLINGS = {
    "smooth": Pooling(smooth_maximum, "a smooth maximum; model.sharpness is how close it is to the maximum"),
    "top": Pooling(top_mean, "the mean of the best places, one in model.sharpness of them"),
    "noisy_or": Pooling(noisy_or, "the probability that at least one place shows it"),
}


def image_loss(pooled: Tensor, positive: Tensor, unknown: Tensor) -> Tensor:
    """Sigmoid loss () of pooled logits (B, C): summed over concepts that are known, mean over images.

    positive, unknown: (B, C) bool; what is both is positive. After SigLIP (arXiv 2303.15343) and FFF (arXiv 2405.10286)::

        1/B Σ_i [Σ_c∈positive -log σ(z_ic)  +  Σ_c∈negative -log σ(-z_ic)]
    """
    losses = F.binary_cross_entropy_with_logits(pooled, positive.to(pooled.dtype), reduction="none")
    return losses.masked_fill(unknown & ~positive, 0.0).sum(1).mean()


def place_loss(logits: Tensor, possible: Tensor) -> Tensor:
    """How far places are from showing only what is possible in their image: (), from logits (B, C, N)::

        -1/BN Σ_i Σ_n log Σ_c∈possible softmax(z_in)_c

    possible (B, C) bool: positives and unknowns; an image without any says nothing and counts for nothing.
    """
    shares = logits.log_softmax(1)
    inside = shares.masked_fill(~possible[:, :, None], -torch.inf).logsumexp(1)  # (B, N)
    said = possible.any(1)  # (B,)
    return -torch.where(said[:, None], inside, 0.0).sum() / (said.sum() * logits.shape[2]).clamp(min=1)
