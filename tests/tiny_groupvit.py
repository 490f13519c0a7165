"""A tiny GroupViT, what it is compared with, and files that hold it."""

from __future__ import annotations

import copy
import dataclasses

import torch

from segmenters.groupvit import GroupViTConfig

TEXTS = ["a photo of a red fox.", "grass", "", "A photo of a siamese cat, 2 dogs & a bus!", "word " * 100]
TINY = GroupViTConfig(
    image_size=32, patch_size=8, width=16, heads=2, mlp_width=32, depths=(1, 1, 1), groups=(4, 2), assign_widths=(8, 32),
    text_width=16, text_heads=2, text_mlp_width=32, text_layers=2, projection_hidden=24, projection=8,
)  # fmt: skip


def doubled(*models):
    """Copies of the models in float64, in which two ways of computing the same differ by next to nothing."""
    return [copy.deepcopy(model).double() for model in models]


@torch.no_grad()
def hugging(model, pixels):
    """Features of groups and of the image, and the soft assignments, of Hugging Face's model at any size."""
    tower = model.vision_model
    embedded = tower.embeddings(pixels, interpolate_pos_encoding=True)
    encoded = tower.encoder(hidden_states=embedded, output_attentions=True)
    segments = tower.layernorm(encoded[0])
    groups = model.visual_projection(segments.flatten(0, 1)).unflatten(0, segments.shape[:2])
    image = model.visual_projection(segments.mean(1))
    return groups, image, [attention for attention in encoded.attentions if attention is not None]


def lightning(model, path, **changes):
    """A file as Lightning writes it."""
    content = {
        "pytorch-lightning_version": "2.6.0",
        "epoch": 1,
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()}
        | {"loss.multi_label_scale": torch.tensor(1.0)},
        "hyper_parameters": {"model": dataclasses.asdict(model.config), "learning_rate": 1e-3},
    }
    torch.save(content | changes, path)
    return path


def same(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
