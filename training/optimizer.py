"""AdamW as GroupViT is trained with it (docs/method.md §5): what decays, the rate at each step, the fused kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

FUSED = ("cuda", "cpu")  # devices whose fused AdamW is used; on a CPU it takes a quarter of the time


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The module's trainable parameters in two groups for an optimizer: those that decay, and those that do not.

    Parameters with fewer than two dimensions do not decay: those of norms, biases and logit scales. Position embeddings,
    group tokens and the token embedding do: docs/method.md §5 exempts nothing else, and open_clip trains CLIP by this rule.
    Parameters that are frozen are in neither, and an empty group is left out.
    """
    trained = [value for value in module.parameters() if value.requires_grad]
    decayed = [value for value in trained if value.ndim >= 2]
    kept = [value for value in trained if value.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate(step: int, total: int, warmup: int, peak: float, final: float) -> float:
    """The rate of a step, counted from 0, of ``total``: linear for ``warmup`` steps, then half a cosine down to ``final``.

    Step ``warmup`` has the peak, and no step has 0. A resumed run that continues beyond ``total`` stays at ``final``. With
    no more steps than ``warmup`` the rate only rises.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return final + (peak - final) * (1 + math.cos(math.pi * progress)) / 2


def scaled(rate: float, global_batch: int, reference: int = 4096) -> float:
    """The rate for a batch of ``global_batch`` samples over all ranks, given that for ``reference``: proportional."""
    return rate * global_batch / reference


def apply_settings(
    schedule: LambdaLR,
    groups: Iterable[dict[str, Any]],
    peak: float,
    betas: tuple[float, float],
) -> None:
    """Give an optimizer that was restored from a checkpoint, and its schedule, the settings of now.

    groups: :func:`parameter_groups`. Both restore the rates, decay and betas of the run that wrote the checkpoint, of
    which the schedule of now would be a multiple.
    """
    schedule.base_lrs = [peak] * len(schedule.base_lrs)
    factor = schedule.lr_lambdas[0](schedule.last_epoch)
    for group, fresh in zip(schedule.optimizer.param_groups, groups, strict=True):
        group |= {"initial_lr": peak, "lr": peak * factor, "weight_decay": fresh["weight_decay"], "betas": betas}
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


def adamw(groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999)) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`, fused where all of them are on one device that has the kernel."""
    groups = list(groups)
    devices = {value.device.type for group in groups for value in group["params"]}
    fused = len(devices) == 1 and devices <= set(FUSED)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused or None)
    # The fused kernel can undo the loss scaling of fp16 by itself, for which Lightning refuses to clip gradients, in bf16
    # too. Said to be unable, it gets gradients that are unscaled and clipped before.
    optimizer._step_supports_amp_scaling = False
    return optimizer
