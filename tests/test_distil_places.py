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

from experiments.distil_places import PlaceDistillation, crop, main, place_losses, random_crops, text_space
from segmenters.checkpoint import load
from segmenters.groupvit import GroupViTConfig
from training.module import GroupViTModule

SIZES = MODEL | {"projection": 12, "text_context": 16}  # the tiny CLIP's
RANDOM = np.random.default_rng(0)
FEATURES, IMAGE, TEXT = RANDOM.normal(size=(2, 3, 5)), RANDOM.normal(size=(2, 5)), RANDOM.normal(size=(4, 5))
TEXT /= np.linalg.norm(TEXT, axis=1, keepdims=True)
MASKS, TARGET = RANDOM.dirichlet(np.ones(3), (2, 2, 2)), RANDOM.dirichlet(np.ones(4), (2, 2, 2))  # channels last
SCALE = 7.0


# --- losses ---------------------------------------------------------------------------------------------------------------


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


# --- crops ----------------------------------------------------------------------------------------------------------------


def test_crops_lie_within_the_image_and_half_are_mirrored():
    crops = random_crops(np.random.default_rng(0), 400, 0.25).numpy()
    side = crops[:, 1, 1]
    assert 0.5 <= side.min() < 0.55 and 0.97 < side.max() <= 1
    assert np.array_equal(np.abs(crops[:, 0, 0]), side)
    assert 160 < (crops[:, 0, 0] < 0).sum() < 240
    assert (np.abs(crops[:, :, 2]) <= 1 - side[:, None] + 1e-6).all()
    assert not crops[:, 0, 1].any() and not crops[:, 1, 0].any()


def test_pictures_and_coarser_maps_are_cropped_alike():
    """A ramp from left to right is the same ramp at any resolution, away from the border."""
    crops = torch.tensor([[[0.5, 0, 0.25], [0, 0.5, 0.0]], [[-0.5, 0, 0.25], [0, 0.5, 0.0]]])  # columns 3/8 to 7/8
    ramps = [((torch.arange(size) + 0.5) / size).expand(2, 1, size, size) for size in (32, 8)]
    expected = 3 / 8 + (torch.arange(4) + 0.5) / 8
    for ramp in ramps:
        cropped = crop(ramp, crops, (4, 4))
        torch.testing.assert_close(cropped[0, 0], expected.expand(4, 4))
        torch.testing.assert_close(cropped[1, 0], expected.flip(0).expand(4, 4))


def test_the_teacher_sees_each_image_once():
    model = PlaceDistillation("none", GroupViTConfig(**SIZES))
    teacher, seen = tiny_clip("timm"), []
    model.teacher_model = [teacher]
    whole = teacher.encode_places
    teacher.encode_places = lambda pixels: seen.append(len(pixels)) or whole(pixels)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected = whole(images)
        first = model.teacher_maps(images[[0, 1, 1]])
        again = model.teacher_maps(images[[3, 1, 0]])
        model.teacher_maps(images[[0, 3]])
    assert seen == [3, 1]
    torch.testing.assert_close(first, expected[[0, 1, 1]], atol=2e-3, rtol=2e-3)  # kept in fp16
    torch.testing.assert_close(again, expected[[3, 1, 0]], atol=2e-3, rtol=2e-3)


def test_the_target_is_what_the_teacher_says_only_sharper():
    model = PlaceDistillation("none", GroupViTConfig(**SIZES), sharpness=3.0)
    teacher = tiny_clip("timm")
    model.teacher_model, model.names = [teacher], torch.nn.functional.normalize(torch.randn(4, 12), dim=-1)
    images, whole = torch.randn(2, 3, 64, 64), torch.tensor([[[1.0, 0, 0], [0, 1, 0]]] * 2)
    with torch.no_grad():
        places = teacher.encode_places(images).half().double()  # (2, 12, h, w)
    grid = (places.shape[2], places.shape[3])
    target = model.target_places(images, whole, grid)
    model.sharpness = 1.0
    plain = model.target_places(images, whole, grid)
    for i, row, column in np.ndindex(2, *grid):
        place = places[i, :, row, column].numpy()
        cosines = model.names.double().numpy() @ place / np.linalg.norm(place)
        weights = np.exp(3 * float(teacher.scale.detach()) * cosines)
        assert target[i, :, row, column].numpy() == pytest.approx(weights / weights.sum(), rel=2e-2)
    assert (target.amax(1) > plain.amax(1)).all()


# --- texts ----------------------------------------------------------------------------------------------------------------


def test_a_narrow_student_keeps_the_directions_in_which_names_differ_most():
    names = RANDOM.normal(size=(7, 12)) * np.linspace(1, 0.2, 12) + 2.0
    space = text_space(torch.from_numpy(names), 3)
    centred = names - names.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    largest = vectors[:, -3:]
    np.testing.assert_allclose((space.axes @ space.axes.T).numpy(), largest @ largest.T, atol=1e-9)

    cosines = space.of(torch.from_numpy(names)) @ space.of(torch.from_numpy(names)).T
    reduced = centred @ largest
    reduced /= np.linalg.norm(reduced, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines.numpy(), reduced @ reduced.T, atol=1e-9)


@pytest.mark.parametrize("dimensions", [6, 9, 12])
def test_enough_dimensions_keep_all_cosines_of_names(dimensions):
    names = torch.from_numpy(RANDOM.normal(size=(7, 12)))  # less their mean, 7 names have 6 dimensions
    space = text_space(names, dimensions)
    apart = torch.nn.functional.normalize(names - names.mean(0), dim=-1)
    torch.testing.assert_close(space.of(names) @ space.of(names).T, apart @ apart.T)


# --- runs -----------------------------------------------------------------------------------------------------------------


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


def test_a_student_may_be_narrower_than_its_teacher(start, tmp_path):
    config, _ = start
    fit = ["fit", "--config", str(config), "--output", str(tmp_path), "--trainer.max_steps", "2"]
    assert main([*fit, "--model.sizes.projection", "9"]) == 0
    assert load(tmp_path / "checkpoints" / "last.ckpt").model.config.projection == 9


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.sizes.projection", "13"], "projection: 13 must be at most 12, the teacher's dimensions"),
        (["--model.sizes.text_context", "77"], "text_context: 77 must be at most 16, the teacher's context"),
        (["--model.image_weight", "-1"], "image_weight: -1.0 must not be negative"),
        (["--model.sharpness", "0"], "sharpness: 0.0 must be positive"),
        (["--model.teacher", "SELF"], "is a GroupViT; name a dense CLIP"),
    ],
)
def test_mistakes_are_one_line(start, extra, message, tmp_path, capsys):
    config, checkpoint = start
    extra = [str(checkpoint) if word == "SELF" else word for word in extra]
    assert main(["fit", "--config", str(config), "--output", str(tmp_path), *extra]) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
