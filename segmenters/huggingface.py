"""Hugging Face's GroupViT: our names, shapes and sizes of weights as theirs, and theirs as ours."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from segmenters.groupvit import GroupViT, GroupViTConfig
from segmenters.text import END_OF_TEXT, START_OF_TEXT

# Our names to Hugging Face's. Applied in order, each to the whole name; q, k and v are one matrix here and three there.
RENAMES = [
    (r"^image\.patch\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^image\.patch_norm\.", "vision_model.embeddings.layernorm."),
    (r"^image\.positions$", "vision_model.embeddings.position_embeddings"),
    (r"^image\.norm\.", "vision_model.layernorm."),
    (r"^image\.stages\.(\d+)\.tokens$", r"vision_model.encoder.stages.\1.group_token"),
    (r"^image\.stages\.(\d+)\.projector\.", r"vision_model.encoder.stages.\1.group_projector."),
    (r"^image\.stages\.(\d+)\.grouping\.", r"vision_model.encoder.stages.\1.downsample."),
    (r"^image\.stages\.(\d+)\.blocks\.", r"vision_model.encoder.stages.\1.layers."),
    (r"\.downsample\.mix\.", ".downsample.mlp_inter."),
    (r"\.downsample\.norm_mixed\.", ".downsample.norm_post_tokens."),
    (r"\.downsample\.look\.", ".downsample.pre_assign_attn.attn."),
    (r"\.downsample\.norm_look\.", ".downsample.pre_assign_attn.norm2."),
    (r"\.downsample\.mlp_look\.", ".downsample.pre_assign_attn.mlp."),
    (r"\.downsample\.norm_looked\.", ".downsample.pre_assign_attn.norm_post."),
    (r"\.downsample\.(q|k|v)(uery|ey|alue)\.", r".downsample.assign.\1_proj."),
    (r"\.downsample\.out\.", ".downsample.assign.proj."),
    (r"\.downsample\.norm_out\.", ".downsample.norm_new_x."),
    (r"\.downsample\.mlp_out\.", ".downsample.mlp_channels."),
    (r"^text\.tokens\.", "text_model.embeddings.token_embedding."),
    (r"^text\.positions$", "text_model.embeddings.position_embedding.weight"),
    (r"^text\.blocks\.", "text_model.encoder.layers."),
    (r"^text\.norm\.", "text_model.final_layer_norm."),
    (r"^image_projection\.", "visual_projection."),
    (r"\.norm(1|2)\.(weight|bias)$", r".layer_norm\1.\2"),
    (r"\.pre_assign_attn\.layer_norm2\.", ".pre_assign_attn.norm2."),
    (r"\.attention\.", ".self_attn."),
    (r"\.(self_attn|attn)\.out\.", r".\1.out_proj."),
    (r"\.up\.", ".fc1."),
    (r"\.down\.", ".fc2."),
]


# --- weights --------------------------------------------------------------------------------------------------------------


def huggingface_names(name: str) -> list[str]:
    """Hugging Face's names of one of our weights: three for a joint q, k, v matrix, otherwise one.

    >>> huggingface_names("text.blocks.0.attention.qkv.bias")[0]
    'text_model.encoder.layers.0.self_attn.q_proj.bias'
    """
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return [name.replace(".qkv.", f".{part}_proj.") for part in "qkv"] if ".qkv." in name else [name]


def to_huggingface(model: GroupViT) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names and in its shapes."""
    size = model.config.patch_size
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name == "image.patch.weight":
            value = value.unflatten(1, (3, size, size))  # (W, 3·p·p) -> (W, 3, p, p)
        names = huggingface_names(name)
        weights |= dict(zip(names, value.chunk(len(names)) if len(names) > 1 else [value], strict=True))
    return weights


def from_huggingface(weights: Mapping[str, Tensor], model: GroupViT) -> dict[str, Tensor]:
    """Weights for ``model`` from Hugging Face's. Raises ValueError for missing and for unknown ones."""
    left = dict(weights)
    ours: dict[str, Tensor] = {}
    for name in model.state_dict():
        parts = []
        for theirs in huggingface_names(name):
            if theirs not in left:
                raise ValueError(f"lacks {theirs}: weights of another model")
            parts.append(left.pop(theirs))

        ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        if name == "image.patch.weight":
            ours[name] = ours[name].flatten(1)  # (W, 3, p, p) -> (W, 3·p·p)

    unknown = [name for name in left if not name.endswith("position_ids")]  # older files hold this constant
    if unknown:
        raise ValueError(f"has {unknown[0]}, which GroupViT lacks: weights of another model")
    return ours


# --- sizes ----------------------------------------------------------------------------------------------------------------


def config_to_huggingface(config: GroupViTConfig) -> dict[str, Any]:
    """Hugging Face's config.json of our sizes. ``drop_path``, which its model lacks, is kept for the way back."""
    return {
        "architectures": ["GroupViTModel"],
        "model_type": "groupvit",
        "projection_dim": config.projection,
        "projection_intermediate_dim": config.projection_hidden,
        "drop_path": config.drop_path,
        "vision_config": {
            "model_type": "groupvit_vision_model",
            "image_size": config.image_size,
            "patch_size": config.patch_size,
            "hidden_size": config.width,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": sum(config.depths),
            "depths": list(config.depths),
            "num_group_tokens": [*config.groups, 0],
            "num_output_groups": [*config.groups, config.groups[-1]],
            "assign_mlp_ratio": [_ratio(part, config.width) for part in config.assign_widths],
        },
        "text_config": {
            "model_type": "groupvit_text_model",
            "vocab_size": config.text_vocabulary,
            "max_position_embeddings": config.text_context,
            "hidden_size": config.text_width,
            "num_attention_heads": config.text_heads,
            "intermediate_size": config.text_mlp_width,
            "num_hidden_layers": config.text_layers,
            "bos_token_id": START_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
            "pad_token_id": END_OF_TEXT,
        },
    }


def config_from_huggingface(config: Mapping[str, Any]) -> GroupViTConfig:
    """Our sizes from Hugging Face's config.json, whose defaults are the paper's too.

    Raises ValueError for variants that this model does not have, and for sizes that do not fit together.
    """
    image = config.get("vision_config") or {}
    text = config.get("text_config") or {}
    tokens = image.get("num_group_tokens", [64, 8, 0])
    groups = [number for number in tokens if number]
    width = image.get("hidden_size", 384)
    over_tokens, over_channels = (int(ratio * width) for ratio in image.get("assign_mlp_ratio", [0.5, 4]))

    expected = {
        "vision_config.hidden_act": (image.get("hidden_act", "gelu"), "gelu"),
        "vision_config.num_channels": (image.get("num_channels", 3), 3),
        "vision_config.assign_eps": (float(image.get("assign_eps", 1.0)), 1.0),
        "vision_config.layer_norm_eps": (float(image.get("layer_norm_eps", 1e-5)), 1e-5),
        "vision_config.num_output_groups": (list(image.get("num_output_groups", [64, 8]))[: len(groups)], groups),
        "vision_config.num_group_tokens": (list(tokens), [*groups, 0]),
        "text_config.hidden_act": (text.get("hidden_act", "quick_gelu"), "quick_gelu"),
        "text_config.layer_norm_eps": (float(text.get("layer_norm_eps", 1e-5)), 1e-5),
    }
    for key, (value, needed) in expected.items():
        if value != needed:
            raise ValueError(f"{key}: {value!r} is not supported, only {needed!r}")

    return GroupViTConfig(
        image_size=image.get("image_size", 224),
        patch_size=image.get("patch_size", 16),
        width=width,
        heads=image.get("num_attention_heads", 6),
        mlp_width=image.get("intermediate_size", 1536),
        depths=tuple(image.get("depths", (6, 3, 3))),
        groups=tuple(groups),
        drop_path=config.get("drop_path", 0.1),
        assign_widths=(over_tokens, over_channels),
        text_vocabulary=text.get("vocab_size", 49408),
        text_context=text.get("max_position_embeddings", 77),
        text_width=text.get("hidden_size", 256),
        text_heads=text.get("num_attention_heads", 4),
        text_mlp_width=text.get("intermediate_size", 1024),
        text_layers=text.get("num_hidden_layers", 12),
        projection_hidden=config.get("projection_intermediate_dim", 4096),
        projection=config.get("projection_dim", 256),
    )


def _ratio(part: int, whole: int) -> float:
    """The number whose product with ``whole``, cut to an integer as readers do, is ``part``."""
    ratio = part / whole
    return ratio if int(ratio * whole) == part else math.nextafter(ratio, math.inf)
