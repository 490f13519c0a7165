"""What the last block of a CLIP transformer says of every place, without training: three published readings.

CLIP's last block mixes all places into the class token, so that its own output says little about where things are. Each
reading keeps the values and replaces how they are mixed. Pure functions of queries, keys and values (B, heads, N, d); the
class token, if any, comes first, and is mixed like a place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SPREAD = 5.0  # places: standard deviation of NACLIP's neighbourhood, as published


def maskclip(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each place keeps its own value (Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022)."""
    return value


def sclip(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Places look at those of like queries and of like keys (Wang et al., "SCLIP", ECCV 2024)::

    [softmax(q qᵀ / √d) + softmax(k kᵀ / √d)] v
    """
    scale = query.shape[-1] ** -0.5
    by_query = (scale * query @ query.transpose(-1, -2)).softmax(-1)  # (B, heads, N, N)
    by_key = (scale * key @ key.transpose(-1, -2)).softmax(-1)
    return (by_query + by_key) @ value


def naclip(query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int]) -> Tensor:
    """Places look at those of like keys, and more at near ones (Hajimiri et al., "NACLIP", WACV 2025)::

        softmax(k kᵀ / √d + ω) v,    ω_ij = exp(-|i - j|² / 2σ²)

    ω is 0 for the class token.
    """
    near = neighbourhood(grid, key)  # (h·w, h·w)
    extra = key.shape[-2] - len(near)  # 1 with a class token
    bias = torch.nn.functional.pad(near, (extra, 0, extra, 0))  # (N, N)
    logits = key.shape[-1] ** -0.5 * key @ key.transpose(-1, -2) + bias
    return logits.softmax(-1) @ value


def neighbourhood(grid: tuple[int, int], like: Tensor) -> Tensor:
    """ω (h·w, h·w) of :func:`naclip` for places row by row, with the dtype and device of ``like``.

    >>> neighbourhood((1, 2), torch.zeros(())).tolist()
    [[1.0, 0.9801986813545227], [0.9801986813545227, 1.0]]
    """
    axes = [torch.arange(length, dtype=like.dtype, device=like.device) for length in grid]
    places = torch.cartesian_prod(*axes)  # (h·w, 2)
    squared = (places[:, None] - places).square().sum(-1)  # (h·w, h·w)
    return (-squared / (2 * SPREAD**2)).exp()


class Reading(NamedTuple):
    """One way to read the last block."""

    mix: Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
    whole_block: bool  # whether the residual and the MLP of the block follow, as in the published code
    sentence: str


READINGS = {
    "maskclip": Reading(maskclip, True, "each place keeps its own value"),
    "sclip": Reading(sclip, True, "attention of queries to queries and of keys to keys"),
    "naclip": Reading(naclip, False, "attention of keys to keys and to neighbours, without residual and MLP"),
}
