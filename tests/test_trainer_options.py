"""Lightning's options do what Lightning says, or are refused in one line; what is wrong is found before the first step."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_worlds import own
from tiny_world import jpeg, write_tar
from training_runs import checkpoint, fit, losses, with_callback

from training.cli import main
from training.shared_memory import SharedMemoryError, check_shared_memory

UNVALIDATED = ("--trainer.limit_val_batches", "0")


def batches(path: Path) -> list[list[str]]:
    """Epoch and pixels of every batch of a run."""
    return [line.split() for line in path.read_text().splitlines()]


def test_limited_epochs_are_epochs_of_so_many_batches(tiny_training, tmp_path):
    """Each begins with the first batches of another order, whether the run is interrupted or not; so does the schedule."""
    seen = tmp_path / "whole.txt"
    assert fit(tiny_training, tmp_path / "whole", *UNVALIDATED, *with_callback("Batches", path=seen)) == 0
    whole = [[pixels for epoch, pixels in batches(seen) if epoch == str(number)] for number in range(3)]
    assert [len(epoch) for epoch in whole] == [9, 9, 9]

    limited = tmp_path / "limited.txt"
    options = ("--trainer.limit_train_batches", "4", *UNVALIDATED, "--save_every", "6")
    assert fit(tiny_training, tmp_path / "limited", *options, *with_callback("Batches", path=limited)) == 0
    assert [pixels for _, pixels in batches(limited)] == [pixels for epoch in whole for pixels in epoch[:4]]
    rates = [float(row[4]) for row in losses(tmp_path / "limited").values()]
    assert len(rates) == 12 and max(rates) == rates[4] == pytest.approx(1.6e-3)  # one epoch of warm-up is 4 steps

    again = tmp_path / "again.txt"
    stop = "[{class_path: tests.training_stop.StopAt, init_args: {step: 6}}]"
    assert fit(tiny_training, tmp_path / "cut", *options, "--trainer.callbacks", stop) == 0
    assert fit(tiny_training, tmp_path / "cut", *options, *with_callback("Batches", path=again)) == 0
    assert batches(again) == batches(limited)[6:]


def test_a_run_that_overfits_sees_the_same_batches_in_every_epoch(tiny_training, tmp_path):
    seen = tmp_path / "seen.txt"
    options = ("--trainer.overfit_batches", "2", *with_callback("Batches", path=seen))
    assert fit(tiny_training, tmp_path / "run", *options) == 0
    pixels = [values for _, values in batches(seen)]
    assert len(pixels) == 6 and pixels == pixels[:2] * 3 and pixels[0] != pixels[1]


def test_without_checkpoints_none_is_written(tiny_training, tmp_path):
    output = tmp_path / "run"
    options = ("--trainer.max_steps", "2", "--trainer.log_every_n_steps", "0", *UNVALIDATED)
    assert fit(tiny_training, output, "--trainer.enable_checkpointing", "false", *options) == 0
    assert not (output / "checkpoints").exists()


def test_callbacks_loggers_and_profilers_from_the_command_line_work(tiny_training, tmp_path, caplog):
    output = tmp_path / "run"
    options = ("--trainer.max_epochs", "1", "--trainer.callbacks", "LearningRateMonitor", *UNVALIDATED,
               "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path / "own"),
               "--trainer.profiler", "simple")  # fmt: skip
    with caplog.at_level("INFO", "lightning.pytorch.profilers"):
        assert fit(tiny_training, output, *options) == 0
    assert "Profiler Report" in caplog.text
    (metrics,) = (tmp_path / "own").glob("**/metrics.csv")
    assert "lr-AdamW" in metrics.read_text().splitlines()[0]
    assert not (output / "logs").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_validate_on_a_benchmark(tiny_training, tmp_path, precision):
    output = tmp_path / "run"
    options = ("--trainer.max_steps", "2", "--model.validation.benchmark", str(own(tmp_path / "bench", 2)))
    assert fit(tiny_training, output, *options, "--trainer.precision", precision, "--trainer.val_check_interval", "2",
               "--trainer.check_val_every_n_epoch", "null") == 0  # fmt: skip
    weight = torch.load(checkpoint(output), weights_only=True)["state_dict"]["model.logit_scale"]
    assert weight.dtype == {"bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    assert checkpoint(output, "best").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--optimizer", "SGD"], "--optimizer SGD (did you mean '--model.optimizer'?)"),
        (["--model.optimizer.lr", "0.1"], "did you mean '--model.optimizer.rate'?"),
        (["--model.optimizer.betas", "[0.9,1.5]"], "optimizer.betas: [0.9, 1.5] must be two numbers from 0 up to"),
        (["--data.augmentation.policy", "best"], "augmentation.policy: 'best' is not a policy of timm"),
        (["--data.augmentation.policy", "rand-q9"], "augmentation.policy: 'rand-q9' is not a policy of timm"),
        (["--model.nonfinite", "skipp"], "model.nonfinite: 'skipp' is not one of stop, skip (did you mean 'skip'?)"),
        (["--trainer.callbacks", "LearningRateMonitor", "--trainer.logger", "false"], "LearningRateMonitor"),
        (["--trainer.limit_train_batches", "0.01"], "0.01 * 9 < 1"),
        (
            ["--data.filter.score", "1", "--data.sampler.kind", "caption"],
            "data.filter: sampler caption draws from captions",
        ),
        (["--data.validation_shards", "[/nowhere/0.tar]"], "data.validation_shards: /nowhere/0.tar: no such file"),
        (["--trainer.val_check_interval", "100"], "`val_check_interval` (100) must be less than or equal"),
    ],
)
def test_mistakes_get_one_line_before_the_first_step(tiny_training, tmp_path, capsys, arguments, message):
    try:
        code = fit(tiny_training, tmp_path / "run", *arguments)
    except SystemExit as error:
        code = error.code
    assert code != 0
    text = capsys.readouterr().err
    assert message in text and "Traceback" not in text and len(text.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_slurm_variables_that_lightning_refuses_get_one_line(tiny_training, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert fit(tiny_training, tmp_path / "run") == 1
    text = capsys.readouterr().err
    assert "--ntasks-per-node=4" in text and len(text.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_gets_one_line(tiny_training, tmp_path, capsys):
    assert fit(tiny_training, tmp_path / "run", "--trainer.accelerator", "gpu") == 1
    assert "No supported gpu backend found" in capsys.readouterr().err


def test_validation_without_one_usable_sample_is_an_error(tiny_training, tmp_path, capsys):
    """One image without a caption, one caption without an image; then two samples, which will do."""
    tar = write_tar(tmp_path / "val.tar", [("a.jpg", jpeg()), ("b.txt", b"a dog")])
    options = (
        "--trainer.max_epochs",
        "1",
        "--trainer.limit_train_batches",
        "1",
        "--data.validation_shards",
        f"[{tar}]",
    )
    assert fit(tiny_training, tmp_path / "run", *options) == 1
    assert f"data.validation_shards: {tar}: 0 samples with image and caption" in capsys.readouterr().err
    write_tar(
        tar, [(f"{name}.{kind}", content) for name in "ab" for kind, content in (("jpg", jpeg()), ("txt", b"a dog"))]
    )
    assert fit(tiny_training, tmp_path / "other", *options) == 0


def test_shared_memory_that_is_too_small_is_found_in_setup(tiny_training, tmp_path, capsys, monkeypatch):
    """Two workers with two batches each of 8 x 3 x 32 x 32 x 4 = 98,304 bytes need 393,216."""
    check_shared_memory(98_304, 0, str(tmp_path))
    check_shared_memory(98_304, 2, "/nowhere")
    for free, enough in ((393_216, True), (393_215, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if enough:
            check_shared_memory(98_304, 2, str(tmp_path))
        else:
            with pytest.raises(
                SharedMemoryError, match=r"2 workers need 0 MB .* lower data.batch_size or data.workers"
            ):
                check_shared_memory(98_304, 2, str(tmp_path))
    assert fit(tiny_training, tmp_path / "run", "--data.workers", "2") == 1
    assert "/dev/shm: 0 MB are free" in capsys.readouterr().err


def test_help_shows_our_options_first_and_examples_as_written(capsys):
    texts = []
    for arguments in (["--help"], ["fit", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        texts.append(capsys.readouterr().out)
    assert "\n  cocu train validate --config training/configs/cocu_cc12m.yaml --ckpt_path best\n" in texts[0]
    assert "validate" in texts[0] and "predict" not in texts[0]
    options = re.findall(r"^  (--[\w.]+)", texts[1], re.MULTILINE)
    shown = ["--output", "--resume", "--model.sizes.width", "--data.archives", "--trainer.accelerator"]
    assert sorted(shown, key=options.index) == shown
    assert "--optimizer" not in options
