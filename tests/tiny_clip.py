"""Tiny open_clip models of the three kinds of image towers, and folders that hold them."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {
    "transformer": {"image_size": 32, "patch_size": 8, "width": 24, "head_width": 8, "layers": 2},
    "timm": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
}
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def model_config(kind: str) -> dict:
    return {"embed_dim": 12, "vision_cfg": dict(VISION[kind]), "text_cfg": dict(TEXT)}


def tiny_clip(kind: str, **options):
    """A dense CLIP with weights that are large enough to tell places apart."""
    from segmenters.dense import DenseCLIP, DenseConfig

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = DenseCLIP(DenseConfig(model_config(kind), MEAN, STD, **options)).eval()
        for name, value in model.clip.named_parameters():
            if value.ndim > 1 and "embedding" not in name:
                value.data = torch.randn_like(value) * (1.5 * value[0].numel() ** -0.5)
            elif value.ndim == 1:
                value.data += 0.1 * torch.randn_like(value)
    return model


def save_clip(model, folder):
    """The folder in open_clip's format, written without our code."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in model.clip.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    config = {"model_cfg": dict(model.config.model), "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder
