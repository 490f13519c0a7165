"""The grouping head against soft k-means written out, and where its weights go."""

from __future__ import annotations

import json
import math

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clip import save_clip, tiny_clip

from segmenters.convert import main as convert
from segmenters.opening import open_segmenter
from segmenters.place_groups import PlaceGroups
from segmenters.pretrained import PretrainedError, open_pretrained, save_folder


def unit(row: np.ndarray) -> np.ndarray:
    return row / math.sqrt(sum(x * x for x in row))


def literal(places: np.ndarray, centres: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """What one image's places (N, D) become, and the shares (N, G): place by place, group by group."""
    places = np.array([unit(row) for row in places])
    mean = sum(places) / len(places)
    apart = [unit(row - mean) for row in places]
    centres = [unit(row) for row in centres]
    for _ in range(2):
        shares = []
        for row in apart:
            weights = [math.exp(sharpness * float(row @ centre)) for centre in centres]
            shares.append([weight / sum(weights) for weight in weights])
        centres = [unit(sum(shares[n][g] * apart[n] for n in range(len(apart)))) for g in range(len(centres))]

    added = []
    for n in range(len(places)):
        total = np.zeros(places.shape[1])
        for g in range(len(centres)):
            whole = sum(share[g] for share in shares)
            total += shares[n][g] * sum(shares[m][g] * places[m] for m in range(len(places))) / whole
        added.append(places[n] + total)
    return np.array(added), np.array(shares)


def head(groups: int = 3, dimensions: int = 5, seed: int = 0) -> PlaceGroups:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PlaceGroups(groups, dimensions)


def test_groups_are_soft_k_means_within_an_image():
    model, maps = head(), np.random.default_rng(1).normal(size=(2, 5, 2, 4)) + 1.0
    found = model(torch.from_numpy(maps).float())
    assert found.shape == (2, 5, 2, 4)
    for image in range(2):
        flat = maps[image].reshape(5, 8).T
        expected, shares = literal(flat, model.centres.detach().double().numpy(), 10.0)
        np.testing.assert_allclose(found[image].detach().numpy().reshape(5, 8).T, expected, atol=1e-5)
        places = torch.nn.functional.normalize(torch.from_numpy(flat).float(), dim=-1)
        np.testing.assert_allclose(model.group(places[None]).shares[0].detach().numpy().T, shares, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_where_a_place_is_does_not_matter_to_its_group(groups, side, seed):
    model, random = head(groups, seed=seed), np.random.default_rng(seed)
    maps = torch.from_numpy(random.normal(size=(1, 5, side, 3))).float()
    order = torch.from_numpy(random.permutation(3 * side))
    moved = maps.flatten(2)[:, :, order].unflatten(2, (side, 3))
    torch.testing.assert_close(model(moved).flatten(2), model(maps).flatten(2)[:, :, order], atol=1e-5, rtol=1e-4)


def test_places_of_two_kinds_come_into_two_groups():
    kinds = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    shown = [0, 1, 1, 0, 0, 1]
    maps = kinds[shown].T.reshape(1, 4, 2, 3) + 0.01 * torch.randn(1, 4, 2, 3)
    model = head(2, 4)
    model.centres.data = torch.tensor([[1.0, 0, 1, 0], [0, 1.0, 1, 0]])
    mixed = model(maps).flatten(2)[0].T
    torch.testing.assert_close(torch.nn.functional.normalize(mixed, dim=1), kinds[shown], atol=0.05, rtol=0)


def test_an_image_that_is_the_same_everywhere_is_finite():
    maps = torch.ones(1, 5, 2, 2, requires_grad=True)
    model = head()
    mixed = model(maps)
    mixed.square().sum().backward()
    assert mixed.isfinite().all()
    assert all(value.grad.isfinite().all() for value in (maps, *model.parameters()))


def test_a_group_that_no_place_is_like_is_finite():
    model, maps = head(2, 3), torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0]]).T.reshape(1, 3, 1, 2)
    model.sharpness.data = torch.tensor(1e3)
    mixed = model(maps)
    mixed.square().sum().backward()
    assert mixed.isfinite().all()
    assert all(value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_another_precision_group_places_as_well(dtype):
    """A trainer's bf16-true, 16-true and 64-true: the grouping itself stays in float32."""
    model, maps = head(), torch.randn(2, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    expected = model(maps)
    found = model.to(dtype)(maps.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


def test_the_whole_of_an_image_does_not_change():
    plain, grouped = tiny_clip("timm"), tiny_clip("timm", groups=4)
    grouped.clip.load_state_dict(plain.clip.state_dict())
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(grouped.encode(pixels).image, plain.encode(pixels).image)
    assert not torch.allclose(grouped.encode(pixels).features, plain.encode(pixels).features)
    torch.testing.assert_close(grouped.encode(pixels).features, grouped.encode_places(pixels))


# --- folders --------------------------------------------------------------------------------------------------------------


def test_folders_keep_the_head_and_open_clip_reads_the_rest(tmp_path, capsys):
    model = tiny_clip("transformer", groups=4)
    save_folder(model, tmp_path / "grouped")
    again = open_segmenter(tmp_path / "grouped")
    pixels = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again.model.encode_places(pixels), model.encode_places(pixels))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'grouped'}")
    assert torch.equal(theirs.visual.proj, model.clip.visual.proj)

    model.grouping.centres.data += 1.0  # the same CLIP with another head is another checkpoint
    save_folder(model, tmp_path / "other")
    assert open_segmenter(tmp_path / "other").sha256 != again.sha256

    assert convert([str(tmp_path / "grouped"), str(tmp_path / "hf"), "--to", "huggingface"]) == 0
    assert "but for its grouping head" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"groups": 0}, "groups: 0 must be at least 1"),
        ({"groups": 4}, "grouping.safetensors"),
        ({"grups": 4}, "grups"),
        ({"stride": "8"}, "stride: 8 must be at least 1 and whole"),
        ({"size": -4}, "size: -4 must be at least 1"),
    ],
)
def test_mistakes_in_a_folder_are_one_line(own, message, tmp_path):
    folder = save_clip(tiny_clip("timm"), tmp_path / "clip")
    (folder / "dense.json").write_text(json.dumps(own))
    with pytest.raises(PretrainedError, match=message) as error:
        open_pretrained(f"local-dir:{folder}")
    assert "\n" not in str(error.value)
