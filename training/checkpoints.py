"""Checkpoints of a run: written whole or not at all, best.ckpt by its own score, last.ckpt up to the last step."""

from __future__ import annotations

import io
import os
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from curation.base import files
from curation.base.errors import OutputError, one_line
from curation.base.terminal import print_error
from segmenters.checkpoint import read_content
from segmenters.paths import CheckpointError


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its target, waits for the disk, and renames it; a disk that is full does not end the run.

    Attributes:
        failure: why the last checkpoint could not be written; None when it was.
    """

    failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write; what goes wrong is said and kept in ``failure``, so that all ranks reach the barrier that follows."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            with files.atomic_write(str(path)) as stream:
                stream.write(content.getbuffer())
            self.failure = None
        except (OSError, OutputError) as error:
            self.failure = one_line(error if isinstance(error, OutputError) else f"{path}: cannot be written ({error})")
            print_error(f"{self.failure}; what was there before is kept", "warning", "yellow")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read as data, never executed. Raises CheckpointError."""
        return read_content(path)


def was_written(trainer: Trainer) -> bool:
    """Whether the last checkpoint is on the disk; the same answer on every rank."""
    writer = trainer.strategy.checkpoint_io
    failed = isinstance(writer, CheckpointFiles) and writer.failure is not None
    return not trainer.strategy.reduce_boolean_decision(failed, all=False)


def remove_leftovers(folder: str) -> None:
    """Remove what writing left half done in a process that was killed."""
    for name in files.files_in(folder):
        if name.startswith(files.TEMPORARY):
            files.remove(os.path.join(folder, name))


class _Checkpoint(ModelCheckpoint):
    """What both kinds share."""

    @property
    def state_key(self) -> str:
        """Lightning's own name, under which runs of before have the state."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)


class BestCheckpoint(_Checkpoint):
    """Keeps the model of the best validation. What it has to beat is the score in the file, wherever the folder is now."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take everything, whatever folder it was written in: :meth:`on_train_start` looks what is there."""
        super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the scores of the checkpoints that the run knows of, in the folder as it is called now."""
        super().on_train_start(trainer, pl_module)
        names = [os.path.basename(path) for path in self.best_k_models]
        scores = {os.path.join(str(self.dirpath), name): self._own_score(name) for name in names}
        scores = trainer.strategy.broadcast(scores)
        self._remember({path: score for path, score in scores.items() if score is not None})

    def _own_score(self, name: str) -> Tensor | None:
        """The score in a checkpoint of the folder; None, with a word, where it cannot be read."""
        path = os.path.join(str(self.dirpath), name)
        if not os.path.exists(path):
            return None
        try:
            return cast(Tensor, read_content(path)["callbacks"][self.state_key]["current_score"])
        except (CheckpointError, KeyError) as error:
            print_error(f"{path} is not counted as the best so far: {one_line(error)}", "warning", "yellow")
            return None

    def _remember(self, scores: dict[str, Tensor]) -> None:
        """Set what Lightning compares with."""
        self.best_k_models = scores
        best, worst = (max, min) if self.mode == "max" else (min, max)
        self.best_model_path = best(scores, key=scores.__getitem__) if scores else ""
        self.best_model_score = scores.get(self.best_model_path)
        self.kth_best_model_path = worst(scores, key=scores.__getitem__) if len(scores) == self.save_top_k else ""
        self.kth_value = scores.get(
            self.kth_best_model_path, torch.tensor(float("-inf" if self.mode == "max" else "inf"))
        )

    def _update_best_and_save(self, current: Tensor, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Lightning's hook; a checkpoint that was not written is not one that later models have to beat."""
        before = dict(self.best_k_models)
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if not was_written(trainer):
            self._remember(before)


class LastCheckpoint(_Checkpoint):
    """Keeps the newest state, from which a run goes on: every so many steps, and when it ends or is ended."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the end of training. Raises OutputError where that fails: nothing comes after it."""
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it outside the class
            self.save(trainer)
            if self.saved_step != trainer.global_step:
                raise OutputError(f"{self.path}: the end of training, step {trainer.global_step}, is not written")

    @property
    def path(self) -> str:
        """The file."""
        return os.path.join(str(self.dirpath), f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")

    @property
    def saved_step(self) -> int:
        """The step of the file."""
        return self._last_global_step_saved

    def save(self, trainer: Trainer) -> None:
        """Write the state of this step, unless that is done, or nothing is to be written."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        """Lightning's hook; what was not written is tried again at the next occasion."""
        before = self._last_global_step_saved
        super()._save_checkpoint(trainer, filepath)
        if not was_written(trainer):
            self._last_global_step_saved = before
