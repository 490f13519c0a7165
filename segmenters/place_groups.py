"""A grouping head for maps of places: those that look alike come into one group and share what it looks like."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROUNDS = 2  # of assignment; from the second on, centres are the image's own
SHARPNESS = 10.0  # of the assignment, to begin with


class Grouped(NamedTuple):
    """The groups of a batch of images."""

    shares: Tensor  # (B, G, N): of each place in each group; sums to 1 over G
    groups: Tensor  # (B, G, D): the mean embedding of a group's places, weighted by their shares


class PlaceGroups(nn.Module):
    """Soft spherical k-means within each image, from learnt centres; every place is then added its group's embedding.

    With x_n the places of an image at unit length, x̄ their mean, z_n = x_n - x̄ at unit length and c_g the centres,
    learnt in the first round::

        a_gn = softmax_g(r c_g · z_n)      c_g <- Σ_n a_gn z_n at unit length      f_g = Σ_n a_gn x_n / Σ_n a_gn
        y_n  = x_n + Σ_g a_gn f_g

    As in GroupViT (arXiv 2202.11094, eq. 2 and 3) a group is the mean of its places; centres that follow the image are
    those of kMaX-DeepLab (arXiv 2207.04044). Places are compared without their mean, which is most of an embedding of CLIP
    and tells none of them apart.
    """

    def __init__(self, groups: int, dimensions: int) -> None:
        """Random centres (G, D)."""
        super().__init__()
        self.centres = nn.Parameter(torch.randn(groups, dimensions))
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))

    def group(self, places: Tensor) -> Grouped:
        """The groups of places (B, N, D) of unit norm, in their dtype, whatever that of the weights is."""
        apart = F.normalize(places - places.mean(1, keepdim=True), dim=-1)  # (B, N, D)
        centres = F.normalize(self.centres.to(places.dtype), dim=-1).expand(len(places), -1, -1)  # (B, G, D)
        for number in range(ROUNDS):
            shares = (self.sharpness.to(places.dtype) * centres @ apart.mT).softmax(1)  # (B, G, N)
            if number < ROUNDS - 1:
                centres = F.normalize(shares @ apart, dim=-1)  # (B, G, D)
        # The shares of a group that no place is like may all be too small for a number.
        weights = shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)  # (B, G, N)
        return Grouped(shares, weights @ places)

    def forward(self, places: Tensor) -> Tensor:
        """Embeddings (B, D, h, w) float32 of places (B, D, h, w), each with its group's; not normalised."""
        with torch.autocast(places.device.type, enabled=False):
            flat = F.normalize(places.float().flatten(2).mT, dim=-1)  # (B, N, D)
            shares, groups = self.group(flat)
            return (flat + shares.mT @ groups).mT.unflatten(2, places.shape[2:])  # (B, D, h, w)
