"""The parts of a transformer: attention, MLPs, drop path, and the pre-norm block that both towers are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from curation.base.devices import to_device
from segmenters import cpu_attention

WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q·kᵀ / √d)·v: (B, heads, Q, d) from q (B, heads, Q, d), k and v (B, heads, K, d).

    ``mask``: bool, True where a query may look, broadcast to (B, heads, Q, K).
    """
    if cpu_attention.is_faster(q):
        return cpu_attention.attend(q, k, v, mask)
    if torch.compiler.is_compiling() or not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    # cuDNN plans for seconds whenever a shape is new, and drop path changes the shapes at every step.
    with sdpa_kernel(WITHOUT_PLANS):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


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
        if keys is None:
            q, k, v = self.qkv(queries).chunk(3, dim=-1)  # (B, Q, W) each
        else:
            width = queries.shape[-1]
            q = F.linear(queries, self.qkv.weight[:width], self.qkv.bias[:width])  # (B, Q, W)
            k, v = F.linear(keys, self.qkv.weight[width:], self.qkv.bias[width:]).chunk(2, dim=-1)  # (B, K, W) each

        q, k, v = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, Q or K, d)
        mixed = attend(q, k, v, mask)  # (B, heads, Q, d)
        return self.out(mixed.transpose(1, 2).flatten(2))  # (B, Q, W)


class MLP(nn.Module):
    """Two linear layers; ``quick``: with the sigmoid approximation of GELU that CLIP's text tower uses."""

    def __init__(self, width: int, hidden: int, out: int, quick: bool = False) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, out)
        self.quick = quick

    def forward(self, x: Tensor) -> Tensor:
        """(..., out) from (..., width)."""
        x = self.up(x)  # (..., hidden)
        return self.down(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))  # (..., out)


class TokenMLP(MLP):
    """An MLP over the tokens in place of the channels: (B, T, W) -> (B, out, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, out, W) from (B, T, W)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def add_branch(x: Tensor, branch: Callable[[Tensor], Tensor], rate: float) -> Tensor:
    """x + branch(x) for x (B, ...), the branch left out for a random part of the batch (drop path) and larger for the rest.

    What is left out is not computed, and is drawn on the host, so that nothing waits for a GPU. Under torch.compile all is
    computed, since a part of unknown size would break the graph, and the part is drawn where x is.
    """
    if rate == 0:
        return x + branch(x)

    if torch.compiler.is_compiling():
        kept = torch.rand(len(x), device=x.device) >= rate  # (B,)
        factor = (kept.to(x.dtype) / (1 - rate)).view(-1, *[1] * (x.ndim - 1))  # (B, 1, ...)
        return x + factor * branch(x)

    kept = (torch.rand(len(x)) >= rate).nonzero()[:, 0]  # (K,)
    if len(kept) == len(x):
        return x.add(branch(x), alpha=1 / (1 - rate))

    scale = 1 / (1 - rate) if len(kept) else 0.0
    # DDP wants a gradient, if only zeros
    rows = to_device(kept if len(kept) else torch.zeros(1, dtype=torch.long), x.device)
    added = branch(x.index_select(0, rows))  # (K, ...)
    return x.index_add(0, rows, added.to(x.dtype), alpha=scale)


class Block(nn.Module):
    """A pre-norm transformer block. ``rate``: of drop path."""

    def __init__(self, width: int, heads: int, hidden: int, rate: float = 0.0, quick: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden, width, quick)
        self.rate = rate
        self.recompute = False  # keep only the input for the backward pass

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
        normed = self.norm1(x)  # (B, T, W)

        here = x[rows, positions][:, None]  # (B, 1, W)
        here = here + self.attention(normed[rows, positions][:, None], normed, mask[:, None, None])
        return (here + self.mlp(self.norm2(here)))[:, 0]  # (B, W)
