"""``python -m experiments.distil_places fit``: a GroupViT that has learnt where a dense CLIP sees things.

The teacher says of every place of an image how well each concept of the vocabulary fits it. The student's groups have
shares of every patch (their soft assignment), and each group a distribution over the same concepts; the mixture of these,
by the shares, is what the student says of a patch. So patches that the teacher names alike come into one group, and the
group gets their name, as in evaluation. The teacher (``model.teacher``) is any checkpoint of a dense CLIP: untrained, or
tuned by archives. It sees each image once, whole; the student sees crops of it, with what the teacher said of them. So the
data must come as it is, without an augmentation of its own. No truth is ever read.
"""

from __future__ import annotations

import hashlib
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from curation.base.configuration import require
from evaluation.places import place_cosines
from experiments.commands import ExperimentError
from segmenters.dense import DenseCLIP
from segmenters.groupvit import GroupViTConfig, group_masks
from segmenters.opening import open_segmenter
from segmenters.text import Texts
from training.batches import Batch
from training.cli import main as train
from training.datamodule import ArchiveDataModule
from training.dense import embed
from training.module import GroupViTModule
from training.zero_shot import OptimizerConfig, ValidationConfig

LEAST = 1e-6  # of a probability in a logarithm
TONE = 0.1  # standard deviation of changes of contrast and colour
CACHED = 1 << 16  # images whose maps are kept: one of 6 x 6 places and 128 dimensions takes 9 kB


# --- crops ----------------------------------------------------------------------------------------------------------------


def random_crops(random: np.random.Generator, count: int, smallest: float) -> Tensor:
    """Affine maps (B, 2, 3) to square crops of at least a share ``smallest`` of the area, half of them mirrored."""
    side = np.sqrt(random.uniform(smallest, 1, count))
    mirror = random.choice([-1, 1], count)
    crops = np.zeros((count, 2, 3), np.float32)
    crops[:, 0, 0], crops[:, 1, 1] = side * mirror, side
    crops[:, :, 2] = random.uniform(-1, 1, (count, 2)) * (1 - side)[:, None]
    return torch.from_numpy(crops)


def crop(maps: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """The crops of maps (B, C, H, W) at ``size``, bilinear: (B, C, *size)."""
    grid = F.affine_grid(crops.to(maps.device), [*maps.shape[:2], *size], align_corners=False)
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)


# --- losses ---------------------------------------------------------------------------------------------------------------


class PlaceLosses(NamedTuple):
    """How far the student is from its teacher, each ()."""

    places: Tensor
    image: Tensor


def place_losses(
    groups: Tensor, masks: Tensor, image: Tensor, target: Tensor, text: Tensor, scale: Tensor
) -> PlaceLosses:
    """Cross entropies of the student's mixture and of its image feature with what the teacher says.

    groups (B, G, D), masks (B, G, h, w) summing to 1 over G, image (B, D), target (B, V, h, w) summing to 1 over
    V, text (V, D) of unit norm::

        places = -1/Bhw Σ_i Σ_n Σ_c q_icn log Σ_g m_ign p_igc        p_ig = softmax(s f_ig · t)
        image  = -1/B Σ_i Σ_c q̄_ic log softmax(s f_i · t)_c         q̄: the mean of q over places

    In evaluation a picture may hold those classes only that fit its image feature best: hence the second.
    """
    named = (scale * F.normalize(groups, dim=-1) @ text.T).softmax(-1)  # (B, G, V)
    mixture = torch.einsum("bghw,bgc->bchw", masks, named)  # (B, V, h, w)
    places = -(target * mixture.clamp(min=LEAST).log()).sum(1).mean()

    whole = (scale * F.normalize(image, dim=-1) @ text.T).log_softmax(-1)  # (B, V)
    return PlaceLosses(places, -(target.mean((2, 3)) * whole).sum(1).mean())


# --- texts --------------------------------------------------------------------------------------------------------------


class TextSpace(NamedTuple):
    """Where a student's texts lie: the embeddings of its teacher, less what all share, in no more dimensions than its own.

    Embeddings of CLIP share a large mean; what tells them apart is the rest.
    """

    mean: Tensor  # (D,): of the vocabulary
    axes: Tensor  # (D, P), orthonormal: directions in which the vocabulary differs most, or the teacher's own

    def of(self, embeddings: Tensor) -> Tensor:
        """(T, P) of unit norm, of the teacher's embeddings (T, D) of unit norm."""
        return F.normalize((embeddings - self.mean) @ self.axes, dim=-1)


def text_space(names: Tensor, dimensions: int) -> TextSpace:
    """The space for a student of ``dimensions`` (P), from the vocabulary's embeddings (V, D) of unit norm, P at most D."""
    mean = names.mean(0)
    if dimensions == names.shape[1]:
        return TextSpace(mean, torch.eye(dimensions, dtype=names.dtype, device=names.device))
    axes = torch.linalg.svd((names - mean).double(), full_matrices=True).Vh[:dimensions]  # (P, D), the largest first
    return TextSpace(mean, axes.T.to(names.dtype))


# --- training -------------------------------------------------------------------------------------------------------------


class PlaceDistillation(GroupViTModule):
    """Trains both towers of GroupViT to say of every patch, and of texts, what a dense CLIP says."""

    teacher_model: list[DenseCLIP]  # one, in a list: its weights belong into no checkpoint
    names: Tensor  # (V, D) of unit norm: the vocabulary, as the teacher embeds it
    space: TextSpace
    text: Tensor  # (V, P) of unit norm: the vocabulary in the student's space

    def __init__(
        self,
        teacher: str,
        sizes: GroupViTConfig = GroupViTConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        image_weight: float = 0.3,
        smallest_crop: float = 0.6,
        sharpness: float = 1.0,
        seed: int = 0,
    ) -> None:
        """Build the model.

        Args:
            teacher: checkpoint of a dense CLIP, or the name of a pretrained one, such as local-dir:FOLDER@stride=16.
            sizes: of GroupViT; ``projection`` must be at most the teacher's number of dimensions.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            image_weight: of what the teacher says of the image as a whole.
            smallest_crop: share of an image's area that the student sees at least.
            sharpness: factor of the teacher's logits; an untrained one is right more often than it is sure.
            seed: of the crops and of the random grouping.
        """
        super().__init__(sizes, optimizer, validation, prompt_weight=0.0, seed=seed)
        require(image_weight >= 0, f"model.image_weight: {image_weight} must not be negative")
        require(0 < smallest_crop <= 1, f"model.smallest_crop: {smallest_crop} must be above 0, at most 1")
        require(sharpness > 0, f"model.sharpness: {sharpness} must be positive")
        self.teacher = teacher
        self.image_weight = image_weight
        self.smallest_crop = smallest_crop
        self.sharpness = sharpness
        # By image_key: what the teacher says of places, (D, rows, columns).
        self.maps: dict[bytes, Tensor] = {}

    def on_fit_start(self) -> None:
        """Open the teacher and embed the vocabulary. Raises ExperimentError where the student cannot learn from it."""
        opened = open_segmenter(self.teacher).model
        if not isinstance(opened, DenseCLIP):
            raise ExperimentError(f"model.teacher: {self.teacher} is a GroupViT; name a dense CLIP")
        check(self.model.config, opened)
        opened.clip.visual.to(memory_format=torch.channels_last)  # twice as fast for convolutions on a CPU
        self.teacher_model = [opened.to(self.device).requires_grad_(False)]

        assert isinstance(self.data, ArchiveDataModule)  # what the command line gives
        runs = [shard.archive for shard in self.data.shards if shard.archive]
        self.names = embed(opened, sorted({name for run in runs for name in run.vocabulary}))
        self.space = text_space(self.names, self.model.config.projection)
        self.text = self.space.of(self.names)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        random = np.random.default_rng([self.seed, self.global_step, self.global_rank])
        crops = random_crops(random, len(batch.pixels), self.smallest_crop)
        pixels = crop(batch.pixels, crops, (batch.pixels.shape[2], batch.pixels.shape[3]))
        tones = torch.from_numpy(random.normal(0, TONE, (2, len(pixels), 3, 1, 1)).astype(np.float32)).to(pixels.device)
        segments, assignments, grid = self.model.image(pixels * (1 + tones[0, :, :1]) + tones[1])  # (B, G, W)

        both = torch.cat([segments, segments.mean(1, keepdim=True)], 1)  # (B, G + 1, W)
        features = self.model.image_projection(both.flatten(0, 1)).unflatten(0, both.shape[:2])  # (B, G + 1, D)
        target = self.target_places(batch.pixels, crops, grid)  # (B, V, h, w)
        with torch.autocast(target.device.type, enabled=False):
            features = features.float()
            masks = group_masks([soft.float() for soft in assignments], grid)  # (B, G, h, w)
            losses = place_losses(features[:, :-1], masks, features[:, -1], target, self.text, self.model.scale)

        texts = torch.cat(self.model.encode_texts([batch.captions, batch.prompts])).float()  # (T, P)
        wanted = torch.cat([self.target_texts(some) for some in (batch.captions, batch.prompts)])  # (T, P)
        text = F.cosine_similarity(texts, wanted, dim=-1).mean()

        loss = losses.places + self.image_weight * losses.image + 1 - text
        logged = {"train/loss": loss, "train/places": losses.places, "train/image": losses.image}
        self.log_dict(logged | {"train/text_cosine": text}, batch_size=len(features))
        return loss

    @torch.no_grad()
    def target_places(self, pixels: Tensor, crops: Tensor, grid: tuple[int, int]) -> Tensor:
        """What the teacher says of the patches of crops: (B, V, h, w), sums to 1 over V. Cosines are resized, as in
        evaluation."""
        (teacher,) = self.teacher_model
        cosines = place_cosines(self.teacher_maps(pixels), self.names)  # (B, V, rows, columns)
        return crop(self.sharpness * teacher.scale * cosines, crops, grid).softmax(1)

    def teacher_maps(self, pixels: Tensor) -> Tensor:
        """The teacher's embeddings of places of whole images (B, 3, H, W): (B, D, rows, columns). It sees each once."""
        (teacher,) = self.teacher_model
        keys = [image_key(image) for image in pixels.cpu()]
        fresh = [number for number, key in enumerate(keys) if key not in self.maps]
        maps = teacher.encode_places(pixels[fresh]).float().cpu() if fresh else torch.zeros(0)
        named = {keys[number]: row for number, row in zip(fresh, maps, strict=True)}
        stacked = torch.stack([named[key] if key in named else self.maps[key].float() for key in keys])
        if len(self.maps) < CACHED:
            self.maps |= {key: row.half() for key, row in named.items()}
        return stacked.to(pixels.device)

    @torch.no_grad()
    def target_texts(self, texts: Texts) -> Tensor:
        """The teacher's embeddings of texts in the student's space, of unit norm: (T, P)."""
        (teacher,) = self.teacher_model
        context = teacher.config.text_context
        ids = torch.cat([F.pad(matrix, (0, context - matrix.shape[1])) for matrix in texts.matrices])  # (T, context)
        return self.space.of(F.normalize(teacher.encode_text(ids).float(), dim=-1)).index_select(0, texts.rows)


def image_key(image: Tensor) -> bytes:
    """What tells an image (3, H, W) on the CPU from others: a digest of its pixels."""
    return hashlib.blake2b(image.numpy().data, digest_size=16).digest()


def check(config: GroupViTConfig, teacher: DenseCLIP) -> None:
    """Raises ExperimentError where a GroupViT of these sizes cannot learn from the teacher."""
    dimensions, context = teacher.config.model["embed_dim"], teacher.config.text_context
    if teacher.config.tokenizer:
        raise ExperimentError("model.teacher: it does not read CLIP's token ids, as GroupViT does; name another")
    if config.projection > dimensions:
        raise ExperimentError(
            f"model.sizes.projection: {config.projection} must be at most {dimensions}, the teacher's dimensions"
        )
    if config.text_context > context:
        raise ExperimentError(
            f"model.sizes.text_context: {config.text_context} must be at most {context}, the teacher's context"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    return train(arguments, PlaceDistillation, "python -m experiments.distil_places")


if __name__ == "__main__":
    sys.exit(main())
