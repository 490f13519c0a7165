"""Conversion: what transformers reads, and the way back."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_groupvit import TEXTS, TINY, doubled, hugging, lightning, same
from torchvision.transforms import v2
from transformers import CLIPProcessor, GroupViTModel

from segmenters.checkpoint import load, save, save_huggingface
from segmenters.convert import convert, main
from segmenters.groupvit import GroupViT, GroupViTConfig
from segmenters.huggingface import config_from_huggingface, config_to_huggingface
from segmenters.text import tokenize


def from_pretrained(folder):
    """Hugging Face's model, and which weights it missed or did not know."""
    model, notes = GroupViTModel.from_pretrained(folder, output_loading_info=True)
    return model.eval(), {key: list(value) for key, value in notes.items() if value}


def test_a_training_checkpoint_becomes_a_folder_that_transformers_loads_with_equal_features(groupvit, tmp_path, capsys):
    source = lightning(
        groupvit, tmp_path / "last.ckpt", state_dict={f"model.{name}": x for name, x in groupvit.state_dict().items()}
        | {"prompt_logit_scale": torch.tensor(2.0), "loss.prompt_logit_scale": torch.tensor(2.0)},
    )  # fmt: skip
    assert main([str(source), str(tmp_path / "hf")]) == 0
    assert "parameters of" in capsys.readouterr().out
    model, notes = from_pretrained(tmp_path / "hf")
    assert notes == {}
    theirs, ours = doubled(model, groupvit)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
    groups, image, attentions = hugging(theirs, pixels)
    with torch.no_grad():
        encoding = ours.encode_groups(pixels)
        text = theirs.text_projection(theirs.text_model(input_ids=tokenize(TEXTS)).pooler_output)
        torch.testing.assert_close(ours.encode_text(tokenize(TEXTS)), text, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoding.groups, groups, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoding.image, image, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoding.assignments[1], attentions[1], atol=1e-12, rtol=0)
    assert model.logit_scale.item() == groupvit.logit_scale.item()


def test_ours_to_theirs_and_back_is_the_same_bit_by_bit(tmp_path):
    torch.manual_seed(0)
    model = GroupViT(dataclasses.replace(TINY, drop_path=0.25, assign_widths=(7, 29))).eval()
    save(model, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert load(tmp_path / "theirs").kind == "huggingface"
    assert from_pretrained(tmp_path / "theirs")[1] == {}
    assert not list(tmp_path.glob("*.partial"))


def test_theirs_to_ours_and_back_is_the_same_bit_by_bit(huggingface, tmp_path):
    convert(huggingface[1], tmp_path / "ours")
    assert load(tmp_path / "ours").kind == "cocu folder"
    convert(tmp_path / "ours", tmp_path / "theirs")
    before, after = (load_file(folder / "model.safetensors") for folder in (huggingface[1], tmp_path / "theirs"))
    assert {name for name in before if not name.endswith("position_ids")} == set(after)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in after)
    model, notes = from_pretrained(tmp_path / "theirs")
    assert notes == {}
    old, new = huggingface[0].config.to_dict(), model.config.to_dict()
    changed = {
        key for part in ("vision_config", "text_config") for key in new[part] if new[part][key] != old[part].get(key)
    }
    assert changed - {"architectures", "dtype", "torch_dtype", "transformers_version"} <= {"pad_token_id"}


def test_sizes_come_back_whatever_the_ratios():
    widths = range(8, 400, 2)
    assert any(
        int((width // 3 + 1) / width * width) != width // 3 + 1 for width in widths
    )  # a plain quotient would not do
    for width in widths:
        config = GroupViTConfig(width=width, heads=2, assign_widths=(width // 3 + 1, 5 * width - 3))
        values = json.loads(json.dumps(config_to_huggingface(config)))
        assert config_from_huggingface(values) == config
        # What transformers itself makes of the ratios.
        assert [int(ratio * width) for ratio in values["vision_config"]["assign_mlp_ratio"]] == [*config.assign_widths]


def test_the_papers_sizes_are_those_of_transformers(caplog):
    from transformers import GroupViTConfig as TheirConfig

    with caplog.at_level(logging.WARNING):
        ours = TheirConfig(**config_to_huggingface(GroupViTConfig())).to_dict()
    theirs = TheirConfig().to_dict()
    for part in ("vision_config", "text_config"):
        found = {key for key in theirs[part] if theirs[part][key] != ours[part][key] and key != "pad_token_id"}
        assert all(list(theirs[part][key]) == list(ours[part][key]) for key in found)  # tuples and lists
    assert (theirs["projection_dim"], theirs["projection_intermediate_dim"]) == (
        ours["projection_dim"], ours["projection_intermediate_dim"],
    )  # fmt: skip


def test_the_processor_prepares_texts_and_images_as_we_do(groupvit, tmp_path):
    save(groupvit, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs")
    processor = CLIPProcessor.from_pretrained(tmp_path / "theirs")
    ours = tokenize(TEXTS)
    found = processor.tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert found.shape == (5, 77)
    ends = (ours == 49407).int().argmax(1) + 1
    for row, end in enumerate(ends.tolist()):
        assert found[row, :end].tolist() == ours[row, :end].tolist()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    image = processor.image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0]
    plain = torch.tensor(pixels[:, 16:80]).permute(2, 0, 1) / 255
    expected = v2.functional.normalize(plain, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)


def test_the_same_kind_can_be_asked_for(groupvit, tmp_path):
    source = lightning(groupvit, tmp_path / "last.ckpt")
    assert main([str(source), str(tmp_path / "deep" / "ours"), "--to", "cocu"]) == 0
    loaded = load(tmp_path / "deep" / "ours")
    assert loaded.kind == "cocu folder"
    assert same(loaded.model, groupvit)


def test_half_the_size_is_read_as_fp32(groupvit, tmp_path):
    source = lightning(groupvit, tmp_path / "last.ckpt")
    for name, options in (("whole", []), ("half", ["--half"])):
        assert main([str(source), str(tmp_path / name), "--to", "cocu", *options]) == 0
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert 0.45 < sizes[1] / sizes[0] < 0.6
    assert {value.dtype for value in load_file(tmp_path / "half" / "model.safetensors").values()} >= {torch.float16}
    for name, value in load(tmp_path / "half").model.state_dict().items():
        expected = groupvit.state_dict()[name]
        assert value.dtype == expected.dtype
        torch.testing.assert_close(value, expected, atol=1e-4, rtol=1e-3)


def test_mistakes_get_one_line(groupvit, tmp_path, capsys):
    save_huggingface(groupvit, tmp_path / "full")
    before = (tmp_path / "full" / "config.json").read_bytes()
    for arguments, message in [
        (["nowhere", "out"], "no such checkpoint"),
        (["full", "full"], "full: exists already; remove it"),
        (["full", "full/config.json"], "exists already"),
    ]:
        assert main([str(tmp_path / name) for name in arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert (tmp_path / "full" / "config.json").read_bytes() == before
    assert not (tmp_path / "out").exists()


def test_help_shows_both_ways(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert "last.ckpt groupvit-hf" in text
    assert "--to {huggingface,cocu}" in text
