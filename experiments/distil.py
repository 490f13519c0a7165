"""``python -m experiments.distil fit``: starting weights for every arm, learnt from the encoder behind the archives.

A small GroupViT does not learn objects from a few thousand captions, whatever their archives, while the CLIP model that
made the archives knows them. Here the student learns what CLIP makes of windows of an image and of texts. It segments each
image once; the segments of a window are averaged by the share of the window that each has, and projected. Nothing but
images and texts is shown: neither the truth nor any archive decides anything.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from curation.encoder import Encoder, load
from curation.run.run import open_run
from experiments.commands import ExperimentError
from segmenters.groupvit import MEAN, STD, GroupViTConfig, group_masks
from segmenters.text import Texts
from training.batches import Batch
from training.cli import main as train
from training.module import GroupViTModule
from training.zero_shot import OptimizerConfig, ValidationConfig

SMALLEST = 3 / 8  # side of a window, of the image's


class Window(NamedTuple):
    """A square of patches."""

    top: int
    left: int
    side: int


def random_windows(random: np.random.Generator, grid: int, count: int) -> list[Window]:
    """``count`` windows of a grid of ``grid`` x ``grid`` patches, of any side from SMALLEST to three quarters."""
    sides = random.integers(max(1, round(SMALLEST * grid)), max(2, grid * 3 // 4 + 1), count)
    windows = []
    for side in sides.tolist():
        top, left = random.integers(0, grid - side + 1, 2).tolist()
        windows.append(Window(top, left, side))
    return windows


def window_segments(segments: Tensor, masks: Tensor, windows: Sequence[Window]) -> Tensor:
    """The mean segment of each of K windows, by the share of it that belongs to each group: (K, B, W).

    segments (B, G, W); masks (B, G, h, w): how much each patch belongs to each group, sums to 1 over G.
    """
    shares = [
        masks[:, :, top : top + side, left : left + side].mean((2, 3)) for top, left, side in windows
    ]  # K x (B, G)
    return torch.einsum("kbg,bgw->kbw", torch.stack(shares).to(segments.dtype), segments)


def crop_windows(pixels: Tensor, windows: Sequence[Window], patch: int, size: tuple[int, int]) -> Tensor:
    """The windows of images (B, 3, H, W), each resized to ``size``: (K, B, 3, height, width)."""
    crops = (
        pixels[:, :, patch * top : patch * (top + side), patch * left : patch * (left + side)]
        for top, left, side in windows
    )
    return torch.stack([F.interpolate(crop, size, mode="bilinear", antialias=True) for crop in crops])


class Distillation(GroupViTModule):
    """Trains both towers of GroupViT to point where an encoder's embeddings do."""

    encoder: Encoder  # from on_fit_start on
    image_mean: Tensor  # (D,): mean embedding so far
    text_mean: Tensor  # (D,)

    def __init__(
        self,
        sizes: GroupViTConfig = GroupViTConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        windows: int = 4,
        seed: int = 0,
    ) -> None:
        """Build the model.

        Args:
            sizes: of GroupViT; ``projection`` must be the encoder's number of dimensions.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            windows: of each image, beside the whole of it; drawn for each step, the same for all its images.
            seed: of the windows and of the random grouping.
        """
        super().__init__(sizes, optimizer, validation, prompt_weight=0.0, seed=seed)
        self.model.logit_scale.requires_grad_(False)
        self.windows = windows
        for name in ("image_mean", "text_mean"):
            self.register_buffer(name, torch.zeros(sizes.projection))

    def on_fit_start(self) -> None:
        """Load the encoder that made the archives. Raises ExperimentError for one that the student cannot learn from."""
        folders = self.trainer.datamodule.folders  # type: ignore[attr-defined]  # the trainer's types do not know it
        self.encoder = load(open_run(folders[0]).config.encoder)
        check(self.model.config, self.encoder)
        self.encoder.model.to(memory_format=torch.channels_last)  # twice as fast for convolutions on a CPU

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch: two, less the mean cosines of windows and of texts with the encoder's."""
        side = self.model.config.image_size // self.model.config.patch_size
        random = np.random.default_rng([self.seed, self.global_step, self.global_rank])
        windows = random_windows(random, side, self.windows)
        target_images = self.target_images(batch.pixels, [*windows, Window(0, 0, side)])  # (K + 1, B, D)
        target_texts = torch.cat([self.target_texts(texts) for texts in (batch.captions, batch.prompts)])  # (T, D)
        images = self.images(batch.pixels, windows)  # (K + 1, B, D)
        texts = torch.cat(self.model.encode_texts([batch.captions, batch.prompts]))  # (T, D)

        # Embeddings of CLIP share a large mean; what tells them apart is the rest.
        for mean, targets in ((self.image_mean, target_images.flatten(0, 1)), (self.text_mean, target_texts)):
            mean += (targets.mean(0) - mean) / (self.global_step + 1)
        image = F.cosine_similarity(images.float(), target_images - self.image_mean, dim=-1).mean()
        text = F.cosine_similarity(texts.float(), target_texts - self.text_mean, dim=-1).mean()
        loss = 2 - image - text
        self.log_dict(
            {"train/loss": loss, "train/image_cosine": image, "train/text_cosine": text}, batch_size=len(images)
        )
        return loss

    def images(self, pixels: Tensor, windows: Sequence[Window]) -> Tensor:
        """What the student makes of windows of images (B, 3, H, W), and of each as a whole: (K + 1, B, D)."""
        segments, assignments, grid = self.model.image(pixels)  # (B, G, W)
        means = window_segments(segments, group_masks(assignments, grid), windows)  # (K, B, W)
        means = torch.cat([means, segments.mean(1)[None]])  # (K + 1, B, W)
        return self.model.image_projection(means.flatten(0, 1)).view(*means.shape[:2], -1)

    def target_images(self, pixels: Tensor, windows: Sequence[Window]) -> Tensor:
        """The encoder's embeddings of windows of images (B, 3, H, W): (K, B, D)."""
        visual = self.encoder.model.visual
        mean, std, encoder_mean, encoder_std = (
            torch.tensor(values, device=pixels.device)[:, None, None]
            for values in (MEAN, STD, visual.image_mean, visual.image_std)
        )
        size = visual.image_size if isinstance(visual.image_size, tuple) else (visual.image_size,) * 2
        pixels = (pixels * std + mean - encoder_mean) / encoder_std  # (B, 3, H, W)
        crops = crop_windows(pixels, windows, self.model.config.patch_size, size)  # (K, B, 3, height, width)
        embeddings = self.encoder.encode_images(crops.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        return torch.from_numpy(embeddings).to(pixels.device).view(*crops.shape[:2], -1)

    def target_texts(self, texts: Texts) -> Tensor:
        """The encoder's embeddings of texts: (T, D)."""
        context = self.encoder.model.context_length
        ids = torch.cat([F.pad(matrix, (0, context - matrix.shape[1])) for matrix in texts.matrices])  # (T, context)
        embeddings = torch.from_numpy(self.encoder.encode_ids(ids)).to(texts.rows.device)
        return embeddings.index_select(0, texts.rows)


def check(config: GroupViTConfig, encoder: Encoder) -> None:
    """Raises ExperimentError where a GroupViT of these sizes cannot learn from the encoder."""
    context = encoder.model.context_length
    if type(encoder.tokenizer).__name__ != "SimpleTokenizer":
        raise ExperimentError("the encoder does not read CLIP's token ids, as GroupViT does; curate with another one")
    if config.projection != encoder.width:
        raise ExperimentError(
            f"model.sizes.projection: {config.projection} must be {encoder.width}, the encoder's dimensions"
        )
    if config.text_context > context:
        raise ExperimentError(
            f"model.sizes.text_context: {config.text_context} must be at most {context}, the encoder's context"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    return train(arguments, Distillation, "python -m experiments.distil")


if __name__ == "__main__":
    sys.exit(main())
