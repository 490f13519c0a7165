"""The ceiling of a GroupViT that learns a map: shares of patches by counting pixels, masks against the world's sidecars."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_clip import save_clip, tiny_clip
from training_runs import MODEL, write_config

from experiments.commands import ExperimentError
from experiments.distil_places import image_key
from experiments.masked_places import MaskedPlaces, draw_masks, main, patch_shares
from pipelines.demo.scene import CLASSES, MIXED
from pipelines.demo.world import WorldConfig, ensure_world
from segmenters.groupvit import GroupViTConfig
from training.augmentation import Augmentation

SIZES = MODEL | {"projection": 12, "text_context": 16}  # the tiny CLIP's
AS_IT_IS = Augmentation(smallest_crop=1.0, flip=0.0, policy=None, color_jitter=0.0, erasing=0.0).transform(96)
WHOLE, MIRRORED = [[1.0, 0, 0], [0, 1, 0]], [[-1.0, 0, 0], [0, 1, 0]]


def test_shares_of_patches_are_counted_pixels():
    masks = np.random.default_rng(0).choice([0, 5, 36, MIXED], (2, 6, 9)).astype(np.uint8)
    shares = patch_shares(torch.from_numpy(masks), torch.tensor([WHOLE, MIRRORED]), (2, 3)).numpy()
    assert shares.shape == (2, len(CLASSES), 2, 3)
    for image, mask in enumerate([masks[0], masks[1, :, ::-1]]):
        for row, column in np.ndindex(2, 3):
            patch = mask[3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
            for c in (0, 5, 36, 7):
                assert shares[image, c, row, column] == pytest.approx((patch == c).sum() / 9, abs=1e-5)


@pytest.fixture(scope="module")
def demo_world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "world"
    ensure_world(str(folder), WorldConfig(shards=2, scenes=3, validation=1, seed=4), processes=1)
    return folder


def test_every_training_image_has_its_mask(demo_world):
    masks = draw_masks(str(demo_world), AS_IT_IS)
    assert len(masks) == 6
    for shard in range(2):
        with tarfile.open(demo_world / "train" / f"{shard:05d}.tar") as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        for name in sorted(name for name in members if name.endswith(".jpg")):
            mask = masks[image_key(AS_IT_IS(Image.open(io.BytesIO(members[name]))))].numpy()
            area = json.loads(members[name.replace(".jpg", ".json")])["area"]
            counted = {CLASSES[c]: (mask == c).mean() for c in np.unique(mask) if c != MIXED}
            assert {name: counted[name] for name in area} == pytest.approx(area, abs=1e-4)


def test_the_target_is_the_mask_of_the_image(demo_world):
    model = MaskedPlaces("none", str(demo_world), GroupViTConfig(**SIZES))
    images = torch.randn(2, 3, 32, 32)
    drawn = torch.zeros(2, 96, 96, dtype=torch.uint8)
    drawn[0, :, 48:] = 3
    model.masks = {image_key(image): mask for image, mask in zip(images, drawn, strict=True)}
    shares = model.target_places(images.flip(0), torch.tensor([WHOLE, WHOLE]), (4, 4))
    assert shares[0, 0].eq(1).all()
    assert shares[1, 3].round(decimals=2).tolist() == [[0, 0, 1, 1]] * 4
    with pytest.raises(ExperimentError, match="has not all training images"):
        model.target_places(images + 1, torch.tensor([WHOLE, WHOLE]), (4, 4))


@pytest.mark.parametrize(
    ("other", "message"), [(True, "has not all training images"), (False, "is no demo world; name the one")]
)
def test_mistakes_are_one_line(other, message, demo_world, finished, tmp_path, capsys):
    teacher = save_clip(tiny_clip("timm"), tmp_path / "clip")
    config = write_config(finished, tmp_path / "tiny.yaml")
    values = yaml.safe_load(config.read_text())
    values["model"] = {"sizes": SIZES, "teacher": f"local-dir:{teacher}", "optimizer": {"reference_batch": 8}}
    values["model"]["world"] = str(demo_world if other else tmp_path)
    config.write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(config), "--output", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
