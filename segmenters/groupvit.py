"""GroupViT: an image tower that groups patches, a text tower, and the heads that project both into one space.

    patches --6 blocks, 64 group tokens--> 64 segments --3 blocks, 8 group tokens--> 8 segments --3 blocks--> mean

Each grouping assigns every segment to one of the next stage's groups: by straight-through Gumbel-softmax in training, by
the largest product in evaluation. The *soft* assignments, see :meth:`GroupViT.encode_groups`, are for segmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmenters.text import END_OF_TEXT, Texts, tokenize
from segmenters.transformer import MLP, Attention, Block, TokenMLP

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB: pixels are normalised by mean and standard deviation
STD = (0.229, 0.224, 0.225)
LARGEST_SCALE = 100.0  # clamp of the logit scale, as in CLIP


@dataclass(frozen=True)
class GroupViTConfig:
    """Sizes of the model; the defaults are the paper's."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    heads: int = 6
    mlp_width: int = 1536
    depths: tuple[int, ...] = (6, 3, 3)  # blocks before the first grouping, before the second, ..., after the last
    groups: tuple[int, ...] = (64, 8)  # group tokens of each grouping
    assign_widths: tuple[int, int] = (192, 1536)  # of the two MLPs in a grouping: over tokens, over channels
    drop_path: float = 0.1
    text_vocabulary: int = 49408
    text_context: int = 77
    text_width: int = 256
    text_heads: int = 4
    text_mlp_width: int = 1024
    text_layers: int = 12
    projection_hidden: int = 4096
    projection: int = 256

    def __post_init__(self) -> None:
        """Turn lists (from YAML or JSON) into tuples. Raises ValueError for sizes that do not fit together."""
        for name in ("depths", "groups", "assign_widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("image_size", "patch_size", "width", "heads", "text_width", "text_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if len(self.depths) != len(self.groups) + 1:
            raise ValueError(
                f"depths: {len(self.depths)} stages need {len(self.depths) - 1} groups, found {self.groups}"
            )
        if self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError("heads: width must be a multiple of heads, and text_width of text_heads")
        if not self.groups or not 0 <= self.drop_path < 1:
            raise ValueError("groups: at least one grouping is needed, and drop_path must be in [0, 1)")


class GroupEncoding(NamedTuple):
    """What one pass of the image tower tells about a batch of images. Features are projected, not normalised."""

    groups: Tensor  # (B, G, D): one feature for each of the last grouping's G groups
    image: Tensor  # (B, D): the feature of the whole image
    assignments: tuple[Tensor, ...]  # soft: (B, 64, h·w), (B, 8, 64), ...; sums to 1 over dimension 1
    grid: tuple[int, int]  # (h, w): patches

    def masks(self) -> Tensor:
        """How much each patch belongs to each of the last groups: (B, G, h, w), sums to 1 over G."""
        return group_masks(self.assignments, self.grid)


def group_masks(assignments: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """How much each patch belongs to each of the last groups: (B, G, h, w) from all soft assignments, see GroupEncoding."""
    product = assignments[0]  # (B, G0, h·w)
    for assignment in assignments[1:]:
        product = assignment @ product  # (B, G, G0) @ (B, G0, h·w) -> (B, G, h·w)
    return product.unflatten(2, grid)


# --- the image tower ------------------------------------------------------------------------------------------------------


def gumbel_noise(like: Tensor) -> Tensor:
    """Standard Gumbel noise of a tensor's shape, dtype and device."""
    return -torch.empty_like(like).exponential_().log()


def assign(logits: Tensor, training: bool) -> Tensor:
    """Hard assignment (B, G, N), in {0, 1}, of N segments to G groups; in training drawn at random, with the soft gradient.

    ``logits`` (B, G, N) must be float32 or wider: drawn in bfloat16, Gumbel noise has the wrong mean and no tail.
    """
    if not training:
        return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)

    soft = (logits + gumbel_noise(logits)).softmax(1)
    hard = torch.zeros_like(logits).scatter_(1, soft.argmax(1, keepdim=True), 1.0)
    return hard + soft - soft.detach()


class Grouping(nn.Module):
    """Gathers N segments into G: each segment goes to the group token that it fits best."""

    def __init__(self, config: GroupViTConfig, groups: int) -> None:
        super().__init__()
        width = config.width
        over_tokens, over_channels = config.assign_widths

        # Group tokens: mixed with each other, then with what they see in the segments.
        self.norm_tokens = nn.LayerNorm(width)
        self.norm_x = nn.LayerNorm(width)
        self.mix = TokenMLP(groups, over_tokens, groups)
        self.norm_mixed = nn.LayerNorm(width)
        self.look = Attention(width, config.heads)
        self.norm_look = nn.LayerNorm(width)
        self.mlp_look = MLP(width, config.mlp_width, width)
        self.norm_looked = nn.LayerNorm(width)

        # Assignment: group tokens are queries, segments are keys and values.
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)
        self.mlp_out = MLP(width, over_channels, width)

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """New segments (B, G, W) and soft assignment (B, G, N), float32 at least, from x (B, N, W) and tokens (B, G, W)."""
        x = self.norm_x(x)
        tokens = self.norm_mixed(self.mix(self.norm_tokens(tokens)))  # (B, G, W)
        tokens = tokens + self.look(tokens, x)
        tokens = self.norm_looked(tokens + self.mlp_look(self.norm_look(tokens)))  # (B, G, W)

        # The weights of key and value meet G queries and means rather than N segments, which are three times as many.
        query = self.query(tokens)  # (B, G, W)
        scores = (query @ self.key.weight) @ x.transpose(1, 2) + (query @ self.key.bias)[..., None]  # (B, G, N)
        logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) * x.shape[-1] ** -0.5
        hard = assign(logits, self.training)  # (B, G, N)

        # One is added to the number of segments: a group that gets none keeps its token, without a division by zero.
        shares = (hard / (hard.sum(2, keepdim=True) + 1)).to(x.dtype)  # (B, G, N)
        value = F.linear(shares @ x, self.value.weight) + shares.sum(2, keepdim=True) * self.value.bias  # (B, G, W)
        segments = tokens + self.out(value)  # (B, G, W)
        return segments + self.mlp_out(self.norm_out(segments)), logits.softmax(1)


class GroupingStage(nn.Module):
    """Some blocks over segments and group tokens, then a grouping; the last stage has neither tokens nor grouping."""

    def __init__(self, config: GroupViTConfig, index: int, rates: Sequence[float]) -> None:
        super().__init__()
        width = config.width
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_width, rate) for rate in rates)
        self.groups = config.groups[index] if index < len(config.groups) else 0
        if self.groups:
            self.tokens = nn.Parameter(torch.zeros(1, self.groups, width))
            self.grouping = Grouping(config, self.groups)
        if self.groups and index > 0:
            mixer = TokenMLP(config.groups[index - 1], width // 2, self.groups)
            self.projector = nn.Sequential(nn.LayerNorm(width), mixer)

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Segments (B, G, W), group tokens (B, G, W) and soft assignment (B, G, N) from x (B, N, W) and the stage before's
        group tokens; without grouping x (B, N, W), None, None."""
        if not self.groups:
            for block in self.blocks:
                x = block(x)
            return x, None, None

        tokens = self.tokens.expand(len(x), -1, -1)  # (B, G, W)
        if previous is not None:
            tokens = tokens + self.projector(previous)

        x = torch.cat([x, tokens.to(x.dtype)], 1)  # (B, N + G, W)
        for block in self.blocks:
            x = block(x)

        x, tokens = x.split([x.shape[1] - self.groups, self.groups], 1)  # (B, N, W), (B, G, W)
        segments, assignment = self.grouping(x, tokens)  # (B, G, W), (B, G, N)
        return segments, tokens, assignment


class ImageTower(nn.Module):
    """Images to segments."""

    def __init__(self, config: GroupViTConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.side = config.image_size // config.patch_size  # patches
        # A linear layer over cut-out patches equals a strided convolution and is faster in bfloat16.
        self.patch = nn.Linear(3 * config.patch_size**2, config.width)
        self.patch_norm = nn.LayerNorm(config.width)
        self.positions = nn.Parameter(torch.zeros(1, self.side**2, config.width))
        rates = torch.linspace(0, config.drop_path, sum(config.depths)).split(config.depths)
        self.stages = nn.ModuleList(GroupingStage(config, index, part.tolist()) for index, part in enumerate(rates))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
        """Segments (B, G, W), soft assignments and the patch grid of pixels (B, 3, H, W), any H and W of a patch or more.

        Rows and columns beyond the last whole patch are not seen.
        """
        size = self.patch_size
        grid = pixels.shape[2] // size, pixels.shape[3] // size  # h, w
        if min(grid) < 1:
            raise ValueError(f"image of {pixels.shape[3]} x {pixels.shape[2]} pixels is smaller than a patch of {size}")

        x = pixels[:, :, : grid[0] * size, : grid[1] * size].unflatten(3, (-1, size)).unflatten(2, (-1, size))
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, 3, h, p, w, p) -> (B, h·w, 3·p·p)
        x = self.patch_norm(self.patch(x)) + self.positions_for(grid)  # (B, h·w, W)

        tokens: Tensor | None = None
        assignments: list[Tensor] = []
        for stage in self.stages:
            x, tokens, assignment = stage(x, tokens)
            if assignment is not None:
                assignments.append(assignment)

        return self.norm(x), tuple(assignments), grid  # (B, G, W)

    def positions_for(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1, h·w, W) for a patch grid, interpolated bicubically where it is not the native one."""
        if grid == (self.side, self.side):
            return self.positions
        native = self.positions.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)  # (1, W, side, side)
        native = native.to(torch.promote_types(native.dtype, torch.float32))
        resized = F.interpolate(native, size=grid, mode="bicubic", align_corners=False)  # (1, W, h, w)
        return resized.flatten(2).transpose(1, 2).to(self.positions.dtype)


# --- the text tower -------------------------------------------------------------------------------------------------------


class TextTower(nn.Module):
    """Token ids to the feature of the end of text. Several matrices of ids may differ in length."""

    def __init__(self, config: GroupViTConfig) -> None:
        super().__init__()
        width = config.text_width
        self.tokens = nn.Embedding(config.text_vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(config.text_context, width))
        self.blocks = nn.ModuleList(
            Block(width, config.text_heads, config.text_mlp_width, quick=True) for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, *matrices: Tensor) -> Tensor:
        """(ΣT_k, W) from token ids (T_k, L_k), L_k at most the context; each row ends in END_OF_TEXT, then anything."""
        if matrices[0].is_cuda and len(matrices) > 1:  # which waits for kernels to be started, not for padding
            matrices = (padded_together(matrices),)

        # One look-up for all, since its gradient is as large as the whole table.
        embedded = self.tokens(torch.cat([ids.flatten() for ids in matrices])).split([ids.numel() for ids in matrices])

        ends = [self.encode(ids, x.view(*ids.shape, -1)) for ids, x in zip(matrices, embedded, strict=True)]
        return self.norm(torch.cat(ends))  # (ΣT_k, W)

    def encode(self, ids: Tensor, embedded: Tensor) -> Tensor:
        """What the blocks make of the end of text: (T, W) from token ids (T, L) and their embeddings (T, L, W)."""
        length = ids.shape[1]
        x = embedded + self.positions[:length]  # (T, L, W)
        end = (ids == END_OF_TEXT).int().argmax(1)  # (T,): the first one

        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks[:-1]:
            x = block(x, mask)
        return self.blocks[-1].at(x, end)  # type: ignore[operator]  # (T, W); a ModuleList does not say what it holds


def padded_together(matrices: Sequence[Tensor]) -> Tensor:
    """One matrix (ΣT_k, L) of matrices (T_k, L_k), one below the other; zeros fill up to the largest L_k.

    >>> padded_together([torch.tensor([[1, 2]]), torch.tensor([[3, 4, 5]])]).tolist()
    [[1, 2, 0], [3, 4, 5]]
    """
    longest = max(ids.shape[1] for ids in matrices)
    return torch.cat([F.pad(ids, (0, longest - ids.shape[1])) for ids in matrices])  # (ΣT_k, L)


# --- both towers ----------------------------------------------------------------------------------------------------------


class GroupViT(nn.Module):
    """The two towers, their projection heads, and the learnt logit scale."""

    def __init__(self, config: GroupViTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or GroupViTConfig()
        self.image = ImageTower(config)
        self.text = TextTower(config)
        self.image_projection = projection_head(config.width, config.projection_hidden, config.projection)
        self.text_projection = projection_head(config.text_width, config.projection_hidden, config.projection)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

        self.apply(initialise)
        for stage in self.image.stages:
            if isinstance(stage, GroupingStage) and stage.groups:
                nn.init.trunc_normal_(stage.tokens, std=0.02)
        nn.init.trunc_normal_(self.image.positions, std=0.02)
        nn.init.normal_(self.text.positions, std=0.01)

    def forward(self, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) of pixels (B, 3, H, W) and (T, D) of token ids (T, L), not normalised."""
        return self.encode_image(pixels), self.encode_text(tokens)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features (B, D) of pixels (B, 3, H, W), not normalised."""
        segments, _, _ = self.image(pixels)
        return self.image_projection(segments.mean(1))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features (T, D) of token ids (T, L), not normalised."""
        return self.text_projection(self.text(tokens))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, L) int64, as this model takes them."""
        return tokenize(texts, self.config.text_context)

    def encode_texts(self, texts: Sequence[Texts]) -> list[Tensor]:
        """Features (T, D) of captions, of prompts, ...: for each, as if all texts were padded to one length.

        Short texts pass the tower apart from long ones; the batch norm of the projection sees all of them together.
        """
        ends = self.text(*(matrix for some in texts for matrix in some.matrices))  # (ΣT, W)
        counts = [len(some.rows) for some in texts]
        ordered = [
            part.index_select(0, some.rows) for part, some in zip(ends.split(counts), texts, strict=True)
        ]  # (T, W) each
        return list(self.text_projection(torch.cat(ordered)).split(counts))

    def encode_groups(self, pixels: Tensor) -> GroupEncoding:
        """Features of the groups and of the image, and the soft assignments, in one pass. For evaluation: in training mode
        the groups would enter the statistics of the batch norm."""
        segments, assignments, grid = self.image(pixels)  # (B, G, W)
        both = torch.cat([segments, segments.mean(1, keepdim=True)], 1)  # (B, G + 1, W)
        projected = self.image_projection(both.flatten(0, 1)).unflatten(0, both.shape[:2])  # (B, G + 1, D)
        return GroupEncoding(projected[:, :-1], projected[:, -1], assignments, grid)

    @property
    def smallest(self) -> int:
        """Pixels that a side of an image has at least: those of a patch."""
        return self.config.patch_size

    @property
    def recompute(self) -> bool:
        """Whether the backward pass computes the insides of transformer blocks again, which saves memory for time."""
        return any(block.recompute for block in self._blocks())

    @recompute.setter
    def recompute(self, value: bool) -> None:
        for block in self._blocks():
            block.recompute = value

    def _blocks(self) -> Iterable[Block]:
        return (module for module in self.modules() if isinstance(module, Block))

    @property
    def scale(self) -> Tensor:
        """The factor of cosines in logits: exp of the learnt value, at most 100."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)


def projection_head(width: int, hidden: int, out: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, Linear: (N, width) -> (N, out)."""
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
    )


def initialise(module: nn.Module) -> None:
    """Truncated normal weights and zero biases, for every linear layer and embedding."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
