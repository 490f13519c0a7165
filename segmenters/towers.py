"""A map of places from the image tower of any open_clip model: embeddings where the tower would give one for all.

Vision transformers are read at their last block (readings.py); convolutional towers before they pool. Either may have
places at a finer stride than its own: a transformer cuts its patches closer together, a ResNet of timm loses its first
strides, other timm networks dilate late layers. The weights stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curation.base.errors import CocuError, one_line
from segmenters.readings import READINGS, Reading

LAST_MAP = "map"  # the reading of convolutional towers
DEFAULT_READING = "naclip"  # of transformers
PROBE = 256  # pixels of a side of the picture that a timm network's stride is measured on


class Tower:
    """How one kind of image tower is read. ``visual`` is open_clip's module; it stays where it is.

    ``stride``: pixels between places; None for the tower's own.
    """

    stride: int

    def __init__(self, visual: Any, reading: str) -> None:
        self.visual = visual
        self.reading = reading

    def places(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, D, h, w), not normalised, of pixels (B, 3, H, W)."""
        raise NotImplementedError

    def whole(self, pixels: Tensor, places: Tensor) -> Tensor:
        """Embeddings (B, D) of the images, not normalised; ``places`` are theirs."""
        return places.mean((2, 3))

    def projection(self) -> Iterator[nn.Parameter]:
        """The parameters between the last features and the embedding."""
        raise NotImplementedError

    def unused(self) -> Iterator[nn.Parameter]:
        """The parameters that no place passes."""
        return iter(())


def open_tower(visual: Any, reading: str | None, stride: int | None) -> Tower:
    """The tower of an open_clip model. Raises CocuError for one that cannot be read so, in one line."""
    kind = type(visual).__name__
    if kind == "VisionTransformer":
        return TransformerTower(visual, reading or DEFAULT_READING, stride)
    if kind == "TimmModel":
        return TimmTower(visual, reading or LAST_MAP, stride)
    if kind == "ModifiedResNet":
        return ResNetTower(visual, reading or LAST_MAP, stride)
    raise CocuError(f"an image tower of type {kind} cannot be read place by place; use a ViT, ResNet or timm model")


def _need_reading(reading: str, choices: list[str], kind: str) -> None:
    if reading not in choices:
        raise CocuError(f"reading: {reading} is not one of {', '.join(choices)}, the readings of a {kind}")


# --- transformers ---------------------------------------------------------------------------------------------------------


class TransformerTower(Tower):
    """open_clip's VisionTransformer, read at its last block."""

    def __init__(self, visual: Any, reading: str, stride: int | None) -> None:
        super().__init__(visual, reading)
        _need_reading(reading, list(READINGS), "vision transformer")
        block = visual.transformer.resblocks[-1]
        if visual.attn_pool is not None or not isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
            raise CocuError("this vision transformer pools or attends in its own way and has no reading; use another")
        self.patch = visual.patch_size[0]
        self.stride = stride or self.patch
        if not 1 <= self.stride <= self.patch:
            raise CocuError(f"stride: {self.stride} is not in 1..{self.patch}, the tower's own")

    def places(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, D, h, w), by the reading."""
        x, grid = self._before_last(pixels)  # (B, 1 + h·w, W)
        block = self.visual.transformer.resblocks[-1]
        x = read_block(block, x, grid, READINGS[self.reading])[:, 1:]  # (B, h·w, W)
        embedded = self.visual.ln_post(x) @ self.visual.proj  # (B, h·w, D)
        return embedded.transpose(1, 2).unflatten(2, grid)

    def whole(self, pixels: Tensor, places: Tensor) -> Tensor:
        """Embeddings (B, D) as the model itself pools them."""
        x, _ = self._before_last(pixels)
        pooled, _ = self.visual._pool(self.visual.transformer.resblocks[-1](x))
        return pooled @ self.visual.proj

    def projection(self) -> Iterator[nn.Parameter]:
        """The last norm and the projection."""
        return iter([*self.visual.ln_post.parameters(), self.visual.proj])

    def unused(self) -> Iterator[nn.Parameter]:
        """The second half of the last block, where the reading leaves it out."""
        block = self.visual.transformer.resblocks[-1]
        skipped = [] if READINGS[self.reading].whole_block else [block.ln_2, block.mlp, block.ls_2]
        return chain.from_iterable(module.parameters() for module in skipped)

    def _before_last(self, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """What the last block gets, (B, 1 + h·w, W), and the grid of places."""
        # Half of what a finer stride adds goes to either side, so that a place's patch is around its cell.
        margin = self.patch - self.stride
        padded = F.pad(pixels, (margin // 2, margin - margin // 2) * 2, mode="replicate") if margin else pixels
        x = F.conv2d(padded, self.visual.conv1.weight, self.visual.conv1.bias, self.stride)  # (B, W, h, w)
        grid = (x.shape[2], x.shape[3])
        first = self.visual.class_embedding.expand(len(x), 1, -1).to(x.dtype)
        x = torch.cat([first, x.flatten(2).transpose(1, 2)], 1) + self._positions(grid).to(x.dtype)

        x = self.visual.ln_pre(x)
        for block in self.visual.transformer.resblocks[:-1]:
            x = block(x)
        return x, grid

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1 + h·w, W); those of places are interpolated bicubically for any other grid."""
        positions = self.visual.positional_embedding
        native = tuple(self.visual.grid_size)
        if grid == native:
            return positions
        places = positions[1:].T.unflatten(1, native)[None].float()  # (1, W, native)
        places = F.interpolate(places, size=grid, mode="bicubic", align_corners=False, antialias=False)
        return torch.cat([positions[:1], places[0].flatten(1).T.to(positions.dtype)])


def read_block(block: Any, x: Tensor, grid: tuple[int, int], reading: Reading) -> Tensor:
    """What a transformer block makes of x (B, N, W) with attention as the reading has it."""
    attention = block.attn
    projected = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)  # (B, N, 3·W)
    heads = projected.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, heads, N, d)
    mixed = reading.mix(heads[0], heads[1], heads[2], grid).transpose(1, 2).flatten(2)  # (B, N, W)
    mixed = block.ls_1(attention.out_proj(mixed))
    if not reading.whole_block:
        return mixed
    x = x + mixed
    return x + block.ls_2(block.mlp(block.ln_2(x)))


# --- convolutional towers -------------------------------------------------------------------------------------------------


class TimmTower(Tower):
    """A timm network whose last map is pooled by its mean: each place passes the head by itself."""

    def __init__(self, visual: Any, reading: str, stride: int | None) -> None:
        super().__init__(visual, reading)
        _need_reading(reading, [LAST_MAP], "timm network")
        if stride is not None:
            restride(visual, stride)
        self.stride = _measured_stride(visual.trunk)
        if stride not in (None, self.stride):
            raise CocuError(f"stride: asked for {stride}, but this timm network has places {self.stride} pixels apart")

    def places(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, D, h, w) of the last map's places."""
        features = self.visual.trunk.forward_features(pixels)  # (B, C, h, w)
        count, _, height, width = features.shape
        each = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1], 1, 1)  # (B·h·w, C, 1, 1)
        embedded = self.visual.head(self.visual.trunk.forward_head(each))  # (B·h·w, D)
        return embedded.view(count, height, width, -1).permute(0, 3, 1, 2)

    def projection(self) -> Iterator[nn.Parameter]:
        """The head."""
        return chain(self.visual.trunk.get_classifier().parameters(), self.visual.head.parameters())


def restride(visual: Any, stride: int) -> None:
    """Give a timm network places ``stride`` pixels apart, with the weights it has. Raises CocuError where it cannot.

    A ResNet loses the stride of its first pooling, then that of its stem: it sees everything finer, as in a larger picture,
    at less cost. Places of later layers that lose theirs would be as blurred as before. Other networks do as timm's
    ``output_stride`` has it: late layers are dilated.
    """
    trunk = visual.trunk
    own = _measured_stride(trunk)
    stem = trunk.conv1[0] if isinstance(getattr(trunk, "conv1", None), nn.Sequential) else getattr(trunk, "conv1", None)
    early = [layer for layer in (getattr(trunk, "maxpool", None), stem) if isinstance(layer, nn.MaxPool2d | nn.Conv2d)]
    factors = {own >> count: early[:count] for count in range(len(early) + 1)}
    if len(early) < 2 and stride != own:
        visual.trunk = _dilated(trunk, stride)
        return

    for layer in factors.get(stride, []):
        layer.stride = 1 if isinstance(layer, nn.MaxPool2d) else (1, 1)


def _dilated(trunk: Any, stride: int) -> Any:
    """The same timm network with the ``output_stride`` that is asked for. Raises CocuError where it has no such one."""
    import timm

    name = trunk.default_cfg["architecture"]
    try:
        finer: Any = timm.create_model(name, pretrained=False, num_classes=trunk.num_classes, output_stride=stride)
        finer.reset_classifier(0, global_pool="avg")
        finer.load_state_dict(trunk.state_dict())
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error) or type(error).__name__
        raise CocuError(f"stride: {name} cannot have places {stride} pixels apart ({reason})") from None
    return finer.train(trunk.training)


def _measured_stride(trunk: Any) -> int:
    """Pixels between the places of a network's last map. Raises CocuError where no map is pooled by its mean."""
    holder = trunk if hasattr(trunk, "global_pool") else getattr(trunk, "head", None)
    pool = getattr(getattr(holder, "global_pool", None), "pool_type", None)
    features = _features_of_nothing(trunk) if pool == "avg" else None
    if features is None or features.ndim != 4 or features.shape[1] != trunk.num_features:
        raise CocuError(
            "this timm network does not pool a map of places by its mean; use a ResNet, ConvNeXt or the like"
        )
    return PROBE // int(features.shape[2])


def _features_of_nothing(trunk: Any) -> Tensor | None:
    """The last features, a map (1, C, h, w) or others, of black pixels; None of a network that takes one size only, as Swin
    does."""
    training = trunk.training
    pixels = torch.zeros(1, 3, PROBE, PROBE, device=next(trunk.parameters()).device)
    try:
        with torch.no_grad():
            features: Tensor = trunk.eval().forward_features(pixels)
        return features
    except AssertionError:
        return None
    finally:
        trunk.train(training)


class ResNetTower(Tower):
    """OpenAI's ResNets, which pool by attention: each place keeps its value, as MaskCLIP reads them."""

    stride = 32

    def __init__(self, visual: Any, reading: str, stride: int | None) -> None:
        super().__init__(visual, reading)
        _need_reading(reading, [LAST_MAP], "ResNet")
        if stride not in (None, self.stride):
            raise CocuError(f"stride: this ResNet has places {self.stride} pixels apart and no finer ones")

    def places(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, D, h, w): values of the attention that pools, projected."""
        visual = self.visual
        x = visual.stem(pixels)
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
        embedded = visual.attnpool.c_proj(visual.attnpool.v_proj(x.permute(0, 2, 3, 1)))  # (B, h, w, D)
        return embedded.permute(0, 3, 1, 2)

    def projection(self) -> Iterator[nn.Parameter]:
        """Values and their projection."""
        return chain(self.visual.attnpool.v_proj.parameters(), self.visual.attnpool.c_proj.parameters())

    def unused(self) -> Iterator[nn.Parameter]:
        """Queries, keys and positions of the attention that pools."""
        pool = self.visual.attnpool
        return chain(pool.q_proj.parameters(), pool.k_proj.parameters(), [pool.positional_embedding])
