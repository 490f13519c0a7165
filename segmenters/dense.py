"""CLIP as a segmenter: an embedding for every place of an image from the image tower, and texts from the text tower."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from curation.base.errors import CocuError, loading_error
from segmenters.groupvit import LARGEST_SCALE, MEAN, STD
from segmenters.place_groups import PlaceGroups
from segmenters.text import tokenizer
from segmenters.towers import open_tower


@dataclass(frozen=True)
class DenseConfig:
    """An open_clip model and how it is read place by place.

    Attributes:
        model: open_clip's ``model_cfg``: embed_dim, vision_cfg, text_cfg, ...
        mean: of the pixels that the model expects, RGB in 0..1.
        std: their standard deviation.
        reading: one of ``segmenters.readings.READINGS`` for transformers, map for convolutional towers; None: the default.
        stride: pixels between places; None for the tower's own.
        size: side of the pictures that it is meant for; None for the model's own.
        groups: of the grouping head over its places; None for no head.
        tokenizer: open_clip's name of the model, where its tokenizer is not CLIP's.
    """

    model: Mapping[str, Any]
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    reading: str | None = None
    stride: int | None = None
    size: int | None = None
    groups: int | None = None
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Turn lists (from JSON) into tuples. Raises ValueError for values that are none."""
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))))
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: {getattr(self, name)} is not three numbers")
        for name, default in (
            ("stride", "the tower's own"),
            ("size", "the model's own"),
            ("groups", "no grouping head"),
        ):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"{name}: {value} must be at least 1 and whole; null is for {default}")
        missing = [name for name in ("embed_dim", "vision_cfg", "text_cfg") if name not in self.model]
        if missing:
            raise ValueError(f"model: {missing[0]} is missing")
        for name in ("vision_cfg", "text_cfg"):
            if not isinstance(self.model[name], Mapping):
                raise ValueError(f"model: {name}: {self.model[name]!r} is no mapping")

    @property
    def image_size(self) -> int:
        """Side of the pictures that it is meant for, in pixels."""
        size = self.size or self.model["vision_cfg"].get("image_size", 224)
        return int(size if isinstance(size, int) else min(size))

    @property
    def text_context(self) -> int:
        """Tokens of the longest text."""
        return int(self.model["text_cfg"].get("context_length", 77))


class Places(NamedTuple):
    """What one pass of the image tower tells about a batch of images. Embeddings are not normalised."""

    features: Tensor  # (B, D, h, w)
    image: Tensor  # (B, D): of the whole image


class DenseCLIP(nn.Module):
    """An open_clip model that gives every place an embedding."""

    factor: Tensor  # (3, 1, 1): see _own
    shift: Tensor  # (3, 1, 1)

    def __init__(self, config: DenseConfig) -> None:
        """Random weights. Raises CocuError for a model that open_clip does not know or that has no reading."""
        super().__init__()
        self.config = config
        self.clip = build_clip(config.model)
        self.tower = open_tower(self.clip.visual, config.reading, config.stride)
        self.grouping = PlaceGroups(config.groups, config.model["embed_dim"]) if config.groups else None
        mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
        ours, spread = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        # Pixels come normalised by MEAN and STD, those of all our models; this makes the model's own of them.
        self.register_buffer("factor", spread / std, persistent=False)
        self.register_buffer("shift", (ours - mean) / std, persistent=False)

    def encode_places(self, pixels: Tensor) -> Tensor:
        """Embeddings (B, D, h, w), not normalised, of pixels (B, 3, H, W) normalised by MEAN and STD."""
        return self._grouped(self.tower.places(self._own(pixels)))

    def encode(self, pixels: Tensor) -> Places:
        """Embeddings of places and images of pixels (B, 3, H, W) normalised by MEAN and STD."""
        pixels = self._own(pixels)
        places = self.tower.places(pixels)
        return Places(self._grouped(places), self.tower.whole(pixels, places))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings (T, D), not normalised, of token ids (T, context)."""
        return self.clip.encode_text(tokens)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (T, context) int64, as this model takes them."""
        if self.config.tokenizer:
            import open_clip

            return open_clip.get_tokenizer(self.config.tokenizer)(list(texts))
        return tokenizer()(list(texts), context_length=self.config.text_context)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the factor of cosines."""
        return self.clip.logit_scale

    @property
    def scale(self) -> Tensor:
        """The factor of cosines in logits, at most 100."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)

    @property
    def smallest(self) -> int:
        """Pixels that a side of an image has at least."""
        return self.tower.stride

    def _grouped(self, places: Tensor) -> Tensor:
        return places if self.grouping is None else self.grouping(places)

    def _own(self, pixels: Tensor) -> Tensor:
        return pixels * self.factor + self.shift


def build_clip(model: Mapping[str, Any]) -> Any:
    """open_clip's model of a ``model_cfg``, with random weights. Raises CocuError where it cannot be made."""
    import open_clip  # takes seconds

    values: dict[str, Any] = deepcopy(dict(model))
    custom = values.pop("custom_text", False) or "hf_model_name" in values["text_cfg"]
    values["vision_cfg"].pop("timm_model_pretrained", None)  # the weights come with the checkpoint
    if "hf_model_name" in values["text_cfg"]:
        values["text_cfg"]["hf_model_pretrained"] = False
    try:
        return (open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP)(**values)
    except Exception as error:  # open_clip and timm raise nearly anything for a bad configuration
        raise CocuError(f"open_clip cannot make this model ({loading_error(error)}); check its model_cfg") from None


def with_given(config: DenseConfig, **values: Any) -> DenseConfig:
    """``config`` with what is given, and not None, in place of its own. Raises ValueError as :class:`DenseConfig` does."""
    return dataclasses.replace(config, **{name: value for name, value in values.items() if value is not None})
