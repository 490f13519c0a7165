"""GroupViT as Lightning trains it: the step, and what it logs."""

from __future__ import annotations

import dataclasses
import json
import math

import torch
from torch import Tensor, nn

from curation.base import files
from segmenters.checkpoint import load
from segmenters.groupvit import LARGEST_SCALE, GroupViT, GroupViTConfig
from segmenters.paths import CheckpointError
from training.batches import Batch
from training.loss import Losses, contrastive_losses
from training.zero_shot import OptimizerConfig, ValidationConfig, ZeroShotModule


class GroupViTModule(ZeroShotModule):
    """Trains GroupViT by image-caption and image-prompt contrast."""

    model: GroupViT

    def __init__(
        self,
        sizes: GroupViTConfig = GroupViTConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        caption_weight: float = 1.0,
        prompt_weight: float = 1.0,
        compile: bool = False,
        recompute: bool = False,
        nonfinite: str = "stop",
        start: str | None = None,
        frozen_norms: bool = False,
        seed: int = 0,
    ) -> None:
        """Build the model.

        Args:
            sizes: sizes of GroupViT.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            caption_weight: weight of the image-caption loss.
            prompt_weight: weight of the multi-label loss; at 0 prompts are not even encoded.
            compile: torch.compile of both towers: slow to start, ten (CPU) to twenty percent (H200) faster afterwards.
            recompute: compute activations again in the backward pass rather than keep them: less memory, more time.
            nonfinite: what to do about a step whose loss or gradients are not finite: stop, with the last good checkpoint
                kept, or skip it; skipped steps are counted.
            start: checkpoint of a model of these sizes whose weights training starts from: a folder (ours, Hugging Face's)
                or a .ckpt; null for random weights. A run that resumes from its own checkpoint does not read it.
            frozen_norms: keep means and variances in the heads' batch norms as they are in ``start``: there they may be
                those of groups, here they would become those of whole images, and evaluation is on groups.
            seed: of the random grouping and drop path, for each step apart.
        """
        super().__init__(optimizer, validation, nonfinite, seed)
        self.save_hyperparameters(
            {"model": dataclasses.asdict(sizes)}, logger=False
        )  # as segmenters.checkpoint reads it
        self.model = GroupViT(sizes)
        self.model.recompute = recompute
        # Without prompts there is none: DDP refuses a parameter that gets no gradient.
        self.prompt_logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07))) if prompt_weight else None
        self.caption_weight = caption_weight
        self.prompt_weight = prompt_weight
        self.compiled = compile
        self.start = start
        self.frozen_norms = frozen_norms
        self.encode_image = self.model.encode_image
        self.encode_texts = self.model.encode_texts
        self.train()  # Lightning leaves every part in the mode that it finds it in

    def setup(self, stage: str) -> None:
        """Find the benchmark, and compile."""
        super().setup(stage)
        if self.compiled and stage == "fit":
            self.encode_image = torch.compile(self.model.encode_image)
            self.encode_texts = torch.compile(self.model.encode_texts)

    def on_fit_start(self) -> None:
        """Take the weights that training starts from, unless the run resumes from its own checkpoint."""
        if self.start and not self.trainer.ckpt_path:
            start_from(self.model, self.start)

    def train(self, mode: bool = True) -> GroupViTModule:
        """Torch's switch of dropout and norms."""
        super().train(mode)
        if self.frozen_norms:
            for head in (self.model.image_projection, self.model.text_projection):
                head.eval()
        return self

    @property
    def prompt_scale(self) -> Tensor | None:
        """The factor of cosines of images and prompts, at most 100; None without prompts."""
        return None if self.prompt_logit_scale is None else self.prompt_logit_scale.exp().clamp(max=LARGEST_SCALE)

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

    def score_without_benchmark(self) -> Tensor:
        """Retrieval accuracy, in percent."""
        return 100 * self.trainer.callback_metrics.get("val/retrieval_accuracy", torch.tensor(0.0))

    test_step = validation_step


def start_from(model: GroupViT, path: str) -> None:
    """Give ``model`` the weights of a checkpoint. Raises CheckpointError where there is none, or one of other sizes."""
    try:
        loaded = load(files.local_path(files.resolve(path, "."))).model
    except CheckpointError as error:
        raise CheckpointError(f"model.start: {error}; null is for random weights") from None
    theirs = dataclasses.asdict(loaded.config)
    for key, value in dataclasses.asdict(model.config).items():
        if theirs[key] != value and key != "drop_path":
            remedy = f"set model.sizes.{key} to {json.dumps(theirs[key])}"
            raise CheckpointError(f"model.start: {path} has {key} {theirs[key]}, this model {value}; {remedy}")
    model.load_state_dict(loaded.state_dict())
