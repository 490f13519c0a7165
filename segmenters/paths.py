"""Paths of checkpoints. Light to import: no torch."""

from __future__ import annotations

import os
from pathlib import Path

from curation.base.errors import CocuError


class CheckpointError(CocuError):
    """A checkpoint that cannot be used. The message is one line: the file, what is wrong, the remedy."""


def require_checkpoint(name: str | Path | None) -> None:
    """Raises CheckpointError for a checkpoint that is not there, which need not wait until torch is imported to open it."""
    is_path = bool(name) and ":" not in str(name)  # open_clip:MODEL/TAG and local-dir:FOLDER are names
    if is_path and not os.path.exists(str(name)):
        raise absent(name)


def absent(name: str | Path | None) -> CheckpointError:
    """The error of a checkpoint that is not there."""
    return CheckpointError(
        f"{name}: no such checkpoint; give a folder with config.json and model.safetensors, or a .ckpt"
    )
