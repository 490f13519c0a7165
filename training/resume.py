"""What makes a resumed run repeat the uninterrupted one: where it is, and random numbers that follow from that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Trainer

from segmenters.checkpoint import read_content
from segmenters.opening import DENSE
from segmenters.paths import CheckpointError
from training.settings import Change, changes, recorded, refuse_fixed

BEST, LAST = "best", "last"


def batches_begun(trainer: Trainer) -> int:
    """Batches that each rank has begun to train on since the start of the run; Lightning's checkpoints hold the number."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed what is random in the model, grouping and drop path, for a step of a rank."""
    state = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> 1))


# --- the checkpoint that a run goes on from -------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """A checkpoint of training, without its weights."""

    path: str
    step: int
    sizes: Mapping[str, Any]  # fields of GroupViTConfig, not checked yet; under DENSE those of DenseConfig
    settings: dict[str, Any] | None  # of the run, by dotted key; None where it was not recorded

    @property
    def is_dense(self) -> bool:
        """Whether it is one of a CLIP's places, rather than of a GroupViT."""
        return DENSE in self.sizes


def checkpoints_in(output: str) -> str:
    """The folder of a run's checkpoints."""
    return os.path.join(output, "checkpoints")


def named(output: str, name: str) -> str:
    """The path of ``best`` or ``last`` in an output folder. Raises CheckpointError when it is not there."""
    path = os.path.join(checkpoints_in(output), f"{name}.ckpt")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: no such checkpoint; train first, or name another --output")
    return path


def earlier(output: str) -> str | None:
    """The checkpoint that an earlier run left to go on from: its last, else its best; None when there is no run."""
    paths = (os.path.join(checkpoints_in(output), f"{name}.ckpt") for name in (LAST, BEST))
    return next((path for path in paths if os.path.isfile(path)), None)


def read(path: str) -> Checkpoint:
    """Read a checkpoint. Raises CheckpointError for one that is torn, naming best.ckpt where that lies beside it."""
    try:
        content = read_content(path)
    except CheckpointError as error:
        best = os.path.join(os.path.dirname(path), f"{BEST}.ckpt")
        if os.path.basename(path) == f"{LAST}.ckpt" and os.path.isfile(best):
            raise CheckpointError(f"{error}; go on from {best} with --ckpt_path best") from None
        raise
    parameters = content.get("hyper_parameters")
    if not isinstance(parameters, Mapping) or not isinstance(parameters.get("model"), Mapping):
        raise CheckpointError(f"{path}: hyper_parameters has no sizes of a `model`: not a checkpoint of our training")
    return Checkpoint(path, content.get("global_step", 0), parameters["model"], recorded(content))


def changed_settings(checkpoint: Checkpoint, settings: dict[str, Any]) -> list[Change]:
    """What is other than in the run that wrote the checkpoint. Raises CocuError for what cannot be."""
    sizes = {f"model.sizes.{key}": as_yaml(value) for key, value in checkpoint.sizes.items()}
    changed = changes({**sizes, **(checkpoint.settings or {})}, settings)
    refuse_fixed(changed, checkpoint.path)
    return changed


def as_yaml(value: Any) -> Any:
    """A value as a configuration has it: lists for tuples."""
    return list(value) if isinstance(value, tuple) else value


def set_aside(output: str) -> str | None:
    """Rename the checkpoints of an earlier run, so that another can begin; returns where they are now, None without any."""
    folder = checkpoints_in(output)
    if not os.path.isdir(folder) or not os.listdir(folder):
        return None
    number = next(number for number in range(1, 1 << 30) if not os.path.exists(f"{folder}-{number}"))
    os.rename(folder, f"{folder}-{number}")
    return f"{folder}-{number}"
