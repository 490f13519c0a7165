"""``python -m experiments.masked_places fit``: the ceiling of :mod:`experiments.distil_places`, told by masks.

The same model, losses, crops and schedule, but in place of a teacher's map the truth: which class each pixel of a
training scene of the demo world shows. What the model reaches so is what it can learn from these images in this time,
whoever teaches it. Only texts are still learnt from the teacher. Nothing that is shipped or compared is trained so.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from curation.base import files, images
from experiments.commands import ExperimentError
from experiments.distil_places import PlaceDistillation, crop, image_key
from pipelines.demo.scene import CLASSES
from pipelines.demo.world import DEMO, MARKER, TRAINING, WorldConfig, jpeg, scene_and_caption
from segmenters.groupvit import GroupViTConfig
from training.augmentation import Transform
from training.batches import SHORT
from training.cli import main as train
from training.dense import embed
from training.zero_shot import OptimizerConfig, ValidationConfig

FINER = 3  # samples of a mask for each patch and axis


class MaskedPlaces(PlaceDistillation):
    """Trains both towers of GroupViT to say of every patch what its mask says."""

    def __init__(
        self,
        teacher: str,
        world: str = "artifacts/demo-world",
        sizes: GroupViTConfig = GroupViTConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        validation: ValidationConfig = ValidationConfig(),
        image_weight: float = 0.3,
        smallest_crop: float = 0.6,
        seed: int = 0,
    ) -> None:
        """Build the model.

        Args:
            teacher: dense CLIP that texts are learnt from: a checkpoint, or the name of a pretrained one.
            world: folder of the demo world that the data was curated from.
            sizes: of GroupViT; ``projection`` must be at most the teacher's number of dimensions.
            optimizer: AdamW and its schedule.
            validation: zero-shot segmentation during training.
            image_weight: of what the masks say of the image as a whole.
            smallest_crop: share of an image's area that the student sees at least.
            seed: of the crops and of the random grouping.
        """
        super().__init__(teacher, sizes, optimizer, validation, image_weight, smallest_crop, seed=seed)
        self.world = world
        self.masks: dict[bytes, Tensor] = {}  # by image_key: (H, W) uint8

    def on_fit_start(self) -> None:
        """Draw the scenes of the world again, for their masks."""
        super().on_fit_start()
        (teacher,) = self.teacher_model
        self.names = embed(teacher, list(CLASSES))  # (C, D)
        self.text = self.space.of(self.names)
        self.masks = draw_masks(self.world, self.data.augmentation.transform(self.image_size))  # type: ignore[attr-defined]

    def target_places(self, pixels: Tensor, crops: Tensor, grid: tuple[int, int]) -> Tensor:
        """The share of each patch that each class has: (B, C, h, w); the rest of a patch is mixed pixels of edges."""
        return patch_shares(torch.stack([self.mask(image) for image in pixels.cpu()]), crops, grid).to(pixels.device)

    def mask(self, image: Tensor) -> Tensor:
        """The mask (H, W) of an image (3, H, W). Raises ExperimentError for one that the world has not."""
        try:
            return self.masks[image_key(image)]
        except KeyError:
            raise ExperimentError(
                f"model.world: {self.world} has not all training images; name the world that was curated"
            ) from None


def patch_shares(masks: Tensor, crops: Tensor, grid: tuple[int, int]) -> Tensor:
    """The share of each class in the patches of crops: (B, C, h, w) from masks (B, H, W) uint8 and crops (B, 2, 3)."""
    classes = torch.arange(len(CLASSES), dtype=torch.uint8)[:, None, None]
    shown = (masks[:, None] == classes).float()  # (B, C, H, W)
    return F.avg_pool2d(crop(shown, crops, (FINER * grid[0], FINER * grid[1])), FINER)


def draw_masks(world: str, transform: Transform) -> dict[bytes, Tensor]:
    """The masks (H, W) uint8 of a world's training scenes, by the key of their images as they are trained on.

    Raises ExperimentError where there is no demo world, or one of another version.
    """
    recipe = files.read_note(str(Path(world) / MARKER)).get("recipe", {})
    sizes = {name: recipe[name] for name in vars(DEMO) if name in recipe}
    config: WorldConfig = replace(DEMO, **sizes)
    if not recipe:
        raise ExperimentError(f"model.world: {world} is no demo world; name the one that was curated")

    masks = {}
    for number in range(config.shards * config.scenes):
        scene, _, _ = scene_and_caption(config.seed, TRAINING, number)
        image = transform(images.decode(jpeg(scene.picture), SHORT))
        masks[image_key(image)] = torch.from_numpy(scene.mask)
    return masks


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    return train(arguments, MaskedPlaces, "python -m experiments.masked_places")


if __name__ == "__main__":
    sys.exit(main())
