"""GroupViT as Lightning trains it: the step, the optimizer, and validation by zero-shot segmentation."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from curation.base.errors import CocuError
from evaluation.benchmark import AbsentError, Benchmark, read_benchmark
from evaluation.evaluate import Share, evaluate
from evaluation.layout import list_images
from evaluation.metric import SegmentationScores
from segmenters.checkpoint import CheckpointError, load
from segmenters.groupvit import LARGEST_SCALE, GroupViT, GroupViTConfig
from training.batches import Batch
from training.loss import Losses, contrastive_losses
from training.optimizer import adamw, learning_rate, parameter_groups, scaled
from training.resume import batches_begun, seed_step

SCORE = "val/score"  # what the best checkpoint is chosen by: mIoU, or retrieval accuracy without a benchmark


class NotFiniteError(CocuError):
    """The loss is not a number. The message is one line with what to try."""


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


class TrainingData(Protocol):
    """What the schedule needs to know of the data."""

    batch_size: int  # samples of one step on one device

    @property
    def steps(self) -> int:
        """Batches of an epoch on each device."""


class GroupViTModule(LightningModule):
    """Trains GroupViT by image-caption and image-prompt contrast."""

    data: TrainingData  # what it is trained on; the command line says it before a run

    def __init__(
        self,
        sizes: GroupViTConfig = GroupViTConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        caption_weight: float = 1.0,
        prompt_weight: float = 1.0,
        compile: bool = False,
        recompute: bool = False,
        start: str | None = None,
        seed: int = 0,
    ) -> None:
        """Build the model.

        Args:
            sizes: sizes of GroupViT.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            caption_weight: weight of the image-caption loss.
            prompt_weight: weight of the multi-label loss; at 0 prompts are not even encoded.
            compile: torch.compile of both towers: slow to start, some ten percent faster afterwards.
            recompute: compute activations again in the backward pass rather than keep them: less memory, more time.
            start: checkpoint of a model of these sizes whose weights training starts from: a folder (ours, Hugging Face's)
                or a .ckpt; null for random weights. A run that resumes from its own checkpoint does not read it.
            seed: of the random grouping and drop path, for each step apart.
        """
        super().__init__()
        self.save_hyperparameters(
            {"model": dataclasses.asdict(sizes)}, logger=False
        )  # as segmenters.checkpoint reads it
        self.model = GroupViT(sizes)
        self.model.recompute = recompute
        # Without prompts there is none: DDP refuses a parameter that gets no gradient.
        self.prompt_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07))) if prompt_weight else None
        self.optimizer = optimizer
        self.validation = validation
        self.caption_weight = caption_weight
        self.prompt_weight = prompt_weight
        self.compiled = compile
        self.start = start
        self.seed = seed
        self.encode_image = self.model.encode_image
        self.encode_texts = self.model.encode_texts
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
        if self.compiled and stage == "fit":
            self.encode_image = torch.compile(self.model.encode_image)
            self.encode_texts = torch.compile(self.model.encode_texts)

    def on_fit_start(self) -> None:
        """Take the weights that training starts from, unless the run resumes from its own checkpoint."""
        if self.start and not self.trainer.ckpt_path:
            start_from(self.model, self.start)

    @property
    def image_size(self) -> int:
        """Side of the pictures that the model is made for, in pixels."""
        return self.model.config.image_size

    @property
    def text_context(self) -> int:
        """Tokens of the longest text that the model takes."""
        return self.model.config.text_context

    @property
    def prompt_scale(self) -> Tensor | None:
        """The factor of cosines of images and prompts, at most 100; None without prompts."""
        return None if self.prompt_logit_scale is None else self.prompt_logit_scale.exp().clamp(max=LARGEST_SCALE)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is random in the model by step and rank, so that a resumed run draws what an uninterrupted one does."""
        seed_step(self.seed, batches_begun(self.trainer), self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        image = self.encode_image(batch.pixels)  # (B, D)
        prompts = None
        if self.prompt_logit_scale is None:
            (captions,) = self.encode_texts([batch.captions])  # (B, D)
        else:
            captions, prompts = self.encode_texts([batch.captions, batch.prompts])  # (B, D), (B·M, D)
            prompts = prompts.unflatten(0, (len(image), -1))  # (B, M, D)

        losses = contrastive_losses(
            image,
            captions,
            prompts,
            self.model.scale,
            self.prompt_scale,
            batch.concepts,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        loss = self.caption_weight * losses.caption
        if losses.prompts is not None:
            loss = loss + self.prompt_weight * losses.prompts

        self._log_step(loss, losses, len(image))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it outside the class
        if self.global_step % every == 0 and not loss.isfinite():
            raise NotFiniteError(
                f"the loss is {loss.item()} at step {self.global_step}; lower model.optimizer.rate, lengthen its "
                "warmup_epochs, or set trainer.precision to 32-true"
            )
        return loss

    def _log_step(self, loss: Tensor, losses: Losses, batch_size: int) -> None:
        logged = {"train/loss": loss, "train/caption_loss": losses.caption, "train/retrieval_accuracy": losses.accuracy}
        if losses.prompts is not None and self.prompt_scale is not None:
            logged |= {"train/prompt_loss": losses.prompts, "train/prompt_scale": self.prompt_scale}
        # Filled in on the device, since Lightning would copy a number there and wait.
        rate = torch.full((), self.trainer.optimizers[0].param_groups[0]["lr"], device=loss.device)
        self.log_dict(logged | {"train/scale": self.model.scale, "train/rate": rate}, batch_size=batch_size)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Retrieval accuracy within a batch: how often a caption is the nearest one to its own image, and vice versa."""
        (captions,) = self.model.encode_texts([batch.captions])
        losses = contrastive_losses(
            self.model.encode_image(batch.pixels),
            captions,
            None,
            self.model.scale,
            None,
            rank=self.global_rank,
            world_size=self.trainer.world_size,
        )
        self.log_dict(
            {"val/caption_loss": losses.caption, "val/retrieval_accuracy": losses.accuracy},
            batch_size=len(captions),
            sync_dist=True,
        )

    def on_validation_epoch_end(self) -> None:
        """Zero-shot segmentation; every rank evaluates its share of the images."""
        if self.benchmark is None:
            score = self.trainer.callback_metrics.get("val/retrieval_accuracy", torch.tensor(0.0))
            self.log(SCORE, 100 * score)
            return

        group = dist.group.WORLD if self.trainer.world_size > 1 else None
        share = Share(self.global_rank, self.trainer.world_size, group)
        limit = 2 * self.trainer.world_size if self.trainer.sanity_checking else self.validation.limit
        result = evaluate(self.model, self.benchmark, batch_size=self.validation.batch_size, limit=limit, share=share)
        self.scores = scores = result.scores
        # In float32, Lightning's type for metrics, an mIoU keeps seven digits.
        self.log_dict({"val/miou": scores.miou, "val/pixel_accuracy": scores.pixel_accuracy, SCORE: scores.miou})

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with the rates scaled to the global batch, and a schedule by the step."""
        config, trainer = self.optimizer, self.trainer
        global_batch = self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        peak = scaled(config.rate, global_batch, config.reference_batch)
        final = scaled(config.final_rate, global_batch, config.reference_batch)

        total = int(trainer.estimated_stepping_batches)
        epoch_steps = self.data.steps / trainer.accumulate_grad_batches
        warmup = warmup_steps(config.warmup_epochs, trainer.max_epochs, total, epoch_steps)

        optimizer = adamw(parameter_groups(self, config.weight_decay), peak, config.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate(step, total, warmup, peak, final) / peak
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def start_from(model: GroupViT, path: str) -> None:
    """Give ``model`` the weights of a checkpoint. Raises CheckpointError where there is none, or one of other sizes."""
    loaded = load(path).model
    theirs = dataclasses.asdict(loaded.config)
    for key, value in dataclasses.asdict(model.config).items():
        if theirs[key] != value and key != "drop_path":
            remedy = f"set model.sizes.{key} to {json.dumps(theirs[key])}"
            raise CheckpointError(f"model.start: {path} has {key} {theirs[key]}, this model {value}; {remedy}")
    model.load_state_dict(loaded.state_dict())


def warmup_steps(warmup_epochs: float, max_epochs: int | None, total: int, epoch_steps: float) -> int:
    """Steps of warm-up: its share of ``max_epochs``, of ``total`` steps; without max_epochs (-1), its own epochs."""
    if max_epochs is None or max_epochs < 1:
        return round(warmup_epochs * epoch_steps)
    return round(total * min(warmup_epochs / max_epochs, 1.0))
