"""Short runs of the training command on the tiny world, and what they logged."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import yaml

from training.cli import main

MODEL = {
    "image_size": 32, "patch_size": 8, "width": 16, "heads": 2, "mlp_width": 32, "depths": [1, 1, 1], "groups": [4, 2],
    "assign_widths": [8, 32], "text_width": 16, "text_heads": 2, "text_mlp_width": 32, "text_layers": 1,
    "projection_hidden": 24, "projection": 8,
}  # fmt: skip
CALLBACKS = "tests.training_stop"


def write_config(archives: Path, path: Path) -> Path:
    """A configuration of a tiny model on the tiny world: 9 steps of 8 samples an epoch."""
    values = {
        "trainer": {"accelerator": "cpu", "devices": 1, "max_epochs": 3, "gradient_clip_val": 5.0, "log_every_n_steps": 1,
                    "num_sanity_val_steps": 0},
        "model": {"sizes": MODEL, "optimizer": {"reference_batch": 8, "warmup_epochs": 1}},
        "data": {"archives": str(archives), "batch_size": 8, "workers": 0, "shuffle": 10},
        "pictures": 1,  # drawing the default four takes as long as an epoch
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


def fit(config: Path, output: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--output", str(output), *more])


def with_callback(name: str, /, **arguments: object) -> tuple[str, str]:
    """Options that add a callback of training_stop.py."""
    given = ", ".join(f"{key}: {value}" for key, value in arguments.items())
    return "--trainer.callbacks", f"[{{class_path: {CALLBACKS}.{name}, init_args: {{{given}}}}}]"


def losses(output: Path, version: int = 0) -> dict[int, tuple[str, ...]]:
    """Step -> what was logged at it."""
    with open(output / "logs" / f"version_{version}" / "metrics.csv") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("train/loss")]
    names = ("train/loss", "train/caption_loss", "train/prompt_loss", "train/retrieval_accuracy", "train/rate")
    return {int(row["step"]): tuple(row[name] for name in names) for row in rows}


def checkpoint(output: Path, name: str = "last") -> Path:
    return output / "checkpoints" / f"{name}.ckpt"


def digests(output: Path) -> dict[str, str]:
    """The md5 of every checkpoint, by name."""
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (output / "checkpoints").iterdir()}
