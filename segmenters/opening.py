"""Any checkpoint that gives an image's positions embeddings: GroupViT, or a dense CLIP, trained or not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from curation.base.errors import one_line
from segmenters.checkpoint import from_lightning, last_of_run, load, read_lightning, sha256_of
from segmenters.dense import DenseCLIP, DenseConfig
from segmenters.groupvit import GroupViT
from segmenters.paths import CheckpointError
from segmenters.pretrained import FOLDER, filled, is_folder, is_name, open_pretrained

DENSE = "dense"  # the key under which a checkpoint of training holds a DenseConfig
CLIP, GROUPING = "clip.", "grouping."  # of the weights of open_clip's model, and of the head, in a dense model

Segmenter = GroupViT | DenseCLIP


class Opened(NamedTuple):
    """A model in evaluation mode on the CPU, and what it was read from."""

    model: Segmenter
    path: str
    kind: str  # "cocu folder", "lightning", "huggingface", "open_clip"
    sha256: str  # of the weights


def open_segmenter(checkpoint: str | Path) -> Opened:
    """The model that a checkpoint, the folder of a training run, or the name of a pretrained model means.

    Raises CheckpointError, or CocuError for a pretrained model that cannot be opened.
    """
    text = str(checkpoint)
    if not is_name(text) and is_folder(Path(text)):
        text = FOLDER + text
    if is_name(text):
        pretrained = open_pretrained(text)
        return Opened(pretrained.model, pretrained.path, "open_clip", pretrained.sha256)
    if Path(text).is_dir():
        text = str(last_of_run(Path(text)) or text)
    if not Path(text).is_file():
        return Opened(*load(text))

    content = read_lightning(text)
    if not (isinstance(content.sizes, Mapping) and DENSE in content.sizes):
        return Opened(*from_lightning(content, Path(text)))
    clip, grouping = (part_of(content.weights, prefix) for prefix in (CLIP, GROUPING))
    model = filled(dense_config(content.sizes[DENSE], text), clip, text, grouping)
    return Opened(model, text, "lightning", sha256_of(text))


def part_of(weights: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The weights of one part of a model, by their names in it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def dense_config(values: Any, where: str) -> DenseConfig:
    """The configuration that a checkpoint of training holds. Raises CheckpointError naming ``where``."""
    try:
        return DenseConfig(**values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: dense: {one_line(error)}: not a checkpoint of this version's training"
        ) from None
