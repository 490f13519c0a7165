"""Checkpoints of GroupViT: our folder, a Lightning file, a Hugging Face folder. Read as data, never executed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.base.errors import CocuError
from segmenters.groupvit import END_OF_TEXT, START_OF_TEXT, GroupViT, GroupViTConfig

FORMAT = "cocu-groupvit"  # `format` in config.json of our folders
PREFIX = "model."  # of the model's weights in a Lightning checkpoint

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


class CheckpointError(CocuError):
    """A checkpoint that cannot be used. The message is one line: the file, what is wrong, the remedy."""


class Loaded(NamedTuple):
    """A model in evaluation mode on the CPU, and what it was read from."""

    model: GroupViT
    path: str
    kind: str  # "cocu folder", "lightning", "huggingface"
    sha256: str  # of the weights file


def load(path: str | Path) -> Loaded:
    """Read a checkpoint: a folder of :func:`save`, a Lightning ``.ckpt``, or a Hugging Face GroupViT folder.

    Raises CheckpointError for anything else.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such checkpoint; give a folder with config.json and model.safetensors, or a .ckpt"
        )
    return _load_lightning(path)


def latest(folder: str | Path = "artifacts") -> Path:
    """The newest ``.ckpt`` anywhere below ``folder``. Raises CheckpointError when there is none."""
    found = sorted(Path(folder).rglob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no .ckpt below {folder}/; name a checkpoint (--checkpoint, or CKPT= with make)")
    return found[-1]


def save(model: GroupViT, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors``; :func:`load` reads them back."""
    _write_folder(Path(folder), model.state_dict(), {"format": FORMAT, "model": dataclasses.asdict(model.config)})


def save_huggingface(model: GroupViT, folder: str | Path) -> None:
    """Write the same two files as transformers' ``GroupViTModel.from_pretrained`` reads them; :func:`load` does too."""
    _write_folder(Path(folder), to_huggingface(model), config_to_huggingface(model.config))


def _write_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})  # transformers asks for the format
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _load_folder(folder: Path) -> Loaded:
    config_path, weights_path = folder / "config.json", folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; a checkpoint folder has config.json and model.safetensors")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        weights = load_file(weights_path)
    except (ValueError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({' '.join(str(error).split())})") from None
    if isinstance(config, dict) and config.get("format") == FORMAT:
        model, kind = _empty(config.get("model"), config_path), "cocu folder"
    elif isinstance(config, dict) and config.get("model_type") == "groupvit":
        model, kind = GroupViT(config_from_huggingface(config, config_path)), "huggingface"
        weights = from_huggingface(weights, model, weights_path)
    else:
        found = config.get("model_type", "no model_type") if isinstance(config, dict) else "no keys"
        raise CheckpointError(
            f"{config_path}: not a GroupViT (found {found}); format {FORMAT} or model_type groupvit is needed"
        )
    return _filled(model, weights, weights_path, kind)


def _load_lightning(path: Path) -> Loaded:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded as weights only ({reason})") from None
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path}: not a Lightning checkpoint: no state_dict")
    parameters = content.get("hyper_parameters")
    if not isinstance(parameters, Mapping) or "model" not in parameters:
        raise CheckpointError(f"{path}: hyper_parameters has no `model`: not a checkpoint of our training")
    weights = {
        name.removeprefix(PREFIX): value for name, value in content["state_dict"].items() if name.startswith(PREFIX)
    }
    return _filled(_empty(parameters["model"], path), weights, path, "lightning")


def _empty(values: Any, path: Path) -> GroupViT:
    known = [field.name for field in dataclasses.fields(GroupViTConfig)]
    if not isinstance(values, Mapping) or set(values) - set(known):
        unknown = sorted(set(values) - set(known)) if isinstance(values, Mapping) else values
        raise CheckpointError(f"{path}: model: unknown sizes {unknown}; known are {', '.join(known)}")
    try:
        return GroupViT(GroupViTConfig(**values))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: model: {error}") from None


def _filled(model: GroupViT, weights: Mapping[str, Tensor], path: Path, kind: str) -> Loaded:
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in weights]
    extra = [name for name in weights if name not in wanted]
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the model lacks"
        raise CheckpointError(
            f"{path}: {what} ({len(missing)} missing, {len(extra)} unknown): weights of another model"
        )
    for name, value in wanted.items():
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, expected {tuple(value.shape)}"
            raise CheckpointError(f"{path}: {name} has shape {shapes}: config and weights do not belong together")
    model.load_state_dict({name: weights[name].to(value.dtype) for name, value in wanted.items()})
    with open(path, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Loaded(model.eval(), str(path.parent if path.suffix == ".safetensors" else path), kind, digest)


def huggingface_names(name: str) -> list[str]:
    """Hugging Face's names of one of our weights: three for a joint q, k, v matrix, otherwise one."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return [name.replace(".qkv.", f".{part}_proj.") for part in "qkv"] if ".qkv." in name else [name]


def to_huggingface(model: GroupViT) -> dict[str, Tensor]:
    """The model's weights under Hugging Face's names and in its shapes."""
    size, weights = model.config.patch_size, {}
    for name, value in model.state_dict().items():
        if name == "image.patch.weight":
            value = value.unflatten(1, (3, size, size))
        names = huggingface_names(name)
        weights |= dict(zip(names, value.chunk(len(names)) if len(names) > 1 else [value], strict=True))
    return weights


def from_huggingface(weights: Mapping[str, Tensor], model: GroupViT, path: Path) -> dict[str, Tensor]:
    """Weights for ``model`` from Hugging Face's. Raises CheckpointError for missing and for unknown ones."""
    left, ours = dict(weights), {}
    for name in model.state_dict():
        parts = []
        for theirs in huggingface_names(name):
            if theirs not in left:
                raise CheckpointError(f"{path}: lacks {theirs}: weights of another model")
            parts.append(left.pop(theirs))
        ours[name] = torch.cat(parts) if len(parts) > 1 else parts[0]
        if name == "image.patch.weight":
            ours[name] = ours[name].flatten(1)  # (W, 3, p, p) -> (W, 3·p·p)
    unknown = [name for name in left if not name.endswith("position_ids")]  # older files hold this constant
    if unknown:
        raise CheckpointError(f"{path}: has {unknown[0]}, which GroupViT lacks: weights of another model")
    return ours


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


def _ratio(part: int, whole: int) -> float:
    """The number whose product with ``whole``, cut to an integer as readers do, is ``part``."""
    ratio = part / whole
    return ratio if int(ratio * whole) == part else math.nextafter(ratio, math.inf)


def config_from_huggingface(config: Mapping[str, Any], path: Path) -> GroupViTConfig:
    """Our sizes from Hugging Face's config.json, whose defaults are the paper's too.

    Raises CheckpointError for variants that this model does not have.
    """
    image, text = config.get("vision_config") or {}, config.get("text_config") or {}
    tokens = image.get("num_group_tokens", [64, 8, 0])
    groups = [number for number in tokens if number]
    width = image.get("hidden_size", 384)
    ratios = image.get("assign_mlp_ratio", [0.5, 4])
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
    for key, (found, needed) in expected.items():
        if found != needed:
            raise CheckpointError(f"{path}: {key}: {found!r} is not supported, only {needed!r}")
    try:
        return GroupViTConfig(
            image_size=image.get("image_size", 224),
            patch_size=image.get("patch_size", 16),
            width=width,
            heads=image.get("num_attention_heads", 6),
            mlp_width=image.get("intermediate_size", 1536),
            depths=tuple(image.get("depths", (6, 3, 3))),
            groups=tuple(groups),
            drop_path=config.get("drop_path", 0.1),
            assign_widths=tuple(int(ratio * width) for ratio in ratios),
            text_vocabulary=text.get("vocab_size", 49408),
            text_context=text.get("max_position_embeddings", 77),
            text_width=text.get("hidden_size", 256),
            text_heads=text.get("num_attention_heads", 4),
            text_mlp_width=text.get("intermediate_size", 1024),
            text_layers=text.get("num_hidden_layers", 12),
            projection_hidden=config.get("projection_intermediate_dim", 4096),
            projection=config.get("projection_dim", 256),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
