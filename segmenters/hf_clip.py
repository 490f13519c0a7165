"""A dense CLIP as transformers' CLIPModel: names and sizes. Only vision transformers have one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from curation.base.errors import CocuError
from segmenters.dense import DenseCLIP
from segmenters.text import END_OF_TEXT, START_OF_TEXT

OUTSIDE = {  # open_clip: Hugging Face
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # their spelling
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
BLOCKS = {
    "transformer.resblocks.": "text_model.encoder.layers.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
}
INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def clip_to_huggingface(model: DenseCLIP) -> dict[str, Tensor]:
    """The weights of transformers' CLIPModel. Raises CocuError for a model that has no such one."""
    check(model)
    converted: dict[str, Tensor] = {}
    for name, value in model.clip.state_dict().items():
        if name in OUTSIDE:
            converted[OUTSIDE[name]] = value
        elif name in TRANSPOSED:
            converted[TRANSPOSED[name]] = value.T
        else:
            converted |= _of_block(name, value)
    return converted


def _of_block(name: str, value: Tensor) -> dict[str, Tensor]:
    """What one tensor of a transformer block is called there; those of queries, keys and values are three."""
    prefix = next(prefix for prefix in BLOCKS if name.startswith(prefix))
    number, _, inner = name.removeprefix(prefix).partition(".")
    layer = f"{BLOCKS[prefix]}{number}."
    if inner.startswith("attn.in_proj_"):
        kind = inner.removeprefix("attn.in_proj_")  # weight or bias
        parts = zip("qkv", value.chunk(3), strict=True)
        return {f"{layer}self_attn.{letter}_proj.{kind}": part for letter, part in parts}
    stem, _, kind = inner.rpartition(".")
    return {f"{layer}{INSIDE[stem]}.{kind}": value}


def clip_config(model: DenseCLIP) -> dict[str, Any]:
    """The config.json of transformers' CLIPModel. Raises CocuError for a model that has no such one."""
    check(model)
    visual, clip = model.clip.visual, model.clip
    activation = "quick_gelu" if model.config.model.get("quick_gelu") else "gelu"
    ids = {"bos_token_id": START_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": END_OF_TEXT}
    text = _sizes(clip.transformer, activation) | ids
    text |= {"vocab_size": clip.vocab_size, "max_position_embeddings": clip.context_length}
    vision = _sizes(visual.transformer, activation)
    vision |= {"image_size": visual.image_size[0], "patch_size": visual.patch_size[0], "layer_norm_eps": 1e-5}
    width = int(model.config.model["embed_dim"])
    shared = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": width}
    return shared | {
        "text_config": text | {"projection_dim": width},
        "vision_config": vision | {"projection_dim": width},
    }


def _sizes(transformer: Any, activation: str) -> dict[str, Any]:
    block = transformer.resblocks[0]
    return {
        "hidden_size": transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": transformer.layers,
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": activation,
        "layer_norm_eps": 1e-5,
    }


def check(model: DenseCLIP) -> None:
    """Raises CocuError unless transformers' CLIPModel has this architecture."""
    plain = type(model.clip).__name__ == "CLIP" and type(model.clip.visual).__name__ == "VisionTransformer"
    if not plain or model.config.tokenizer or not (_has_same_weights(model) and _computes_alike(model)):
        raise CocuError("transformers has no CLIP with these towers; convert it --to cocu, for open_clip")


def _has_same_weights(model: DenseCLIP) -> bool:
    """Whether each weight has a name there, and none is missing: layer scale, biases of logits, ... have none."""
    names = set(model.clip.state_dict())
    inside = {name for name in names if name.startswith(tuple(BLOCKS))}
    stems = {".".join(name.split("resblocks.")[1].split(".")[1:-1]) for name in inside}
    attention = "attn"  # in_proj_weight, in_proj_bias
    return names - inside == {*OUTSIDE, *TRANSPOSED} and stems <= {*INSIDE, attention}


def _computes_alike(model: DenseCLIP) -> bool:
    """Whether both compute the same with these weights: pooling, positions, the causal mask, activations, norms."""
    clip, configs = model.clip, [model.config.model[part] for part in ("vision_cfg", "text_cfg")]
    changed = any(config.get(key) for config in configs for key in ("act_kwargs", "norm_kwargs"))
    pooled = clip.visual.pool_type == "tok" and clip.text_pool_type == "argmax"
    sized = len(clip.positional_embedding) == clip.context_length
    return pooled and sized and clip.attn_mask is not None and not changed
