"""Going on with other settings: what cannot change is refused, what can is applied, and both are said."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from training_runs import checkpoint, fit, losses

from training.cli import main
from training.settings import Change, changes, is_fixed

UNVALIDATED = ("--trainer.limit_val_batches", "0")


@pytest.fixture(scope="module")
def begun_run(tiny_training, tmp_path_factory) -> Path:
    """4 of 27 steps."""
    output = tmp_path_factory.mktemp("begun") / "run"
    options = ("--trainer.callbacks", "[{class_path: tests.training_stop.Signal, init_args: {step: 4}}]")
    assert fit(tiny_training, output, *UNVALIDATED, *options) == 130
    return output


@pytest.fixture
def begun(begun_run, tmp_path) -> Path:
    return Path(shutil.copytree(begun_run, tmp_path / "run"))


def rate(step: int, total: int, warmup: int, peak: float, final: float) -> float:
    """The schedule of docs/method.md §5, written down once more."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    return final + (peak - final) / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def test_settings_of_the_optimizer_are_applied_and_said(tiny_training, begun, capsys):
    """The rates are those of the new schedule from the next step on; decay and betas are the optimizer's."""
    options = ("--model.optimizer.rate", "8e-4", "--model.optimizer.reference_batch", "16",
               "--model.optimizer.weight_decay", "0.2", "--model.optimizer.betas", "[0.8,0.9]",
               "--trainer.max_epochs", "2", "--data.sampler.temperature", "0.5")  # fmt: skip
    assert fit(tiny_training, begun, *UNVALIDATED, *options) == 0
    text = capsys.readouterr().out
    for line in ("model.optimizer.rate: 0.0016 -> 0.0008", "model.optimizer.reference_batch: 8 -> 16",
                 "model.optimizer.weight_decay: 0.05 -> 0.2", "model.optimizer.betas: [0.9, 0.999] -> [0.8, 0.9]",
                 "trainer.max_epochs: 3 -> 2", "data.sampler.temperature: 1.0 -> 0.5"):  # fmt: skip
        assert line in text
    assert text.count(" -> ") == 6 + text.count("-> /")
    measured = {step: float(row[4]) for step, row in losses(begun, 1).items()}
    expected = {step: rate(step, 18, 9, 8e-4 / 2, 4e-5 / 2) for step in range(4, 18)}
    assert measured == pytest.approx(expected, rel=1e-5)
    groups = torch.load(checkpoint(begun), weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0]
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.9)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.batch_size", "4"], "data.batch_size: this run has 8, not 4; set it to 8, or begin another run"),
        (["--data.workers", "3"], "data.workers: this run has 1, not 3"),
        (["--data.shuffle", "11"], "data.shuffle: this run has 10, not 11"),
        (["--seed_everything", "5"], "seed_everything: this run has 0, not 5"),
        (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches: 1 -> 2; set them as they were"),
        (["--trainer.limit_train_batches", "3"], "trainer.limit_train_batches: null -> 3"),
        (["--trainer.overfit_batches", "2"], "trainer.overfit_batches: 0.0 -> 2"),
        (["--model.sizes.groups", "[4,3]"], "model.sizes.groups: [4, 2] -> [4, 3]"),
        (["--model.prompt_weight", "0"], "model.prompt_weight: 1.0 -> 0.0"),
    ],
)
def test_what_cannot_change_is_refused(tiny_training, begun, capsys, options, message):
    before = checkpoint(begun).read_bytes()
    assert fit(tiny_training, begun, *UNVALIDATED, *options) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert message in text and "--resume no" in text and "Traceback" not in text
    assert checkpoint(begun).read_bytes() == before


def test_other_data_is_refused_and_the_same_data_elsewhere_is_not(tiny_training, begun, finished, tmp_path, capsys):
    two = f"[{finished},{finished}]"
    assert fit(tiny_training, begun, *UNVALIDATED, "--data.archives", two) == 1
    assert "data: this run has other tars, or other samples in them" in capsys.readouterr().err
    moved = tmp_path / "elsewhere"
    moved.symlink_to(finished)
    assert fit(tiny_training, begun, *UNVALIDATED, "--trainer.max_steps", "5", "--data.archives", str(moved)) == 0
    assert f"data.archives: {finished} -> {moved}" in capsys.readouterr().out


def test_a_checkpoint_without_recorded_settings_goes_on(tiny_training, begun, capsys):
    """Those of version 0.1: their sizes are compared, the rest is taken from the command."""
    content = torch.load(checkpoint(begun), weights_only=True)
    del content["callbacks"]["RunSettings"], content["ArchiveDataModule"]
    torch.save(content, checkpoint(begun))
    assert fit(tiny_training, begun, *UNVALIDATED, "--model.sizes.groups", "[4,3]") == 1
    assert "model.sizes.groups: [4, 2] -> [4, 3]" in capsys.readouterr().err
    assert fit(tiny_training, begun, *UNVALIDATED, "--trainer.max_steps", "5", "--model.optimizer.rate", "8e-4") == 0
    assert float(losses(begun, 1)[4][4]) == pytest.approx(rate(4, 5, 2, 8e-4, 4e-5))  # a third of 5 steps is warm-up


def test_changes_are_those_of_known_settings():
    assert changes({"a": 1, "b": 2, "old": 0}, {"a": 1, "b": 3, "new": 0}) == [Change("b", 2, 3)]
    assert is_fixed(Change("model.prompt_weight", 1.0, 0.0)) and not is_fixed(Change("model.prompt_weight", 1.0, 2.0))
    assert not is_fixed(Change("model.sizes.drop_path", 0.1, 0.0))


@pytest.mark.parametrize("subcommand", ["validate", "test"])
def test_nothing_is_scored_without_a_checkpoint(tiny_training, begun, capsys, subcommand):
    arguments = [subcommand, "--config", str(tiny_training), "--output", str(begun)]
    assert main(arguments) == 1
    assert f"{subcommand}: no checkpoint is named" in capsys.readouterr().err
    assert main([*arguments, "--ckpt_path", "last"]) == 0


def test_the_printed_settings_are_those_of_a_run(tiny_training, begun):
    """What a checkpoint records is what config.yaml beside the logs says."""
    settings = torch.load(checkpoint(begun), weights_only=True)["callbacks"]["RunSettings"]["settings"]
    (written,) = (begun / "logs").glob("version_0/config.yaml")
    config = yaml.safe_load(written.read_text())
    assert settings["model.optimizer.rate"] == config["model"]["optimizer"]["rate"] == 1.6e-3
    assert settings["data.batch_size"] == config["data"]["batch_size"] == 8
