"""Checkpoints of a run: torn, moved, on a full disk, of weights that are not numbers, and those that nothing may touch."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import checkpoint, digests, fit, losses, with_callback

from training.cli import main
from training.finite import NotFiniteError, check_finite
from training.logs import Metrics

ROOT = Path(__file__).parent.parent
UNVALIDATED = ("--trainer.limit_val_batches", "0")


@pytest.fixture(scope="module")
def finished_run(tiny_training, tmp_path_factory) -> Path:
    """Two epochs, with best.ckpt and last.ckpt."""
    output = tmp_path_factory.mktemp("run") / "run"
    assert fit(tiny_training, output, "--trainer.max_epochs", "2") == 0
    return output


@pytest.fixture
def run(finished_run, tmp_path) -> Path:
    return Path(shutil.copytree(finished_run, tmp_path / "moved"))


def content(output: Path, name: str = "last") -> dict:
    return torch.load(checkpoint(output, name), weights_only=True)


def test_last_is_the_end_of_training_and_is_written_to_the_disk_beside_its_target(tiny_training, tmp_path, monkeypatch):
    """Not through TMPDIR, which may be another disk, and with fsync before the name is there."""
    renamed, synced = [], []
    replace, fsync = os.replace, os.fsync
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
    )
    monkeypatch.setattr(
        os, "replace", lambda source, target: renamed.append((source, target)) or replace(source, target)
    )
    output = tmp_path / "run"
    assert fit(tiny_training, output, "--trainer.max_steps", "3", *UNVALIDATED) == 0
    assert content(output)["global_step"] == 3
    written = [source for source, target in renamed if target.endswith("last.ckpt")]
    assert [os.path.dirname(source) for source in written] == [str(output / "checkpoints")]
    assert set(written) <= set(synced)
    assert sorted(digests(output)) == ["last.ckpt"] or sorted(digests(output)) == ["best.ckpt", "last.ckpt"]


def test_fast_dev_run_on_a_finished_run_changes_no_checkpoint(tiny_training, run):
    before, logs = digests(run), sorted(os.listdir(run / "logs"))
    assert fit(tiny_training, run, "--trainer.fast_dev_run", "true") == 0
    assert fit(tiny_training, run, "--trainer.fast_dev_run", "2", "--resume", "no") == 0
    assert digests(run) == before
    assert sorted(os.listdir(run / "logs")) == logs


def test_a_torn_checkpoint_gets_one_line_that_names_the_best(tiny_training, run, capsys):
    last = checkpoint(run)
    whole = last.read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        last.write_bytes(whole[:length])
        assert fit(tiny_training, run) == 1
        text = capsys.readouterr().err
        assert "last.ckpt: not a checkpoint" in text and "Traceback" not in text and len(text.splitlines()) == 1
        assert f"go on from {checkpoint(run, 'best')} with --ckpt_path best" in text
    step = content(run, "best")["global_step"]
    assert fit(tiny_training, run, "--ckpt_path", "best") == 0
    assert content(run)["global_step"] == 27
    assert min(losses(run, len(os.listdir(run / "logs")) - 1)) == step


@pytest.mark.parametrize("claimed", [99.0, None])
def test_best_survives_moving_the_folder(tiny_training, run, claimed):
    """The next validation is worse than a best of 99, and better than one of -1."""
    best = content(run, "best")
    state = next(value for key, value in best["callbacks"].items() if "val/score" in key)
    state["current_score"] = torch.tensor(-1.0 if claimed is None else claimed)
    torch.save(best, checkpoint(run, "best"))
    before = digests(run)["best.ckpt"]
    assert fit(tiny_training, run) == 0
    assert (digests(run)["best.ckpt"] == before) == (claimed is not None)
    score = next(value for key, value in content(run)["callbacks"].items() if "val/score" in key)
    assert Path(score["best_model_path"]) == checkpoint(run, "best")
    if claimed:
        assert float(score["best_model_score"]) == claimed


def test_a_run_of_before_keeps_its_best_under_lightnings_own_name(run):
    keys = [key for key in content(run)["callbacks"] if "Checkpoint" in key]
    assert sorted(key.partition("{")[0] for key in keys) == ["ModelCheckpoint", "ModelCheckpoint"]


def test_without_last_a_run_goes_on_from_its_best(tiny_training, run, capsys):
    checkpoint(run).unlink()
    assert fit(tiny_training, run) == 0
    assert f"from {checkpoint(run, 'best')}" in capsys.readouterr().out
    assert content(run)["global_step"] == 27


def test_resume_no_begins_anew_and_sets_the_earlier_run_aside(tiny_training, run, capsys):
    before = digests(run)
    assert fit(tiny_training, run, "--resume", "no", "--trainer.max_steps", "1", *UNVALIDATED) == 0
    assert content(run)["global_step"] == 1
    moved = run / "checkpoints-1"
    assert f"The checkpoints of the earlier run are in {moved}" in capsys.readouterr().out
    assert {name: digests_of(moved / name) for name in before} == before


def digests_of(path: Path) -> str:
    import hashlib

    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("arguments", [["--output", "s3://bucket/run"], ["--ckpt_path", "https://host/last.ckpt"]])
def test_addresses_are_refused(tiny_training, tmp_path, capsys, arguments):
    assert main(["fit", "--config", str(tiny_training), "--output", str(tmp_path), *arguments]) == 1
    assert f"{arguments[1]} is an address" in capsys.readouterr().err


def full_disk(config: Path, output: Path, first: int, last: int, size: int) -> subprocess.CompletedProcess:
    """A run in a process of its own whose files cannot grow beyond ``size`` in steps ``first`` to ``last``."""
    command = [sys.executable, "-m", "training", "fit", "--config", str(config), "--output", str(output), *UNVALIDATED]
    command += ["--save_every", "1", "--trainer.max_epochs", "1"]
    command += with_callback("FullDisk", first=first, last=last, size=size)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_a_full_disk_costs_neither_the_run_nor_what_was_written(tiny_training, tmp_path):
    """For three steps neither checkpoints nor log lines fit; the lines come later, whole, and each step once."""
    output = tmp_path / "run"
    ended = full_disk(tiny_training, output, 3, 6, 200)
    assert ended.returncode == 0, ended.stderr
    text = " ".join(ended.stderr.split())
    assert "last.ckpt: cannot be written" in text and "what was there before is kept" in text
    assert "Traceback" not in text
    assert content(output)["global_step"] == 9
    assert sorted(losses(output)) == list(range(9))
    with open(output / "logs" / "version_0" / "metrics.csv") as stream:
        rows = list(csv.reader(stream))
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not list((output / "checkpoints").glob(".partial-*"))


def test_lines_that_do_not_fit_are_written_later_and_none_is_torn(tmp_path):
    """A limit amid the second line, with a column that the first did not have; then none."""
    import resource

    metrics = Metrics(tmp_path, name="logs", version=0)
    path = tmp_path / "logs" / "version_0" / "metrics.csv"
    metrics.log_metrics({"loss": 1.5}, 0)
    metrics.save()
    before = path.read_bytes()
    metrics.log_metrics({"loss": 2.5, "rate": 0.25}, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, len(before) + 10):  # for the header of more columns, and not for the line
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        try:
            metrics.save()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with open(path) as stream:
            assert [row["loss"] for row in csv.DictReader(stream)] == ["1.5"]
    metrics.log_metrics({"loss": 3.5}, 2)
    metrics.save()
    with open(path) as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["loss"], row["rate"], row["step"]) for row in rows] == [
        ("1.5", "", "0"),
        ("2.5", "0.25", "1"),
        ("3.5", "", "2"),
    ]


def test_a_disk_that_stays_full_ends_with_one_line_and_keeps_the_last_good_state(tiny_training, tmp_path):
    output = tmp_path / "run"
    ended = full_disk(tiny_training, output, 3, -1, 200)
    assert ended.returncode == 1
    text = " ".join(ended.stderr.split())
    assert "last.ckpt: the end of training, step 9, is not written" in text and "Traceback" not in text
    assert "logs/version_0: cannot be written" in text
    assert content(output)["global_step"] == 3


def test_a_best_that_was_not_written_is_nothing_to_beat(tiny_training, run, monkeypatch):
    """The write fails once; the model of the next validation, though worse than that, is kept."""
    from training.checkpoints import BestCheckpoint, CheckpointFiles

    checkpoint(run, "best").unlink()
    scores = iter([torch.tensor(90.0), torch.tensor(50.0)])
    candidates = BestCheckpoint._monitor_candidates
    monkeypatch.setattr(
        BestCheckpoint,
        "_monitor_candidates",
        lambda self, trainer: candidates(self, trainer) | {"val/score": next(scores)},
    )
    save = CheckpointFiles.save_checkpoint
    fails = iter([True, False])

    def failing(self, checkpoint, path, storage_options=None):
        if str(path).endswith("best.ckpt") and next(fails):
            self.failure = "no room"
        else:
            save(self, checkpoint, path)

    monkeypatch.setattr(CheckpointFiles, "save_checkpoint", failing)
    assert fit(tiny_training, run, "--trainer.max_epochs", "4") == 0
    state = next(value for key, value in content(run, "best")["callbacks"].items() if "val/score" in key)
    assert float(state["current_score"]) == float(state["best_model_score"]) == 50.0
    assert content(run, "best")["global_step"] == 36


# --- values that are not finite -----------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_ends_the_run_before_the_weights(tiny_training, tmp_path, capsys):
    """Whatever is logged: here next to nothing is. The state before is kept, and can be gone on from."""
    output = tmp_path / "run"
    options = ("--save_every", "1", "--trainer.log_every_n_steps", "50", *UNVALIDATED)
    assert fit(tiny_training, output, *options, *with_callback("Spoil", steps=[4])) == 1
    text = capsys.readouterr().err
    assert "the loss is nan at step 4; lower model.optimizer.rate" in text and "Traceback" not in text
    assert content(output)["global_step"] == 4
    assert all(value.isfinite().all() for value in content(output)["state_dict"].values())
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "6") == 0
    assert content(output)["global_step"] == 6


def test_a_step_is_skipped_and_counted(tiny_training, tmp_path, capsys):
    """Weights, running statistics and the optimizer's state are those of before; the count outlives the process."""
    output = tmp_path / "run"
    options = ("--model.nonfinite", "skip", "--save_every", "1", *UNVALIDATED)
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "2") == 0
    before = content(output)
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "3", *with_callback("Spoil", steps=[2])) == 0
    after = content(output)
    assert after["global_step"] == 3
    for key, value in before["state_dict"].items():
        assert torch.equal(value, after["state_dict"][key]), key
    for number, state in before["optimizer_states"][0]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, after["optimizer_states"][0]["state"][number][key])
    assert "steps skipped, not finite" in capsys.readouterr().out
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "5", *with_callback("Spoil", steps=[4])) == 0
    assert content(output)["callbacks"]["FiniteSteps"] == {"skipped": 2}


def test_steps_are_not_skipped_for_ever(tiny_training, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.finite.IN_A_ROW", 3)
    options = ("--model.nonfinite", "skip", *UNVALIDATED, *with_callback("Spoil", steps=[1, 2, 3]))
    assert fit(tiny_training, tmp_path / "run", *options) == 1
    assert "at step 3, the 3th in a row" in capsys.readouterr().err.replace("3rd", "3th")


def test_weights_that_are_not_finite_reach_no_checkpoint(tiny_training, tmp_path, capsys):
    output = tmp_path / "run"
    assert fit(tiny_training, output, "--save_every", "2", *UNVALIDATED, *with_callback("Spoil", weights=4)) == 1
    text = capsys.readouterr().err
    assert "model.logit_scale is not finite at step 4: no checkpoint of it is written" in text
    assert content(output)["global_step"] == 2
    with pytest.raises(NotFiniteError, match=r"optimizer_states\.0\.state\.3 is not finite at step 7"):
        check_finite(
            {"state_dict": {}, "optimizer_states": [{"state": {3: torch.tensor(float("inf"))}}], "global_step": 7}
        )
