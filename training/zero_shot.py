"""What every trained segmenter has: zero-shot segmentation as validation, AdamW with its schedule, finite steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from evaluation.benchmark import AbsentError, Benchmark, read_benchmark
from evaluation.evaluate import Share, evaluate
from evaluation.layout import list_images
from evaluation.metric import SegmentationScores
from segmenters.checkpoint import difference
from segmenters.opening import Segmenter
from segmenters.paths import CheckpointError
from training.batches import Batch
from training.finite import FiniteSteps, check_finite
from training.optimizer import adamw, apply_settings, learning_rate, parameter_groups, scaled
from training.resume import batches_begun, seed_step
from training.settings import OTHERWISE

SCORE = "val/score"  # what the best checkpoint is chosen by: mIoU, or retrieval accuracy without a benchmark


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the paper's.

    Attributes:
        rate: peak learning rate for a global batch of ``reference_batch``; it is scaled in proportion to the real one.
        final_rate: learning rate at the end of the cosine, scaled likewise.
        reference_batch: global batch that the rates are meant for.
        warmup_epochs: epochs of linear warm-up, of ``trainer.max_epochs``; the same share of a run that max_steps ends.
        weight_decay: of weight matrices and embeddings; norms, biases and scales do not decay.
        betas: of AdamW.
    """

    rate: float = 1.6e-3
    final_rate: float = 4e-5
    reference_batch: int = 4096
    warmup_epochs: float = 2.0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        """Check every value."""
        if self.rate <= 0 or not 0 <= self.final_rate <= self.rate:
            raise ValueError(
                f"optimizer: rate {self.rate} must be above 0, and final_rate {self.final_rate} between 0 and rate"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optimizer.betas: {list(self.betas)} must be two numbers from 0 up to, but not, 1")
        if self.reference_batch < 1 or self.warmup_epochs < 0 or self.weight_decay < 0:
            raise ValueError("optimizer: reference_batch, warmup_epochs and weight_decay must not be negative")


@dataclass(frozen=True)
class ValidationConfig:
    """Zero-shot segmentation during training.

    Attributes:
        benchmark: name of a packaged benchmark, such as voc, or a YAML file; null for none.
        data_root: folder of the packaged benchmarks' data.
        limit: images to evaluate; null for all.
        batch_size: windows encoded together.
    """

    benchmark: str | None = None
    data_root: str = "data"
    limit: int | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check every value."""
        for name in ("limit", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"validation.{name}: {value} must be at least 1")


class TrainingData(Protocol):
    """What the schedule needs to know of the data."""

    batch_size: int  # samples of one step on one device

    @property
    def steps(self) -> int:
        """Batches of an epoch on each device."""


class ZeroShotModule(LightningModule):
    """Trains a segmenter that knows classes by their names. A subclass has the model and the loss of a step."""

    model: Segmenter
    data: TrainingData  # what it is trained on; the command line says it before a run

    def __init__(self, optimizer: OptimizerConfig, validation: ValidationConfig, nonfinite: str, seed: int) -> None:
        """Raises CocuError for an unknown ``nonfinite``."""
        super().__init__()
        self.optimizer = optimizer
        self.validation = validation
        self.finite = FiniteSteps(nonfinite)
        self.seed = seed
        self.benchmark: Benchmark | None = None
        self.scores: SegmentationScores | None = None  # of the last validation, class by class

    def setup(self, stage: str) -> None:
        """Find the benchmark before the first step. Raises CocuError or AbsentError when it is not there."""
        if self.validation.benchmark and self.benchmark is None:
            try:
                self.benchmark = read_benchmark(self.validation.benchmark, self.validation.data_root)
                list_images(self.benchmark)
            except AbsentError as error:
                raise AbsentError(f"model.validation.benchmark: {error}; set it to null to train without") from None

    def configure_callbacks(self) -> Sequence[Callback] | Callback:
        """Lightning's hook: every run of the model, by whatever trainer, looks at its gradients."""
        return self.finite

    def on_train_start(self) -> None:
        """Apply the optimizer's settings: a checkpoint that a run goes on from has brought those of before."""
        (schedule,) = (config.scheduler for config in self.trainer.lr_scheduler_configs)
        assert isinstance(schedule, LambdaLR)  # that of configure_optimizers
        peak, _ = self._rates()
        groups = parameter_groups(self, self.optimizer.weight_decay)
        apply_settings(schedule, groups, peak, self.optimizer.betas)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook. Raises CheckpointError for weights of another model, and for a run that trained others of them:
        torch would say so in many lines, or without a name."""
        path = self.trainer.ckpt_path
        problem = difference(checkpoint["state_dict"], self.state_dict())
        if problem:
            raise CheckpointError(f"{path}: {problem}; set model as it was, {OTHERWISE}")

        states = checkpoint.get("optimizer_states") if self.trainer.state.fn == "fit" else None
        if states:
            before = [len(group["params"]) for group in states[0]["param_groups"]]
            if before != [len(group["params"]) for group in parameter_groups(self, self.optimizer.weight_decay)]:
                raise CheckpointError(f"{path}: this run trained other weights; set model as it was, {OTHERWISE}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook. Raises NotFiniteError rather than let such weights into a checkpoint."""
        check_finite(checkpoint)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the model is made for, in pixels."""
        return self.model.config.image_size

    @property
    def text_context(self) -> int:
        """Tokens of the longest text that the model takes."""
        return self.model.config.text_context

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is random in the model by step and rank, so that a resumed run draws what an uninterrupted one does."""
        seed_step(self.seed, batches_begun(self.trainer), self.global_rank)

    def score_without_benchmark(self) -> Tensor:
        """What the best checkpoint is chosen by where there are no masks."""
        raise NotImplementedError

    def on_validation_epoch_end(self) -> None:
        """Zero-shot segmentation; every rank evaluates its share of the images."""
        if self.benchmark is None:
            self.log(SCORE, self.score_without_benchmark(), sync_dist=True)
            return

        group = dist.group.WORLD if self.trainer.world_size > 1 else None
        share = Share(self.global_rank, self.trainer.world_size, group)
        limit = 2 * self.trainer.world_size if self.trainer.sanity_checking else self.validation.limit
        model = self.model
        if model.logit_scale.dtype != torch.float32:  # bf16-true and 64-true: benchmarks are evaluated in fp32
            model = copy.deepcopy(model).float()
        result = evaluate(model, self.benchmark, batch_size=self.validation.batch_size, limit=limit, share=share)
        self.scores = scores = result.scores
        # In float32, Lightning's type for metrics, an mIoU keeps seven digits.
        self.log_dict({"val/miou": scores.miou, "val/pixel_accuracy": scores.pixel_accuracy, SCORE: scores.miou})

    def on_test_epoch_end(self) -> None:
        """The same."""
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with the rates scaled to the global batch, and a schedule by the step."""
        config, trainer = self.optimizer, self.trainer
        peak, final = self._rates()

        total = int(trainer.estimated_stepping_batches)
        epoch_steps = self.data.steps / trainer.accumulate_grad_batches  # of a whole epoch, or of one that is limited
        warmup = warmup_steps(config.warmup_epochs, trainer.max_epochs, total, epoch_steps)

        optimizer = adamw(parameter_groups(self, config.weight_decay), peak, config.betas)
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, total, warmup, peak, final) / peak)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rates(self) -> tuple[float, float]:
        """The learning rates at the peak and at the end, for the global batch."""
        config, trainer = self.optimizer, self.trainer
        global_batch = self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        peak = scaled(config.rate, global_batch, config.reference_batch)
        return peak, scaled(config.final_rate, global_batch, config.reference_batch)


def warmup_steps(warmup_epochs: float, max_epochs: int | None, total: int, epoch_steps: float) -> int:
    """Steps of warm-up: its share of ``max_epochs``, of ``total`` steps; without max_epochs (-1), its own epochs."""
    if max_epochs is None or max_epochs < 1:
        return round(warmup_epochs * epoch_steps)
    return round(total * min(warmup_epochs / max_epochs, 1.0))
