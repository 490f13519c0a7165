"""Values of options that several commands of evaluation have. Light to import: no torch."""

from __future__ import annotations

import argparse
import os

from curation.base.errors import CocuError

AUTO = "auto"  # in place of a number: a threshold that is chosen by the images


def threshold(text: str) -> float | str:
    """A number from 0 to 1, or auto."""
    if text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number from 0 to 1 nor {AUTO}")
    return value


def require_checkpoint(name: str | None) -> None:
    """Raises CocuError for a checkpoint that is not there, which need not wait until torch is imported to open it."""
    is_path = bool(name) and ":" not in str(name)  # open_clip:MODEL/TAG and local-dir:FOLDER are names
    if is_path and not os.path.exists(str(name)):
        raise CocuError(f"{name}: no such checkpoint; give a folder with config.json and model.safetensors, or a .ckpt")
