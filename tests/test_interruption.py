"""Runs that are ended by Ctrl-C, by a scheduler, or by force, and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from training_runs import checkpoint, fit, losses, with_callback

from segmenters.checkpoint import CheckpointError, latest, load
from training.interruption import Interruption

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def whole(tiny_training, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert fit(tiny_training, output) == 0
    return output


def step_of(output: Path, name: str = "last") -> int:
    return torch.load(checkpoint(output, name), weights_only=True)["global_step"]


def weights(output: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint(output), weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    ("name", "step", "validation", "code"),
    [("SIGINT", 5, False, 130), ("SIGTERM", 9, False, 143), ("SIGINT", 18, True, 130), ("SIGINT", 27, False, 130)],
)
def test_a_signal_ends_the_step_writes_it_and_says_how_to_go_on(
    tiny_training, whole, tmp_path, capfd, name, step, validation, code
):
    """Amid an epoch, at its end, amid the validation after it, and at the last step; then the run is as if it never was."""
    output = tmp_path / "run"
    assert fit(tiny_training, output, *with_callback("Signal", step=step, name=name, validation=validation)) == code
    text = " ".join(capfd.readouterr().err.split())
    assert f"interrupted: ended, with the state of step {step} in last.ckpt; to go on: " in text
    command = text.rpartition("to go on: ")[2]
    assert f"-m training fit --config {tiny_training} --output {output}" in command
    assert command.endswith("--ckpt_path last")
    assert step_of(output) == step
    assert sorted(losses(output)) == list(range(step))

    assert fit(tiny_training, output) == 0
    assert step_of(output) == 27
    expected = losses(whole)
    again = losses(output, 1) if step < 27 else {}
    assert losses(output) | again == expected
    ended = weights(output)
    assert all(torch.equal(value, ended[key]) for key, value in weights(whole).items())


def test_the_second_signal_ends_at_once(tiny_training, tmp_path, capfd):
    """What save_every has written stays."""
    output = tmp_path / "run"
    options = ("--save_every", "4", *with_callback("Signal", step=6, times=2))
    assert fit(tiny_training, output, *options) == 130
    text = " ".join(capfd.readouterr().err.split())
    assert "interrupted: ended; to go on: " in text
    assert step_of(output) == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_signal_is_lost_amid_accumulated_batches(tiny_training, tmp_path):
    """A step of two batches ends with the second of them: gradients are in no checkpoint."""
    output = tmp_path / "run"
    options = ("--trainer.accumulate_grad_batches", "2", *with_callback("Signal", step=2))
    assert fit(tiny_training, output, *options) == 130
    content = torch.load(checkpoint(output), weights_only=True)
    assert content["global_step"] == 2
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 4


def test_a_real_process_with_workers_is_ended_goes_on_and_is_killed_amid_a_write(tiny_training, tmp_path):
    """Ctrl-C reaches the worker processes of a terminal too, and a scheduler's SIGTERM; then SIGKILL, at no chosen moment,
    leaves whole files."""
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training", "fit", "--config", str(tiny_training), "--output", str(output)]
    command += [
        "--data.workers",
        "2",
        "--save_every",
        "1",
        "--trainer.max_epochs",
        "50",
        "--trainer.limit_val_batches",
        "0",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run_until(step: int, number: int) -> tuple[int, str]:
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=environment, text=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip
        deadline = time.monotonic() + 240
        try:
            while not (checkpoint(output).exists() and step_of(output) >= step):
                assert process.poll() is None and time.monotonic() < deadline, "the run ended or hung"
                time.sleep(0.02)
            os.killpg(process.pid, number)
            return process.wait(120), process.communicate()[1]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    reached = 2
    for number in (signal.SIGINT, signal.SIGTERM):
        code, text = run_until(reached + 3, number)
        assert code == 128 + number, text
        assert "--ckpt_path last" in text and "Traceback" not in text
        assert step_of(output) >= reached + 3
        reached = step_of(output)
    code, text = run_until(reached + 3, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert step_of(output) >= reached + 3
    load(checkpoint(output))


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared_away(tiny_training, tmp_path):
    output = tmp_path / "run"
    torn = output / "checkpoints" / ".partial-0123-last.ckpt"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"no \.ckpt below"):
        latest(output)
    assert fit(tiny_training, output, "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0") == 0
    assert not torn.exists()


def test_all_ranks_end_after_the_same_step():
    """A signal that one rank got is answered by the sum over ranks, on each of them."""
    from types import SimpleNamespace

    from training.interruption import Interrupted

    asked = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda own, all: asked.append((own, all)) or True)
    connector = SimpleNamespace(update_train_step_metrics=lambda: None)
    trainer = SimpleNamespace(world_size=2, strategy=strategy, global_step=3, checkpoint_callbacks=[],
                              _logger_connector=connector)  # fmt: skip
    callback = Interruption()
    with pytest.raises(Interrupted):
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert asked == [(False, False)]
