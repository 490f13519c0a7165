"""A CLIP whose places learn from archives, as Lightning trains it (docs/method.md §5)."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curation.base.configuration import require, require_one_of
from curation.base.errors import CocuError
from evaluation.inference import PROMPT, TEXTS
from segmenters.dense import DenseCLIP, with_given
from segmenters.opening import DENSE
from segmenters.pretrained import filled, open_pretrained
from training.batches import Batch
from training.labels import LabelDataModule
from training.negatives import concept_ids, excused
from training.places import POOLINGS, image_loss, place_loss
from training.zero_shot import OptimizerConfig, ValidationConfig, ZeroShotModule

RARE = -4.0  # the bias that concepts begin with: few are in a picture
TUNED = ("all", "projection")


class DenseModule(ZeroShotModule):
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
        groups: int | None = None,
        tune: str = "all",
        pooling: str = "smooth",
        sharpness: float = 3.0,
        place_weight: float = 0.0,
        learn_scale: bool = True,
        concepts: int = 1024,
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        nonfinite: str = "stop",
        seed: int = 0,
    ) -> None:
        """Open the encoder.

        Args:
            encoder: the CLIP to begin with: open_clip:MODEL/TAG, or local-dir:FOLDER in open_clip's format.
            stride: pixels between places; null for the encoder's own.
            reading: of a transformer's last block: maskclip, sclip or naclip; null for naclip.
            size: side of the pictures, in pixels; null for the encoder's own.
            groups: of a grouping head over the places, which is learnt too; null for no head, as open_clip has it.
            tune: what of the image tower is trained: all, or its projection.
            pooling: how logits of places become one of the image.
            sharpness: of the pooling.
            place_weight: weight of the loss that keeps each place to what is possible in its image; 0 for none.
            learn_scale: learn the factor of cosines, rather than keep the encoder's.
            concepts: of the vocabulary in the loss of a step: all where it has no more; else those of the batch, and others
                at random.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            nonfinite: what to do about a step whose loss or gradients are not finite: stop, or skip it and count.
            seed: of the concepts that are drawn, for each step apart.
        """
        super().__init__(optimizer, validation, nonfinite, seed)
        require_one_of("model.pooling", pooling, POOLINGS)
        require_one_of("model.tune", tune, TUNED)
        require(sharpness >= 0, f"model.sharpness: {sharpness} must not be negative")
        require(place_weight >= 0, f"model.place_weight: {place_weight} must not be negative")
        require(concepts >= 2, f"model.concepts: {concepts} must be at least 2")

        opened = open_pretrained(encoder).model
        try:
            config = with_given(opened.config, reading=reading, stride=stride, size=size, groups=groups)
        except ValueError as error:
            raise CocuError(f"model.{error}") from None
        learnt = opened.grouping.state_dict() if opened.grouping and config.groups == opened.config.groups else None
        # In evaluation mode, and it stays in that: batch norms keep the encoder's means, not a batch's.
        self.model: DenseCLIP = filled(config, opened.clip.state_dict(), encoder, learnt)
        self.save_hyperparameters({"model": {DENSE: dataclasses.asdict(config)}}, logger=False)

        train_only(self.model, tune, learn_scale)
        self.pooling = POOLINGS[pooling].function
        self.sharpness = sharpness
        self.place_weight = place_weight
        self.concepts = concepts
        self.bias = nn.Parameter(torch.tensor(RARE))

    # --- the run ----------------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Embed the vocabulary, once: the text tower does not change."""
        names = self.data.vocabulary
        ids = concept_ids(names)[:-1]  # without NONE
        order = np.argsort(ids)
        self.ids = torch.from_numpy(ids[order]).to(self.device)
        self.text = embed(self.model, [names[index] for index in order])
        if self.device.type == "cpu":
            self.model.clip.visual.to(memory_format=torch.channels_last)  # twice as fast for convolutions on a CPU

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        loss, on_images = self.losses(batch)
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        logged = {
            "train/loss": loss,
            "train/image_loss": on_images,
            "train/scale": self.model.scale,
            "train/rate": rate,
        }
        self.log_dict(logged, batch_size=len(batch.pixels))
        return loss

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The whole loss of a batch, and its part that is on images: each ()."""
        assert batch.concepts is not None  # LabelStream gives every sample some
        columns = choose(self.ids, torch.cat([batch.concepts.drawn, batch.concepts.held], 1), self.concepts)  # (C,)
        positive = excused(batch.concepts.drawn, self.ids[columns])  # (B, C)
        possible = excused(batch.concepts.held, self.ids[columns]) | positive  # (B, C)

        places = self.model.encode_places(batch.pixels)  # (B, D, h, w)
        with torch.autocast(places.device.type, enabled=False):
            features = F.normalize(places.float().flatten(2), dim=1)  # (B, D, N)
            logits = self.model.scale * torch.einsum("bdn,cd->bcn", features, self.text[columns]) + self.bias
            on_images = image_loss(self.pooling(logits, self.sharpness), positive, possible)
            if not self.place_weight:
                return on_images, on_images
            return on_images + self.place_weight * place_loss(logits, possible), on_images

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing for a batch: what counts is where things are."""

    def score_without_benchmark(self) -> Tensor:
        """The less the loss, the better."""
        return -self.trainer.callback_metrics.get("train/loss", torch.tensor(math.inf))

    test_step = validation_step


# --- parts ----------------------------------------------------------------------------------------------------------------


def train_only(model: DenseCLIP, tune: str, learn_scale: bool) -> None:
    """Freeze all but what is trained: the image tower or its projection, without what no place passes; a grouping head;
    the scale."""
    model.requires_grad_(False)
    if model.grouping is not None:
        model.grouping.requires_grad_(True)
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
