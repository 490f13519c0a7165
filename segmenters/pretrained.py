"""Where a dense CLIP comes from: an open_clip model by name, a folder in open_clip's format, our checkpoints of training.

    open_clip:ViT-B-16/openai               a model and its weights, which open_clip downloads
    local-dir:pipelines/demo/clip           a folder with open_clip_config.json and open_clip_model.safetensors
    open_clip:ViT-B-16/openai@sclip         another reading, see segmenters/readings.py
    local-dir:pipelines/demo/clip@stride=8  places closer together than the model's own

A folder that we write is one that open_clip reads (``local-dir:``). Beside its files are ``dense.json``, with reading,
stride and groups, and the weights of the grouping head, where there is one: open_clip reads neither.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from curation.base import files
from curation.base.configuration import did_you_mean
from curation.base.downloads import require_weights
from curation.base.errors import CocuError, loading_error, one_line
from segmenters.checkpoint import save_weights, sha256_of
from segmenters.dense import DenseCLIP, DenseConfig, with_given
from segmenters.groupvit import MEAN, STD

NAMED, FOLDER = "open_clip:", "local-dir:"  # what the name of a checkpoint begins with
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OWN, GROUPING = "dense.json", "grouping.safetensors"  # what open_clip does not read
OWN_FIELDS = ("reading", "stride", "size", "groups")  # of DenseConfig, in OWN


class PretrainedError(CocuError):
    """A model that cannot be opened. The message is one line: the name or file, what is wrong, the remedy."""


class Pretrained(NamedTuple):
    """A model in evaluation mode on the CPU, and where it is from."""

    model: DenseCLIP
    path: str
    sha256: str  # of the weights


class Source(NamedTuple):
    """What a name stands for: a configuration, and the weights that fit it."""

    config: DenseConfig
    weights: Mapping[str, Any]  # by open_clip's names
    path: str  # of the weights
    grouping: Mapping[str, Any]  # of the grouping head; empty without one


class Name(NamedTuple):
    """The name of a checkpoint, taken apart."""

    source: str  # without what follows @
    reading: str | None
    stride: int | None


def is_name(checkpoint: str) -> bool:
    """Whether ``checkpoint`` names a model rather than a file of ours."""
    return checkpoint.startswith((NAMED, FOLDER))


def parse(checkpoint: str) -> Name:
    """Take a name apart. Raises PretrainedError for options that are none.

    A path may have an @ as well, in the name of a folder above the last, or of one that is there.

    >>> parse("local-dir:clip@naclip,stride=8")
    Name(source='local-dir:clip', reading='naclip', stride=8)
    >>> parse("local-dir:me@home/clip")
    Name(source='local-dir:me@home/clip', reading=None, stride=None)
    """
    source, _, options = checkpoint.rpartition("@")
    if not source or "/" in options or os.path.isdir(checkpoint.removeprefix(FOLDER)):
        return Name(checkpoint, None, None)

    reading, stride = None, None
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            reading = key
        elif key == "stride" and value.isdecimal() and int(value) > 0:
            stride = int(value)
        else:
            raise PretrainedError(
                f"{checkpoint}: {option} is no option; write @READING, @stride=PIXELS or both, with a comma"
            )
    return Name(source, reading, stride)


def open_pretrained(checkpoint: str) -> Pretrained:
    """The model that a name means. Raises PretrainedError, or CocuError for a reading or stride that it has not."""
    source, reading, stride = parse(checkpoint)
    if source.startswith(FOLDER):
        read = _read_folder(Path(files.local_path(files.resolve(source.removeprefix(FOLDER), "."))))
    else:
        read = _read_named(source.removeprefix(NAMED))

    model = filled(with_given(read.config, reading=reading, stride=stride), read.weights, read.path, read.grouping)
    of_file = os.path.isfile(read.path) and not read.grouping
    return Pretrained(model, checkpoint, sha256_of(read.path) if of_file else weights_digest(model))


def is_folder(folder: Path) -> bool:
    """Whether a folder is in open_clip's format."""
    return (folder / CONFIG).is_file()


def filled(
    config: DenseConfig, weights: Mapping[str, Any], path: str, grouping: Mapping[str, Any] | None = None
) -> DenseCLIP:
    """The model of ``config`` with these weights, by open_clip's names, and those of its grouping head.

    Without ``grouping`` a head has random centres, for training. Raises PretrainedError where weights do not fit.
    """
    model = DenseCLIP(config)
    try:
        model.clip.load_state_dict(weights)
        if model.grouping is not None and grouping is not None:
            model.grouping.load_state_dict(grouping)
    except RuntimeError as error:
        raise PretrainedError(f"{path}: weights of another model ({one_line(error)})") from None
    return model.eval()


def weights_digest(model: DenseCLIP) -> str:
    """sha256 of a model's weights."""
    digest = hashlib.sha256()
    weights = model.clip.state_dict() if model.grouping is None else model.state_dict()
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- reading --------------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> Source:
    """What a folder in open_clip's format holds."""
    path = folder / WEIGHTS
    for needed in (folder / CONFIG, path):
        if not needed.is_file():
            raise PretrainedError(f"{needed}: missing; a folder for {FOLDER} has {CONFIG} and {WEIGHTS}")
    try:
        config = files.read_json(str(folder / CONFIG), remedy="copy the folder again")
        own = files.read_json(str(folder / OWN), remedy="copy the folder again") if (folder / OWN).is_file() else {}
        weights = load_file(path)
        grouping = load_file(folder / GROUPING) if own.get("groups") else {}
    except (CocuError, OSError, SafetensorError) as error:
        raise PretrainedError(f"{folder}: cannot be read ({one_line(error)})") from None

    return Source(config_of(config, own, f"{FOLDER}{folder}", str(folder / CONFIG)), weights, str(path), grouping)


def config_of(config: Mapping[str, Any], own: Mapping[str, Any], name: str, where: str) -> DenseConfig:
    """The configuration in open_clip's own file and in ours. Raises PretrainedError naming ``where``."""
    preprocessing = config.get("preprocess_cfg") or {}
    unknown = sorted(set(own) - set(OWN_FIELDS))
    if unknown:
        raise PretrainedError(f"{where}: {OWN} beside it has {unknown[0]}; known are {', '.join(OWN_FIELDS)}")
    try:
        model = config["model_cfg"]
        return DenseConfig(
            model,
            preprocessing.get("mean", MEAN),
            preprocessing.get("std", STD),
            tokenizer=name if model["text_cfg"].get("hf_tokenizer_name") else None,
            **own,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise PretrainedError(f"{where}: {one_line(error)} is missing or wrong: not open_clip's format") from None


def _read_named(name: str) -> Source:
    """Configuration and weights of MODEL/TAG, or MODEL/FILE, which open_clip downloads and keeps."""
    import open_clip  # takes seconds

    architecture, slash, tag = name.partition("/")
    if not slash:
        raise PretrainedError(f"{NAMED}{name}: write {NAMED}MODEL/TAG, such as {NAMED}ViT-B-16/openai")
    if architecture not in open_clip.list_models():
        nearest = did_you_mean(architecture, open_clip.list_models())
        raise PretrainedError(f"{NAMED}{name}: open_clip knows no {architecture}{nearest}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    if not pretrained and not os.path.isfile(tag):
        raise PretrainedError(
            f"{NAMED}{name}: {tag} is neither weights of {architecture} nor a file; there are {', '.join(tags)}"
        )

    require_weights(f"{NAMED}{name}", architecture, tag, f"name weights that are here: {FOLDER}FOLDER")
    logging.getLogger().setLevel(max(logging.getLogger().level, logging.WARNING))  # open_clip logs to the root
    try:
        model = open_clip.create_model(
            architecture, pretrained=tag, force_quick_gelu=bool(pretrained.get("quick_gelu")), precision="fp32"
        )
    except Exception as error:  # no network, a damaged file: the loaders raise nearly anything
        raise PretrainedError(f"{NAMED}{name}: cannot be loaded ({loading_error(error)})") from None

    values = dict(open_clip.get_model_config(architecture))
    if pretrained.get("quick_gelu"):
        values["quick_gelu"] = True
    foreign = values["text_cfg"].get("hf_tokenizer_name") or "siglip" in architecture.lower()
    preprocessing = open_clip.get_model_preprocess_cfg(model)
    config = DenseConfig(
        values, preprocessing["mean"], preprocessing["std"], tokenizer=architecture if foreign else None
    )
    return Source(config, model.state_dict(), tag, {})


# --- writing --------------------------------------------------------------------------------------------------------------


def save_folder(model: DenseCLIP, folder: str | Path) -> None:
    """Write a folder that :func:`open_pretrained` and open_clip's ``local-dir:`` read. Raises OutputError."""
    save_weights(model.clip.state_dict(), Path(folder) / WEIGHTS)
    if model.grouping is not None:
        save_weights(model.grouping.state_dict(), Path(folder) / GROUPING)

    config = model.config
    size = {"size": config.size} if config.size else {}
    preprocessing = {"mean": list(config.mean), "std": list(config.std), **size}
    files.write_json(str(Path(folder) / CONFIG), {"model_cfg": dict(config.model), "preprocess_cfg": preprocessing})
    own = {name: getattr(config, name) for name in OWN_FIELDS}
    files.write_json(str(Path(folder) / OWN), {name: value for name, value in own.items() if value is not None})
