"""A CLIP whose places learn from archives, as Lightning trains it (docs/method.md §5)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from curation.base.configuration import require, require_one_of
from evaluation.benchmark import AbsentError, Benchmark, read_benchmark
from evaluation.evaluate import Share, evaluate
from evaluation.inference import PROMPT, TEXTS
from evaluation.layout import list_images
from evaluation.metric import SegmentationScores
from segmenters.dense import DenseCLIP, with_reading
from segmenters.opening import DENSE
from segmenters.pretrained import filled, open_pretrained
from training.batches import Batch
from training.labels import LabelDataModule
from training.module import SCORE, NotFiniteError, OptimizerConfig, ValidationConfig, warmup_steps
from training.negatives import concept_ids, excused
from training.optimizer import adamw, learning_rate, parameter_groups, scaled
from training.places import POOLINGS, image_loss, place_loss
from training.resume import batches_begun, seed_step

RARE = -4.0  # the bias that concepts begin with: few are in a picture
TUNED = ("all", "projection")


class DenseModule(LightningModule):
    """Teaches the places of a CLIP what captions and archives say of whole images. The text tower stays as it is."""

    data: LabelDataModule  # what it is trained on; the command line says it before a run
    ids: Tensor  # (V,) int64, ascending: the vocabulary, by concept id
    text: Tensor  # (V, D): its unit-norm embeddings

    def __init__(
        self,
        encoder: str,
        stride: int | None = None,
        reading: str | None = None,
        size: int | None = None,
        tune: str = "all",
        pooling: str = "smooth",
        sharpness: float = 3.0,
        place_weight: float = 0.0,
        learn_scale: bool = True,
        concepts: int = 1024,
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        seed: int = 0,
    ) -> None:
        """Open the encoder.

        Args:
            encoder: the CLIP to begin with: open_clip:MODEL/TAG, or local-dir:FOLDER in open_clip's format.
            stride: pixels between places; null for the encoder's own.
            reading: of a transformer's last block: maskclip, sclip or naclip; null for naclip.
            size: side of the pictures, in pixels; null for the encoder's own.
            tune: what of the image tower is trained: all, or its projection.
            pooling: how logits of places become one of the image.
            sharpness: of the pooling.
            place_weight: weight of the loss that keeps each place to what is possible in its image; 0 for none.
            learn_scale: learn the factor of cosines, rather than keep the encoder's.
            concepts: of the vocabulary in the loss of a step: all where it has no more; else those of the batch, and others
                at random.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            seed: of the concepts that are drawn and of dropout, for each step apart.
        """
        super().__init__()
        require_one_of("model.pooling", pooling, POOLINGS)
        require_one_of("model.tune", tune, TUNED)
        require(sharpness >= 0, f"model.sharpness: {sharpness} must not be negative")
        require(place_weight >= 0, f"model.place_weight: {place_weight} must not be negative")
        require(concepts >= 2, f"model.concepts: {concepts} must be at least 2")

        opened = open_pretrained(encoder).model
        config = with_reading(opened.config, reading, stride)
        config = dataclasses.replace(config, size=size or config.size)
        self.model: DenseCLIP = filled(config, opened.clip.state_dict(), encoder)
        self.save_hyperparameters({"model": {DENSE: dataclasses.asdict(config)}}, logger=False)

        train_only(self.model, tune, learn_scale)
        self.pooling = POOLINGS[pooling].function
        self.sharpness = sharpness
        self.place_weight = place_weight
        self.concepts = concepts
        self.optimizer = optimizer
        self.validation = validation
        self.seed = seed
        self.bias = nn.Parameter(torch.tensor(RARE))
        self.benchmark: Benchmark | None = None
        self.scores: SegmentationScores | None = None  # of the last validation, class by class

    @property
    def image_size(self) -> int:
        """Side of the pictures that the model is made for, in pixels."""
        return self.model.config.image_size

    @property
    def text_context(self) -> int:
        """Tokens of the longest text that the model takes."""
        return self.model.config.text_context

    # --- the run ----------------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Find the benchmark before the first step. Raises CocuError or AbsentError when it is not there."""
        if self.validation.benchmark is None:
            return
        self.benchmark = read_benchmark(self.validation.benchmark, self.validation.data_root)
        try:
            list_images(self.benchmark)
        except AbsentError as error:
            remedy = "set model.validation.benchmark to null to train without validation"
            raise AbsentError(f"{self.benchmark.name}: {error}; {remedy}") from None

    def on_fit_start(self) -> None:
        """Embed the vocabulary, once: the text tower does not change."""
        names = self.data.vocabulary
        ids = concept_ids(names)[:-1]  # without NONE
        order = np.argsort(ids)
        self.ids = torch.from_numpy(ids[order]).to(self.device)
        self.text = embed(self.model, [names[index] for index in order])
        if self.device.type == "cpu":
            self.model.clip.visual.to(memory_format=torch.channels_last)  # twice as fast for convolutions on a CPU

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what is random by step and rank, so that a resumed run draws what an uninterrupted one does."""
        seed_step(self.seed, batches_begun(self.trainer), self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        assert batch.concepts is not None  # LabelStream gives every sample some
        columns = choose(self.ids, torch.cat([batch.concepts.drawn, batch.concepts.held], 1), self.concepts)  # (C,)
        positive = excused(batch.concepts.drawn, self.ids[columns])  # (B, C)
        possible = excused(batch.concepts.held, self.ids[columns]) | positive  # (B, C)

        places = self.model.encode_places(batch.pixels)  # (B, D, h, w)
        with torch.autocast(places.device.type, enabled=False):
            features = F.normalize(places.float().flatten(2), dim=1)  # (B, D, N)
            logits = self.model.scale * torch.einsum("bdn,cd->bcn", features, self.text[columns]) + self.bias
            on_images = image_loss(self.pooling(logits, self.sharpness), positive, possible)
            loss = on_images
            if self.place_weight:
                loss = loss + self.place_weight * place_loss(logits, possible)

        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        logged = {
            "train/loss": loss,
            "train/image_loss": on_images,
            "train/scale": self.model.scale,
            "train/rate": rate,
        }
        self.log_dict(logged, batch_size=len(places))
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # Lightning sets it outside the class
        if self.global_step % every == 0 and not loss.isfinite():
            raise NotFiniteError(
                f"the loss is {loss.item()} at step {self.global_step}; lower model.optimizer.rate, lengthen its "
                "warmup_epochs, or set trainer.precision to 32-true"
            )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing for a batch: what counts is where things are."""

    def on_validation_epoch_end(self) -> None:
        """Zero-shot segmentation; every rank evaluates its share of the images."""
        if self.benchmark is None:
            self.log(SCORE, -self.trainer.callback_metrics.get("train/loss", torch.tensor(math.inf)), sync_dist=True)
            return

        group = dist.group.WORLD if self.trainer.world_size > 1 else None
        share = Share(self.global_rank, self.trainer.world_size, group)
        limit = 2 * self.trainer.world_size if self.trainer.sanity_checking else self.validation.limit
        result = evaluate(self.model, self.benchmark, batch_size=self.validation.batch_size, limit=limit, share=share)
        self.scores = scores = result.scores
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


# --- parts ----------------------------------------------------------------------------------------------------------------


def train_only(model: DenseCLIP, tune: str, learn_scale: bool) -> None:
    """Freeze all but what is trained: the image tower or its projection, without what no place passes, and the scale."""
    model.requires_grad_(False)
    trained = model.clip.visual.parameters() if tune == "all" else model.tower.projection()
    for parameter in trained:
        parameter.requires_grad_(True)
    for parameter in model.tower.unused():  # DDP refuses a parameter that gets no gradient
        parameter.requires_grad_(False)
    model.logit_scale.requires_grad_(learn_scale)


@torch.no_grad()
def embed(model: DenseCLIP, names: list[str]) -> Tensor:
    """Unit-norm embeddings (V, D) float32 of "a photo of a NAME.", as evaluation names classes."""
    device = model.logit_scale.device
    rows = []
    for start in range(0, len(names), TEXTS):
        tokens = model.tokenize([PROMPT.format(name) for name in names[start : start + TEXTS]])
        rows.append(F.normalize(model.encode_text(tokens.to(device)).float(), dim=-1))
    return torch.cat(rows)


def choose(ids: Tensor, needed: Tensor, count: int) -> Tensor:
    """Positions in a vocabulary (V,) of ascending concept ids: all, where there are no more than ``count``; else those of
    the ids that are ``needed``, whatever their number, and random others up to ``count``. Ascending."""
    if len(ids) <= count:
        return torch.arange(len(ids), device=ids.device)
    first = excused(needed.flatten()[None], ids)[0]  # (V,)
    order = torch.rand(len(ids), device=ids.device).masked_fill(first, 2.0)  # what is needed comes first
    return order.topk(max(count, int(first.sum()))).indices.sort().values
