"""Attention in bfloat16 on a CPU, step by step: PyTorch's fused kernel is slower there.

The backward pass of the fused kernel takes two to seven times as long as this. A training step of the paper's model
(benchmarks/training_speed.py: 16 images with a caption and three prompts each, one thread, Xeon with AMX, torch 2.15) takes
1.51 s with this file and 1.96 s without.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def is_faster(x: Tensor) -> bool:
    """Whether attention over ``x`` is faster by this file than by PyTorch's kernel."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """What :func:`segmenters.transformer.attend` returns."""
    scores = (q * q.shape[-1] ** -0.5).contiguous() @ k.transpose(2, 3)  # (B, heads, Q, K)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v.contiguous()  # (B, heads, Q, d)
