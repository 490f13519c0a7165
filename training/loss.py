"""Contrastive losses (docs/method.md §5) of images against captions and prompts, over the global batch of all ranks.

Pure functions. Of the process group only rank and size matter, and both are passed in.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from training.negatives import Concepts, excused


class Losses(NamedTuple):
    """What one rank contributes. The mean over ranks is the value of the whole batch in one process."""

    caption: Tensor  # (): image-caption InfoNCE
    prompts: Tensor | None  # (): multi-label InfoNCE; None without prompts
    accuracy: Tensor  # (): share of images whose own caption is the nearest, and vice versa (mean); no gradient


class Excused(NamedTuple):
    """Pairs that are left out of the contrast with prompts, bool."""

    prompts: Tensor  # (B, N·M): of own images with all prompts
    images: Tensor  # (B·M, N): of own prompts with all images


def contrastive_losses(
    image: Tensor,
    captions: Tensor,
    prompts: Tensor | None,
    scale: Tensor | float,
    prompt_scale: Tensor | float | None,
    concepts: Concepts | None = None,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Losses:
    """Losses of this rank's image (B, D), captions (B, D) and prompts (B, M, D): projected features, not normalised.

    ``scale`` and ``prompt_scale`` are factors of cosines (:attr:`GroupViT.scale`), not their logarithms. With ``concepts``,
    prompts about what an image's archive holds do not count against it, see :func:`excused`. B and M must be the same on
    every rank. Features of any dtype are normalised and compared in float32 (float64 stays as it is), also
    under autocast. Features are gathered with gradients: under DDP, which averages gradients over ranks, weights get
    the gradient of the whole batch. Raises ValueError for shapes that do not fit.
    """
    _check(image, captions, prompts, prompt_scale)
    with torch.autocast(image.device.type, enabled=False):
        parts = [image[:, None], captions[:, None], *([] if prompts is None else [prompts])]
        own = torch.cat([normalise(part) for part in parts], 1)  # (B, 2 + M, D)
        everyone = gather(own, rank, world_size)  # (N, 2 + M, D), N = R·B
        rows = torch.arange(len(own), device=own.device) + rank * len(own)  # (B,): own rows in the global batch

        caption, accuracy = info_nce(own[:, 0], own[:, 1], everyone[:, 0], everyone[:, 1], rows, scale)
        if prompts is None or prompt_scale is None:
            return Losses(caption, None, accuracy)

        left_out = None if concepts is None else excused_pairs(concepts, rank, world_size)
        multi_label = multi_label_info_nce(
            own[:, 0], own[:, 2:], everyone[:, 0], everyone[:, 2:], rows, prompt_scale, left_out
        )
        return Losses(caption, multi_label, accuracy)


def info_nce(
    image: Tensor, texts: Tensor, images: Tensor, all_texts: Tensor, rows: Tensor, scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Symmetric InfoNCE, and the share of nearest neighbours that are right, both ().

    Of own image and texts (B, D) at ``rows`` (B,) among images and all_texts (N, D), unit norm, s the scale::

        1/2B Σ_i [-log exp(s x_i·t_i) / Σ_j exp(s x_i·t_j)  -  log exp(s x_i·t_i) / Σ_j exp(s x_j·t_i)]
    """
    to_texts = scale * image @ all_texts.T  # (B, N)
    to_images = scale * texts @ images.T  # (B, N)
    loss = (F.cross_entropy(to_texts, rows) + F.cross_entropy(to_images, rows)) / 2
    right = [(logits.argmax(1) == rows).float().mean() for logits in (to_texts.detach(), to_images.detach())]
    return loss, torch.stack(right).mean()


def multi_label_info_nce(
    image: Tensor,
    prompts: Tensor,
    images: Tensor,
    all_prompts: Tensor,
    rows: Tensor,
    scale: Tensor | float,
    left_out: Excused | None = None,
) -> Tensor:
    """Symmetric multi-label InfoNCE (), the second term of docs/method.md §5.

    Of own image (B, D) and prompts (B, M, D) at ``rows`` (B,) among images (N, D) and all_prompts (N, M, D), unit norm::

        1/2BM Σ_i Σ_m [-log exp(s x_i·t_im) / Σ_j Σ_l exp(s x_i·t_jl)  -  log exp(s x_i·t_im) / Σ_j exp(s x_j·t_im)]

    The M prompts of an image share its target equally, so that each of them must fit: with the logarithm of their summed
    exponentials in place of the sum of logarithms, one that fits would do. The loss is least, not zero, at log M / 2 when
    the M fit equally. What is ``left_out`` is missing from the sums over j; an image's own prompts never are.
    """
    batch, each = prompts.shape[:2]
    to_prompts = scale * image @ all_prompts.flatten(0, 1).T  # (B, N·M)
    to_images = scale * prompts.flatten(0, 1) @ images.T  # (B·M, N)
    own = rows[:, None] * each + torch.arange(each, device=rows.device)  # (B, M): columns of own prompts
    targets = rows[:, None].expand(batch, each).flatten()  # (B·M,)

    if left_out is not None:
        to_prompts = to_prompts.masked_fill(left_out.prompts.scatter(1, own, False), -math.inf)
        to_images = to_images.masked_fill(left_out.images.scatter(1, targets[:, None], False), -math.inf)

    return (F.cross_entropy(to_images, targets) - to_prompts.log_softmax(1).gather(1, own).mean()) / 2


def excused_pairs(concepts: Concepts, rank: int, world_size: int) -> Excused:
    """The pairs of this rank's images and prompts with those of all ranks that do not count against each other.

    B and M must be the same on every rank; what archives hold may be padded to another length.
    """
    drawn = gather(concepts.drawn, rank, world_size)  # (N, M)
    prompts = excused(concepts.held, drawn.flatten())  # (B, N·M)
    everyone = gather(prompts.byte(), rank, world_size).bool()  # (N, N·M)
    first, count = rank * concepts.drawn.numel(), concepts.drawn.numel()
    return Excused(prompts, everyone[:, first : first + count].T)


def normalise(features: Tensor) -> Tensor:
    """Features (..., D) at unit norm, in float32 or the wider dtype they have; zeros stay zeros."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def gather(features: Tensor, rank: int, world_size: int) -> Tensor:
    """Features (R·B, ...) of all ranks in their order, with gradients, from each rank's (B, ...)."""
    return features if world_size == 1 else Gathered.apply(features, rank, world_size)


class Gathered(torch.autograd.Function):
    """All-gather whose backward sums over ranks what each rank's loss says about the features of this one."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, rank: int, world_size: int) -> Tensor:
        """(R·B, ...) from (B, ...)."""
        ctx.rank, ctx.rows = rank, len(features)
        gathered = features.new_empty((world_size * len(features), *features.shape[1:]))
        dist.all_gather_into_tensor(gathered, features.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """(B, ...) from (R·B, ...)."""
        # All-reduce and a slice in place of reduce-scatter, which not every backend has; these are a few megabytes.
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None


def _check(image: Tensor, captions: Tensor, prompts: Tensor | None, prompt_scale: Tensor | float | None) -> None:
    if image.ndim != 2 or captions.shape != image.shape:
        raise ValueError(
            f"captions: {tuple(captions.shape)} features for images of {tuple(image.shape)}; (B, D) of both"
        )
    if prompts is None:
        return
    if prompts.ndim != 3 or prompts.shape[::2] != image.shape or not prompts.shape[1]:
        raise ValueError(
            f"prompts: {tuple(prompts.shape)} features for images of {tuple(image.shape)}; (B, M, D), M of 1 or more"
        )
    if prompt_scale is None:
        raise ValueError("prompt_scale: prompts need a scale of their own")
