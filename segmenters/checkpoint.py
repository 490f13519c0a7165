"""Checkpoints of GroupViT: our folder, a Lightning file, a Hugging Face folder. Read as data, never executed."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from curation.base import files
from curation.base.errors import CocuError, OutputError, loading_error, one_line, quoted
from segmenters.groupvit import GroupViT, GroupViTConfig
from segmenters.huggingface import config_from_huggingface, config_to_huggingface, from_huggingface, to_huggingface
from segmenters.paths import CheckpointError, absent

FORMAT = "cocu-groupvit"  # `format` in config.json of our folders
PREFIX = "model."  # of the model's weights in a Lightning checkpoint


class Loaded(NamedTuple):
    """A model in evaluation mode on the CPU, and what it was read from."""

    model: GroupViT
    path: str
    kind: str  # "cocu folder", "lightning", "huggingface"
    sha256: str  # of the weights file


class LightningContent(NamedTuple):
    """What a checkpoint of training holds of the model."""

    sizes: Any  # fields of GroupViTConfig, not checked yet
    weights: dict[str, Tensor]  # by the model's own names


# --- reading --------------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Loaded:
    """Read a checkpoint: a folder of :func:`save`, a Lightning ``.ckpt``, the folder of a training run, or a Hugging Face
    GroupViT folder.

    Raises CheckpointError for anything else.
    """
    path = Path(path)
    path = (last_of_run(path) if path.is_dir() else None) or path
    if path.is_dir():
        return _load_folder(path)
    if not path.is_file():
        raise absent(path)
    return from_lightning(read_lightning(path), path)


def from_lightning(content: LightningContent, path: Path) -> Loaded:
    """The model of a training checkpoint that has been read from ``path``. Raises CheckpointError for another model's."""
    return _filled(_empty(content.sizes, path), content.weights, path, "lightning")


def latest(folder: str | Path = "artifacts") -> Path:
    """The newest ``.ckpt`` anywhere below ``folder``. Raises CheckpointError when there is none."""
    written = (path for path in Path(folder).rglob("*.ckpt") if not path.name.startswith(files.TEMPORARY))
    checkpoints = sorted(written, key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        raise CheckpointError(f"no .ckpt below {folder}/; name a checkpoint (--checkpoint, or CKPT= with make)")
    return checkpoints[-1]


def last_of_run(folder: Path) -> Path | None:
    """The last checkpoint of a training run, by its output folder or that of its checkpoints: ``last.ckpt``, else the
    newest. None for another folder. Raises CheckpointError for a run without checkpoints."""
    within = folder / "checkpoints"
    if (folder / "config.json").exists() or not (within.is_dir() or any(folder.glob("*.ckpt"))):
        return None
    within = within if within.is_dir() else folder
    last = within / "last.ckpt"
    return last if last.is_file() else latest(within)


def read_content(path: str | Path) -> dict[str, Any]:
    """All that a ``.ckpt`` of Lightning holds, read as data. Raises CheckpointError for anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as error:
        reason = loading_error(error)
        raise CheckpointError(f"{path}: not a checkpoint that can be loaded as weights only ({reason})") from None

    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: not a Lightning checkpoint: no state_dict")
    others = [name for name, value in weights.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others:
        raise CheckpointError(f"{path}: state_dict: {quoted(others[0])} is no tensor of a model")
    return content


def read_lightning(path: str | Path) -> LightningContent:
    """The model's sizes and weights in a ``.ckpt`` of our training. Raises CheckpointError for anything else."""
    content = read_content(path)
    parameters = content.get("hyper_parameters")
    if not isinstance(parameters, Mapping) or "model" not in parameters:
        raise CheckpointError(f"{path}: hyper_parameters has no `model`: not a checkpoint of our training")

    weights = {
        name.removeprefix(PREFIX): value for name, value in content["state_dict"].items() if name.startswith(PREFIX)
    }
    return LightningContent(parameters["model"], weights)


def _load_folder(folder: Path) -> Loaded:
    config_path = folder / "config.json"
    weights_path = folder / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; a checkpoint folder has config.json and model.safetensors")
    try:
        config = files.read_json(str(config_path), remedy="copy the checkpoint again")
        weights = load_file(weights_path)
    except (CocuError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot be read ({one_line(error)})") from None

    if config.get("format") == FORMAT:
        return _filled(_empty(config.get("model"), config_path), weights, weights_path, "cocu folder")
    if config.get("model_type") == "groupvit":
        try:
            model = GroupViT(config_from_huggingface(config))
        # AttributeError: keys of another kind; RuntimeError: sizes of no tensor
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{config_path}: {error}") from None
        try:
            weights = from_huggingface(weights, model)
        except ValueError as error:
            raise CheckpointError(f"{weights_path}: {error}") from None
        return _filled(model, weights, weights_path, "huggingface")

    kind = config.get("model_type", "no model_type")
    raise CheckpointError(
        f"{config_path}: not a GroupViT (found {kind}); format {FORMAT} or model_type groupvit is needed"
    )


def _empty(values: Any, path: Path) -> GroupViT:
    """A model of the sizes ``values``, with random weights."""
    names = [field.name for field in dataclasses.fields(GroupViTConfig)]
    if not isinstance(values, Mapping) or set(values) - set(names):
        unknown = sorted(set(values) - set(names)) if isinstance(values, Mapping) else values
        raise CheckpointError(f"{path}: model: unknown sizes {unknown}; known are {', '.join(names)}")
    try:
        return GroupViT(GroupViTConfig(**values))
    except (RuntimeError, TypeError, ValueError) as error:  # RuntimeError: sizes of no tensor
        raise CheckpointError(f"{path}: model: {error}") from None


def _filled(model: GroupViT, weights: Mapping[str, Tensor], path: Path, kind: str) -> Loaded:
    """The model with these weights, which the file ``path`` holds."""
    expected = model.state_dict()
    problem = difference(weights, expected)
    if problem:
        raise CheckpointError(f"{path}: {problem}")

    model.load_state_dict({name: weights[name].to(value.dtype) for name, value in expected.items()})
    return Loaded(model.eval(), str(path.parent if path.suffix == ".safetensors" else path), kind, sha256_of(path))


def difference(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """In what weights differ from those of a model, by name or shape; None where they do not.

    >>> difference({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
    'a has shape (2,), expected (3,): config and weights do not belong together'
    """
    missing = [name for name in expected if name not in weights]
    unknown = [name for name in weights if name not in expected]
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model lacks"
        return f"{what} ({len(missing)} missing, {len(unknown)} unknown): weights of another model"
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            shapes = f"{tuple(weights[name].shape)}, expected {tuple(value.shape)}"
            return f"{name} has shape {shapes}: config and weights do not belong together"
    return None


def sha256_of(path: str | Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# --- writing --------------------------------------------------------------------------------------------------------------


def save(model: GroupViT, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors``; :func:`load` reads them back. Raises OutputError."""
    write_folder(Path(folder), model.state_dict(), {"format": FORMAT, "model": dataclasses.asdict(model.config)})


def save_huggingface(model: GroupViT, folder: str | Path) -> None:
    """Write the same two files as transformers' ``GroupViTModel.from_pretrained`` reads them; :func:`load` does too.

    Raises OutputError.
    """
    write_folder(Path(folder), to_huggingface(model), config_to_huggingface(model.config))


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``config.json``. Raises OutputError."""
    save_weights(weights, folder / "model.safetensors")
    files.write_json(str(folder / "config.json"), config)


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of safetensors, whole or not at all. Raises OutputError."""
    contiguous = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    try:
        with files.atomic_path(str(path)) as temporary:
            save_file(contiguous, temporary, metadata={"format": "pt"})  # transformers asks for the format
    except SafetensorError as error:  # a full disk, for one
        reason = one_line(error)
        raise OutputError(f"{path}: cannot be written ({reason}); make room there, or choose another output") from None
