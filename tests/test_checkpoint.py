"""Checkpoints of three kinds, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_groupvit import lightning, same

from curation.base.errors import OutputError
from segmenters import checkpoint
from segmenters.checkpoint import CheckpointError, latest, load, save
from segmenters.huggingface import huggingface_names, to_huggingface
from segmenters.opening import open_segmenter


def test_our_folder_comes_back_as_it_was(groupvit, tmp_path):
    save(groupvit, tmp_path / "mine")
    loaded = load(tmp_path / "mine")
    assert loaded.kind == "cocu folder"
    assert loaded.model.config == groupvit.config
    assert same(loaded.model, groupvit)
    assert not loaded.model.training
    assert len(loaded.sha256) == 64


def test_a_lightning_file_is_read_as_weights_only(groupvit, tmp_path):
    loaded = load(lightning(groupvit, tmp_path / "last.ckpt"))
    assert loaded.kind == "lightning"
    assert same(loaded.model, groupvit)


def test_every_weight_of_hugging_face_has_a_place_and_goes_back_unchanged(huggingface, groupvit):
    theirs = {name: value for name, value in huggingface[0].state_dict().items() if not name.endswith("position_ids")}
    ours = to_huggingface(groupvit)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert huggingface_names("image.stages.0.blocks.1.attention.qkv.bias")[1] == (
        "vision_model.encoder.stages.0.layers.1.self_attn.k_proj.bias"
    )


def test_the_hash_follows_the_weights(huggingface, tmp_path):
    folder = shutil.copytree(huggingface[1], tmp_path / "copy")
    assert load(folder).sha256 == load(huggingface[1]).sha256
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"logit_scale": torch.tensor(1.0)}, folder / "model.safetensors")
    assert load(folder).sha256 != load(huggingface[1]).sha256


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    path, evil = tmp_path / "evil.ckpt", Evil(str(tmp_path / "executed"))
    torch.save({"state_dict": {}, "hyper_parameters": evil}, path)
    with pytest.raises(
        CheckpointError, match=r"evil.ckpt: not a checkpoint that can be loaded as weights only"
    ) as raised:
        load(path)
    assert "holds more than weights" in str(raised.value)
    assert "weights_only" not in str(raised.value)  # torch says how to load it in spite of that
    path.write_bytes(pickle.dumps(evil))
    with pytest.raises(CheckpointError, match="weights only"):
        load(path)
    assert not (tmp_path / "executed").exists()


def change_config(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section][name] = value
        else:
            values[section] = value
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: change_config(f, model_type="clip"), "not a GroupViT .found clip."),
        (lambda f: (f / "config.json").unlink(), "config.json: missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "cannot be read .*not a JSON object"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 99), "cannot be read"),
        (
            lambda f: change_config(f, vision_config__hidden_act="relu"),
            "hidden_act: 'relu' is not supported, only 'gelu'",
        ),
        (lambda f: change_config(f, vision_config__num_output_groups=[5, 4, 4]), "num_output_groups"),
        (lambda f: change_config(f, vision_config__depths=[2, 2, 1]), "lacks vision_model.encoder.stages.1.layers.1"),
        (lambda f: change_config(f, vision_config__depths=[1, 1, 1]), "has vision_model.encoder.stages.0.layers.1"),
        (lambda f: change_config(f, projection_dim=13), "shape .12, 20., expected .13, 20."),
        (lambda f: change_config(f, vision_config__image_size=65), "not a multiple of patch_size"),
        (lambda f: change_config(f, vision_config__num_attention_heads=0), "config.json: heads: 0 must be at least 1"),
        (lambda f: change_config(f, vision_config__intermediate_size=-4), "config.json: .*negative dimension"),
        (lambda f: change_config(f, text_config=[1]), "config.json: 'list' object"),
    ],
)
def test_a_folder_of_something_else_is_refused(huggingface, tmp_path, spoil, message):
    folder = shutil.copytree(huggingface[1], tmp_path / "copy")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_dict": None}, "no state_dict"),
        ({"hyper_parameters": {}}, "hyper_parameters has no `model`"),
        ({"hyper_parameters": {"model": {"depth": 3}}}, "unknown sizes .'depth'."),
        ({"hyper_parameters": {"model": {}}}, "expected"),
        ({"state_dict": {}}, "lacks logit_scale"),
        ({"state_dict": {"model.logit_scale": 3}}, "state_dict: 'model.logit_scale' is no tensor"),
        ({"state_dict": {7: torch.ones(1)}}, "state_dict: 7 is no tensor"),
        ({"hyper_parameters": {"model": {"width": -6}}}, "model: width: -6 must be at least 1"),
        ({"hyper_parameters": {"model": {"mlp_width": -6}}}, "model: .*negative dimension"),
    ],
)
def test_a_lightning_file_of_something_else_is_refused(groupvit, tmp_path, changes, message, monkeypatch):
    if changes.get("hyper_parameters") == {"model": {}}:
        # The paper's sizes are the defaults; building them only to see that they do not fit takes a second.
        message = "lacks image.stages.0.blocks.2"
    with pytest.raises(CheckpointError, match=message):
        load(lightning(groupvit, tmp_path / "x.ckpt", **changes))


def test_absent_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "nowhere")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(tmp_path / "text.ckpt")


def test_what_cannot_be_written_gets_one_line(groupvit, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/inner/model.safetensors: cannot be written \(Not a directory\)"):
        save(groupvit, tmp_path / "file" / "inner")

    def full(weights, path, metadata):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        OutputError, match=r"model.safetensors: cannot be written \(.*No space left on device.*make room"
    ):
        save(groupvit, tmp_path / "folder")
    assert not list((tmp_path / "folder").iterdir())


def test_the_newest_checkpoint_is_found(tmp_path):
    with pytest.raises(CheckpointError, match=r"no .ckpt below"):
        latest(tmp_path)
    for number, name in enumerate(["b/last.ckpt", "a/deep/x.ckpt"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (number, number))
    assert latest(tmp_path) == tmp_path / "a/deep/x.ckpt"


def test_the_folder_of_a_training_run_is_its_last_checkpoint(tmp_path, groupvit):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"no .ckpt below .*run/checkpoints"):
        load(run)
    lightning(groupvit, run / "checkpoints" / "best.ckpt")
    assert load(run).path == str(run / "checkpoints" / "best.ckpt")
    lightning(groupvit, run / "checkpoints" / "last.ckpt")
    os.utime(run / "checkpoints" / "last.ckpt", (1, 1))
    for folder in (run, run / "checkpoints"):
        assert load(folder).path == str(run / "checkpoints" / "last.ckpt")
        assert open_segmenter(folder).path == str(run / "checkpoints" / "last.ckpt")
    save(groupvit, run)  # a folder of weights, whatever else lies in it
    assert load(run).kind == "cocu folder"
