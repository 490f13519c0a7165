"""A GroupViT learns the map of a dense CLIP: its losses by plain loops, and short runs of the command."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
import yaml
from tiny_clip import save_clip, tiny_clip
from training_runs import MODEL, fit, write_config

from experiments.distil_places import main, place_losses
from segmenters.checkpoint import load
from segmenters.groupvit import GroupViTConfig
from training.module import GroupViTModule

SIZES = MODEL | {"projection": 12, "text_context": 16}  # the tiny CLIP's
RANDOM = np.random.default_rng(0)
FEATURES, IMAGE, TEXT = RANDOM.normal(size=(2, 3, 5)), RANDOM.normal(size=(2, 5)), RANDOM.normal(size=(4, 5))
TEXT /= np.linalg.norm(TEXT, axis=1, keepdims=True)
MASKS, TARGET = RANDOM.dirichlet(np.ones(3), (2, 2, 2)), RANDOM.dirichlet(np.ones(4), (2, 2, 2))  # channels last
SCALE = 7.0


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def named(feature: np.ndarray) -> list[float]:
    return softmax([SCALE * float(feature @ text) / math.sqrt(float(feature @ feature)) for text in TEXT])


def losses(features, masks, target, text=TEXT, scale=SCALE):
    moved = [torch.from_numpy(values).permute(0, 3, 1, 2) for values in (masks, target)]
    arguments = (torch.from_numpy(features), moved[0], torch.from_numpy(IMAGE), moved[1])
    return place_losses(*arguments, torch.from_numpy(text), torch.tensor(scale))


def test_losses_equal_plain_loops():
    places = image = 0.0
    for i in range(2):
        groups = [named(feature) for feature in FEATURES[i]]
        for row in range(2):
            for column in range(2):
                for c in range(4):
                    mixed = sum(MASKS[i, row, column, g] * groups[g][c] for g in range(3))
                    places -= TARGET[i, row, column, c] * math.log(mixed) / 8
                    image -= TARGET[i, row, column, c] * math.log(named(IMAGE[i])[c]) / 8
    found = losses(FEATURES, MASKS, TARGET)
    assert float(found.places) == pytest.approx(places)
    assert float(found.image) == pytest.approx(image)


def test_a_student_that_says_the_same_has_the_least_loss():
    text = np.eye(4, 5)
    masks = np.eye(3)[[[[0, 1], [2, 0]], [[1, 1], [0, 2]]]]  # (2, 2, 2, 3): each place one group
    features = text[[[0, 1, 2], [3, 2, 1]]]
    target = np.stack([np.eye(4)[[[0, 1], [2, 0]]], np.eye(4)[[[2, 2], [3, 1]]]])
    assert float(losses(features, masks, target, text, 60.0).places) == pytest.approx(0, abs=1e-4)
    assert float(losses(features[:, [1, 0, 2]], masks, target, text, 60.0).places) > 5  # named wrongly


@pytest.fixture(scope="module")
def start(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("distilled")
    teacher = save_clip(tiny_clip("timm"), folder / "clip")
    config = write_config(finished, folder / "tiny.yaml")
    values = yaml.safe_load(config.read_text())
    values["model"] = {"sizes": SIZES, "teacher": f"local-dir:{teacher}@stride=16", "optimizer": {"reference_batch": 8}}
    config.write_text(yaml.safe_dump(values))
    assert main(["fit", "--config", str(config), "--output", str(folder / "run")]) == 0
    return config, folder / "run" / "checkpoints" / "last.ckpt"


def test_a_run_learns_and_its_checkpoint_is_a_groupvit(start):
    _, checkpoint = start
    with next(checkpoint.parents[1].glob("logs/version_0/metrics.csv")).open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("train/loss")]
    found = [float(row["train/loss"]) for row in rows]
    assert np.mean(found[-3:]) < found[0] - 0.05
    assert float(rows[-1]["train/text_cosine"]) > float(rows[0]["train/text_cosine"])
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert set(state) == {f"model.{name}" for name in load(checkpoint).model.state_dict()}


def test_training_goes_on_from_it_and_may_keep_its_norms(start, finished, tmp_path):
    _, checkpoint = start
    config = write_config(finished, tmp_path / "tiny.yaml")
    values = yaml.safe_load(config.read_text())
    values["model"] |= {"sizes": SIZES, "start": str(checkpoint)}
    config.write_text(yaml.safe_dump(values))
    norms = {}
    for kept in ("true", "false"):
        output = tmp_path / kept
        assert fit(config, output, "--model.frozen_norms", kept, "--trainer.max_steps", "3") == 0
        norms[kept] = load(output / "checkpoints" / "last.ckpt").model.image_projection[1]
    before = load(checkpoint).model.image_projection[1]
    assert torch.equal(norms["true"].running_mean, before.running_mean)
    assert not torch.equal(norms["true"].weight, before.weight)  # it learns all the same
    assert not torch.equal(norms["false"].running_mean, before.running_mean)


def test_norms_stay_frozen_through_validation():
    module = GroupViTModule(GroupViTConfig(**SIZES), frozen_norms=True)
    assert not module.eval().train().model.image_projection[1].training
    assert module.model.image.training
    assert GroupViTModule(GroupViTConfig(**SIZES)).train().model.text_projection[1].training


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.sizes.projection", "9"], "projection: 9 must be 12, the teacher's dimensions"),
        (["--model.sizes.text_context", "77"], "text_context: 77 must be at most 16, the teacher's context"),
        (["--model.image_weight", "-1"], "image_weight: -1.0 must not be negative"),
        (["--model.teacher", "SELF"], "is a GroupViT; name a dense CLIP"),
    ],
)
def test_mistakes_are_one_line(start, extra, message, tmp_path, capsys):
    config, checkpoint = start
    extra = [str(checkpoint) if word == "SELF" else word for word in extra]
    assert main(["fit", "--config", str(config), "--output", str(tmp_path), *extra]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
