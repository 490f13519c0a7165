"""The parts of a transformer: attention, MLPs, and the pre-norm block that both towers are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CACHED = 2 << 20  # bytes of products of queries and keys at a time


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ / √d)·v: (B, heads, Q, d) from q (B, heads, Q, d), k and v (B, heads, K, d)."""
    if not by_hand(q):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5).contiguous() @ k.transpose(2, 3)  # (B, heads, Q, K)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ v.contiguous()


def by_hand(x: Tensor) -> bool:
    """Whether attention over x is faster step by step: bfloat16 on a CPU, where the backward pass of PyTorch's fused kernel
    takes two to seven times as long."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, heads, N, W / heads), a view of x (B, N, W)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class SelfAttention(torch.autograd.Function):
    """softmax(q·kᵀ / √d)·v of a few images at a time, so that the products of queries and keys stay in the cache.

    For bfloat16 on a CPU: the same bits as for all images at once, some tenth of the time less.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> Tensor:
        """(B, N, W) from queries, keys and values side by side (B, N, 3·W)."""
        rows, length, width = len(qkv), qkv.shape[1], qkv.shape[2] // 3
        out, weights = qkv.new_empty(rows, length, width), qkv.new_empty(rows, heads, length, length)
        for few in parts(rows, heads * length**2 * qkv.element_size()):
            q, k, v = apart(qkv[few], heads)  # (b·heads, N, d)
            weight = weights[few].flatten(0, 1)  # (b·heads, N, N), a view
            torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(1, 2), -1, out=weight)
            split_heads(out[few], heads).copy_((weight @ v).unflatten(0, (-1, heads)))
        ctx.save_for_backward(qkv, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Of q, k and v side by side (B, N, 3·W)."""
        qkv, weights = ctx.saved_tensors
        rows, heads, length = weights.shape[:3]
        found = torch.empty_like(qkv)
        for few in parts(rows, heads * length**2 * qkv.element_size()):
            q, k, v = apart(qkv[few], heads)  # (b·heads, N, d)
            scale = q.shape[-1] ** -0.5
            of_out = split_heads(gradient[few], heads).flatten(0, 1)  # (b·heads, N, d)
            weight = weights[few].flatten(0, 1)  # (b·heads, N, N)
            of_scores = torch.ops.aten._softmax_backward_data(of_out @ v.transpose(1, 2), weight, -1, qkv.dtype)
            values = of_scores @ (k * scale), of_scores.transpose(1, 2) @ (q * scale), weight.transpose(1, 2) @ of_out
            for place, value in zip(found[few].chunk(3, 2), values, strict=True):
                split_heads(place, heads).copy_(value.unflatten(0, (-1, heads)))
        return found, None


def apart(qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values, each for itself: (B, N, 3·W) -> (B, N, 3, heads, d) -> (3, B·heads, N, d), contiguous."""
    return qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).flatten(1, 2)


def parts(rows: int, size: int) -> Iterator[slice]:
    """Slices of ``rows`` rows of ``size`` bytes, as many rows at a time as CACHED holds, one at least."""
    step = max(1, CACHED // size)
    return (slice(start, start + step) for start in range(0, rows, step))


class Attention(nn.Module):
    """Multi-head attention; the three input projections are one matrix, so that self-attention is one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """(B, Q, W) from queries (B, Q, W) over keys (B, K, W), the queries themselves by default.

        ``mask``: bool, True where a query may look, broadcast to (B, heads, Q, K).
        """
        width = queries.shape[-1]
        if keys is None:
            qkv = self.qkv(queries)  # (B, Q, 3·W)
            if mask is None and by_hand(qkv) and not torch.compiler.is_compiling():
                return self.out(SelfAttention.apply(qkv, self.heads))
            q, k, v = qkv.chunk(3, dim=-1)  # 3 x (B, Q, W)
        else:
            q = F.linear(queries, self.qkv.weight[:width], self.qkv.bias[:width])  # (B, Q, W)
            k, v = F.linear(keys, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)  # 2 x (B, K, W)
        q, k, v = (split_heads(x, self.heads) for x in (q, k, v))  # (B, heads, ., W / heads)
        mixed = attend(q, k, v, mask)  # (B, heads, Q, W / heads)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, Q, W)


class MLP(nn.Module):
    """Two linear layers; ``quick``: with the sigmoid approximation of GELU that CLIP's text tower uses."""

    def __init__(self, width: int, hidden: int, out: int, quick: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.quick = nn.Linear(width, hidden), nn.Linear(hidden, out), quick

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., width)."""
        x = self.up(x)
        return self.down(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class TokenMLP(MLP):
    """An MLP over the tokens in place of the channels: (B, T, W) -> (B, out, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, W) from (B, T, W)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """x + branch(x) for x (B, ...), the branch left out for a random part of the batch (drop path) and larger for the rest.

    What is left out is not computed, but under torch.compile, where a part of unknown size would break the graph. The part
    is drawn on the host, so that a GPU need not be waited for.
    """
    if rate == 0:
        return x + branch(x)
    keep = torch.rand(len(x)) >= rate
    if torch.compiler.is_compiling():
        factor = (keep.to(x.device, x.dtype) / (1 - rate)).view(-1, *[1] * (x.ndim - 1))
        return x + factor * branch(x)
    kept = keep.nonzero()[:, 0]
    if len(kept) == len(x):
        return x.add(branch(x), alpha=1 / (1 - rate))
    scale = 1 / (1 - rate) if len(kept) else 0.0
    rows = (kept if len(kept) else torch.zeros(1, dtype=torch.long)).to(x.device)  # DDP wants a gradient, if only zeros
    added = branch(x.index_select(0, rows))
    return x.index_add(0, rows, added.to(x.dtype), alpha=scale)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int, rate: float = 0.0, quick: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, hidden, width, quick)
        self.rate, self.recompute = rate, False  # recompute: keep only the input for the backward pass

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, W) from (B, T, W)."""
        return self._run(self._everywhere, x, mask)

    def at(self, x: Tensor, positions: Tensor) -> Tensor:
        """Causal output (B, W) of x (B, T, W) at one position (B,) of each row: the others are not computed."""
        return self._run(self._at, x, positions)

    def _run(self, compute: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(compute, *inputs, use_reentrant=False)
        return compute(*inputs)

    def _everywhere(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rate = self.rate if self.training else 0.0
        x = add_branch(x, lambda part: self.attention(self.norm1(part), mask=mask), rate)
        return add_branch(x, lambda part: self.mlp(self.norm2(part)), rate)

    def _at(self, x: Tensor, positions: Tensor) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        mask = torch.arange(x.shape[1], device=x.device) <= positions[:, None]  # (B, T)
        normed = self.norm1(x)
        here = x[rows, positions][:, None]  # (B, 1, W)
        here = here + self.attention(normed[rows, positions][:, None], normed, mask[:, None, None])
        return (here + self.mlp(self.norm2(here)))[:, 0]
