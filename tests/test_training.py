"""The training command line on a tiny world: runs, checkpoints, resuming after a kill, configurations."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from benchmark_worlds import own
from training_runs import MODEL, digests, fit, losses, with_callback

from evaluation.__main__ import main as evaluation
from segmenters.checkpoint import load
from segmenters.groupvit import GroupViT, GroupViTConfig
from training.cli import main
from training.module import GroupViTModule, start_from
from training.zero_shot import OptimizerConfig, warmup_steps

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "training" / "configs"


@pytest.fixture(scope="session")
def config(tiny_training) -> Path:
    return tiny_training


@pytest.fixture(scope="session")
def uninterrupted(config, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert fit(config, output) == 0
    return output


def test_a_run_writes_logs_and_checkpoints_that_evaluation_reads(uninterrupted, tmp_path):
    found = losses(uninterrupted)
    assert sorted(found) == list(range(27))
    values = [float(row[0]) for row in found.values()]
    assert all(value == value and value < 20 for value in values)
    for name in ("best", "last"):
        loaded = load(uninterrupted / "checkpoints" / f"{name}.ckpt")
        assert loaded.kind == "lightning"
        assert loaded.model.config.groups == (4, 2)
    content = torch.load(uninterrupted / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 27
    assert list((uninterrupted / "logs" / "version_0").glob("events.out.tfevents.*"))
    benchmark = own(tmp_path / "bench", 2)
    arguments = ["--checkpoint", str(uninterrupted / "checkpoints" / "best.ckpt"), "--benchmarks", str(benchmark)]
    assert evaluation([*arguments, "--output", str(tmp_path / "results.json"), "--device", "cpu"]) == 0


def test_the_rate_warms_up_and_falls_as_the_formula_says(uninterrupted):
    rates = [float(row[4]) for row in losses(uninterrupted).values()]
    assert rates[9] == max(rates) == pytest.approx(1.6e-3)
    assert rates[0] == pytest.approx(1.6e-3 / 10)
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert 4e-5 < rates[-1] < 8e-5


@pytest.mark.parametrize("done", [4, 9, 13])
def test_a_resumed_run_repeats_the_uninterrupted_one(uninterrupted, config, tmp_path, done):
    """Stopped in the middle of an epoch and at its end; losses are compared as they were printed."""
    output = tmp_path / "run"
    copied = yaml.safe_load(config.read_text())
    assert fit(config, output, "--trainer.limit_val_batches", "0", "--save_every", "1", "--trainer.callbacks",
               f"[{{class_path: tests.training_stop.StopAt, init_args: {{step: {done}}}}}]") == 0  # fmt: skip
    assert copied["trainer"]["max_epochs"] == 3
    first = losses(output)
    assert fit(config, output, "--trainer.limit_val_batches", "0", "--ckpt_path", "last") == 0
    second = losses(output, 1)
    expected = losses(uninterrupted)
    assert sorted(first) == list(range(done))
    assert sorted(second) == list(range(done, 27))
    assert first | second == expected


def test_a_run_that_was_killed_goes_on_with_the_same_losses(uninterrupted, config, tmp_path):
    """SIGKILL at no chosen moment, worker processes included; with two of them the order of batches is another one."""
    whole, output = tmp_path / "whole", tmp_path / "killed"
    more = ("--data.workers", "2", "--save_every", "1", "--trainer.limit_val_batches", "0")
    assert fit(config, whole, *more) == 0
    expected = losses(whole)
    command = [sys.executable, "-m", "training", "fit", "--config", str(config), "--output", str(output), *more]
    slow = ["--trainer.callbacks", "[{class_path: tests.training_stop.Slow}]"]
    log = output / "logs" / "version_0" / "metrics.csv"
    process = subprocess.Popen([*command, *slow], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    last = output / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    try:
        while not (last.exists() and log.exists() and len(losses(output)) >= 5):
            assert process.poll() is None and time.monotonic() < deadline, "the run ended or hung before it was killed"
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert fit(config, output, *more, "--ckpt_path", "last") == 0
    again = losses(output, 1)
    assert max(again) == 23 and 0 < min(again) < 23  # 8 steps an epoch: 2 workers x 4 batches
    assert again == {step: expected[step] for step in again}


def test_a_run_starts_from_the_weights_of_another(uninterrupted, config, tmp_path, capsys):
    """At next to no rate the weights stay as they were; on going on, the run's own checkpoint counts, not the start."""
    start, output = uninterrupted / "checkpoints" / "last.ckpt", tmp_path / "run"
    still = ("--model.optimizer.rate", "1e-30", "--model.optimizer.final_rate", "0", "--trainer.limit_val_batches", "0")
    assert fit(config, output, *still, "--trainer.max_steps", "1", "--model.start", str(start)) == 0
    begun, given = (load(path).model for path in (output / "checkpoints" / "last.ckpt", start))
    expected = dict(given.named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in begun.named_parameters())
    more = ("--trainer.max_steps", "2", "--ckpt_path", "last", "--model.start", str(tmp_path / "gone"))
    assert fit(config, output, *still, *more) == 0
    capsys.readouterr()
    assert fit(config, tmp_path / "other", "--model.start", str(start), "--model.sizes.groups", "[4,3]") == 1
    assert "has groups (4, 2), this model (4, 3); set model.sizes.groups to [4, 2]" in capsys.readouterr().err


def test_a_checkpoint_named_by_its_path_brings_its_sizes(uninterrupted, config, tmp_path, capsys):
    """Whatever the configuration says of them; in the file they are called as they always were."""
    path = uninterrupted / "checkpoints" / "last.ckpt"
    sizes = torch.load(path, weights_only=True)["hyper_parameters"]
    assert sizes == {"model": dataclasses.asdict(GroupViTConfig(**MODEL))}
    run = ["validate", "--config", str(config), "--output", str(tmp_path), "--model.sizes.groups", "[4,3]"]
    assert main([*run, "--ckpt_path", str(path)]) == 0
    (tmp_path / "broken.ckpt").write_text("hello")
    capsys.readouterr()
    assert main([*run, "--ckpt_path", str(tmp_path / "broken.ckpt")]) == 1
    assert "broken.ckpt: not a checkpoint" in capsys.readouterr().err


def test_an_earlier_run_is_not_written_over(uninterrupted, config, capsys):
    """The same command goes on with it; at its end nothing is left to do, and the files stay as they are."""
    before = digests(uninterrupted)
    assert fit(config, uninterrupted) == 0
    assert digests(uninterrupted) == before
    text = capsys.readouterr().out
    assert f"Going on at step 27, from {uninterrupted}/checkpoints/last.ckpt" in text
    assert "This run is at its end, step 27" in text


def test_validation_is_zero_shot_segmentation(config, tmp_path, capsys):
    benchmark = own(tmp_path / "bench", 3)
    output = tmp_path / "run"
    assert fit(config, output, "--trainer.max_epochs", "1", "--model.validation.benchmark", str(benchmark)) == 0
    text = capsys.readouterr().out
    assert "miou" in text and "samples/s" in text and "waited for data" in text
    results = tmp_path / "results.json"
    checkpoint = output / "checkpoints" / "best.ckpt"
    assert evaluation(["--checkpoint", str(checkpoint), "--benchmarks", str(benchmark), "--output", str(results),
                       "--device", "cpu"]) == 0  # fmt: skip
    measured = json.loads(results.read_text())["benchmarks"]["mine"]["miou"]
    with open(output / "logs" / "version_0" / "metrics.csv") as stream:
        logged = [float(row["val/miou"]) for row in csv.DictReader(stream) if row.get("val/miou")]
    assert logged == [pytest.approx(measured, rel=1e-5)]
    capsys.readouterr()
    arguments = ["--config", str(config), "--output", str(output), "--model.validation.benchmark", str(benchmark)]
    assert main(["validate", *arguments, "--ckpt_path", "best"]) == 0
    assert f"{measured:.2f}"[:4] in capsys.readouterr().out


def test_options_of_training_are_used(config, tmp_path):
    """bf16, accumulation, activations computed again, prompts left out, prompts that an archive holds excused."""
    assert fit(config, tmp_path / "a", "--trainer.max_steps", "3", "--trainer.accumulate_grad_batches", "2",
               "--trainer.precision", "bf16-mixed", "--model.recompute", "true") == 0  # fmt: skip
    accumulated = losses(tmp_path / "a")
    assert float(accumulated[2][4]) > 1.6e-3  # a global batch of 16 doubles the rate
    content = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 6
    assert fit(config, tmp_path / "b", "--trainer.max_steps", "1", "--model.prompt_weight", "0") == 0
    with open(tmp_path / "b" / "logs" / "version_0" / "metrics.csv") as stream:
        assert not any(row.get("train/prompt_loss") for row in csv.DictReader(stream))
    short = ("--trainer.max_steps", "1", "--trainer.limit_val_batches", "0")
    assert fit(config, tmp_path / "c", *short, "--data.negatives", "outside", "--data.workers", "1") == 0
    assert fit(config, tmp_path / "d", *short, "--data.workers", "1") == 0
    outside, every = (losses(tmp_path / name)[0] for name in "cd")
    assert outside[1] == every[1] and float(outside[2]) < float(every[2])  # fewer negatives: less to be told apart


def test_compiled_towers_give_the_same_losses(config, uninterrupted, tmp_path, monkeypatch):
    import functools

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert fit(config, tmp_path / "run", "--trainer.max_steps", "1", "--trainer.limit_val_batches", "0",
               "--model.compile", "true") == 0  # fmt: skip
    assert float(losses(tmp_path / "run")[0][0]) == pytest.approx(float(losses(uninterrupted)[0][0]), rel=1e-5)


def test_two_processes_train_one_model(config, tmp_path):
    """A real run over gloo: both ranks end with the same weights, and no sample is seen twice."""
    output = tmp_path / "run"
    command = [sys.executable, "-m", "training", "fit", "--config", str(config), "--output", str(output)]
    command += [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--trainer.max_epochs",
        "1",
        "--data.batch_size",
        "4",
    ]
    ranks, one = tmp_path / "ranks", tmp_path / "one"
    ranks.mkdir()
    one.mkdir()
    command += with_callback("Ranks", folder=ranks)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "batch 4 x 2 devices" in run.stdout

    # A sample's augmentation follows from epoch and key: its pixels tell which it is, whoever reads it.
    assert fit(config, tmp_path / "alone", "--trainer.max_epochs", "1", *with_callback("Ranks", folder=one)) == 0
    (*first, weights), (*second, others) = ((ranks / f"{rank}.txt").read_text().split() for rank in (0, 1))
    *alone, _ = (one / "0.txt").read_text().split()
    assert len(first) == len(second) == 9 * 4
    assert len({*first, *second}) == 72 and {*first, *second} == {*alone}
    assert weights == others
    found = losses(output)
    assert sorted(found) == list(range(9))
    assert max(float(row[4]) for row in found.values()) == pytest.approx(1.6e-3, rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.sampler.temprature", "2"], "did you mean '--data.sampler.temperature'?"),
        (["--data.sampler.kind", "best"], "sampler.kind: 'best' is not one of cluster, top, weighted, caption"),
        (["--data.negatives", "some"], "data.negatives: 'some' is not one of all, outside"),
        (["--data.archives", "/nowhere"], "/nowhere: no manifest.json, so no finished curation; run cocu curate first"),
        (["--ckpt_path", "last"], "last.ckpt: no such checkpoint; train first"),
        (["--data.workers", "4"], "set data.workers to 3"),
        (["--data.batch_size", "100"], "data.batch_size: 100 is more than the 72 samples"),
        (["--model.validation.benchmark", "nowhere.yaml"], "nowhere.yaml"),
        (["--model.start", "/nowhere"], "/nowhere: no such checkpoint"),
        (["--model.optimizer.final_rate", "1"], "final_rate 1.0 between 0 and rate"),
        (["--model.optimizer.rate", "0"], "rate 0.0 must be above 0"),
        (["--model.sizes.patch_size", "7"], "not a multiple of patch_size"),
        (["--trainer.precision", "32", "--model.optimizer.rate", "1e9"], "the loss is nan at step"),
    ],
)
def test_mistakes_get_one_line(config, tmp_path, capsys, arguments, message):
    try:
        code = fit(config, tmp_path / "run", *arguments)
    except SystemExit as error:
        code = error.code
    assert code != 0
    text = capsys.readouterr().err
    assert message in text
    assert "Traceback" not in text


def test_an_unknown_key_of_a_file_gets_a_suggestion(config, tmp_path, capsys):
    values = yaml.safe_load(config.read_text())
    values["data"]["smapler"] = {"kind": "top"}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit):
        fit(tmp_path / "bad.yaml", tmp_path / "run")
    assert "did you mean 'data.sampler" in capsys.readouterr().err


def flat(values: dict, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("data", ["cc3m", "cc12m", "cc3m_cc12m_yfcc14m", "scenes", "demo"])
def test_a_configuration_differs_from_its_baseline_in_the_sampler_only(data):
    curated, baseline = (
        flat(yaml.safe_load((CONFIGS / f"{name}_{data}.yaml").read_text())) for name in ("cocu", "groupvit")
    )
    different = {key for key in {*curated, *baseline} if curated.get(key) != baseline.get(key)}
    small = data in ("demo", "scenes")
    excused = {"data.negatives"} if small else set()  # their archives excuse prompts as well
    assert different == {"data.sampler.kind", "output"} | excused
    assert (curated["data.sampler.kind"], baseline["data.sampler.kind"]) == ("cluster", "caption")


@pytest.mark.parametrize(
    "path", sorted({*CONFIGS.glob("*.yaml")} - {*CONFIGS.glob("dense_*.yaml")}), ids=lambda path: path.stem
)
def test_packaged_configurations_are_valid(path, capsys):
    sizes = CONFIGS / "sizes" / f"{path.stem.rpartition('_')[2]}.yaml"
    given = sizes.exists()
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(path), "--print_config"])
    assert ended.value.code in (0, None)
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["output"] == f"artifacts/training/{path.stem}"
    model = GroupViTModule.__init__.__annotations__
    assert "GroupViTConfig" in model["sizes"]
    assert (values["model"]["sizes"]["image_size"] == 224) == (not given)
    if given:  # a configuration is complete in itself
        expected = yaml.safe_load(sizes.read_text())["model"]["sizes"]
        assert {key: values["model"]["sizes"][key] for key in expected} == expected
    assert given == (path.stem.split("_", 1)[1] in ("scenes", "demo"))
    if path.stem.split("_", 1)[1] not in ("scenes", "demo"):  # the paper's: docs/method.md §5
        assert values["trainer"]["max_epochs"] == 30
        assert values["trainer"]["gradient_clip_val"] == 5.0
        assert values["model"]["optimizer"] == {
            "rate": 1.6e-3, "final_rate": 4e-5, "reference_batch": 4096, "warmup_epochs": 2.0, "weight_decay": 0.05,
            "betas": [0.9, 0.999],
        }  # fmt: skip
        assert values["data"]["sampler"]["concepts"] == 3


def test_the_start_of_the_demo_ships_with_it_and_has_its_sizes():
    start = ROOT / "training" / "starts" / "demo"
    assert sum(path.stat().st_size for path in start.iterdir()) < 10e6
    sizes = yaml.safe_load((CONFIGS / "sizes" / "demo.yaml").read_text())["model"]["sizes"]
    model = GroupViT(GroupViTConfig(**sizes))
    for name in ("cocu", "groupvit"):
        start_from(model, yaml.safe_load((CONFIGS / f"{name}_demo.yaml").read_text())["model"]["start"])
    theirs = load(start).model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())


def test_warm_up_keeps_its_share_of_a_shorter_run():
    assert warmup_steps(2, 30, 3000, 100) == 200
    assert warmup_steps(2, 30, 50, 100) == 3
    assert warmup_steps(2, -1, 5000, 100) == 200
    assert warmup_steps(0, 30, 3000, 100) == 0
    assert warmup_steps(5, 2, 100, 50) == 100  # a run shorter than its warm-up
    with pytest.raises(ValueError, match="final_rate"):
        OptimizerConfig(rate=1e-5)
