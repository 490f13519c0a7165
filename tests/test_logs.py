"""What people look at: the HPARAMS tab, pictures of each validation, one run a folder; Weights & Biases."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
from benchmark_worlds import own as own_benchmark
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from training_runs import fit, losses, with_callback

from curation.archive import ConceptArchive
from training.logs import Board, newest_board
from training.pictures import omitted_samples
from training.stream import TrainingShard

SHORT = ("--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.check_val_every_n_epoch", "null")


def events(output: Path) -> EventAccumulator:
    """TensorBoard's view of the only run in a folder."""
    (folder,) = {path.parent for path in (output / "logs").rglob("events.out.tfevents.*")}
    return EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()


def hyperparameters(board: EventAccumulator) -> tuple[dict, list[str]]:
    """Values by name, and the tags of the metrics, as the plugin reads them."""
    data = board.PluginTagToContent("hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(data[metadata.SESSION_START_INFO_TAG]).session_start_info
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    experiment = plugin_data_pb2.HParamsPluginData.FromString(data[metadata.EXPERIMENT_TAG]).experiment
    return values, [info.name.tag for info in experiment.metric_infos]


def test_settings_stand_beside_the_metrics_and_pictures_are_the_same_at_each_validation(tiny_training, tmp_path):
    output = tmp_path / "run"
    benchmark = own_benchmark(tmp_path / "bench", 4)
    options = (
        *SHORT,
        "--model.validation.benchmark",
        str(benchmark),
        "--pictures",
        "2",
        "--model.optimizer.rate",
        "0.001",
    )
    assert fit(tiny_training, output, *options) == 0
    board = events(output)
    values, metrics = hyperparameters(board)
    assert (values["model.optimizer.rate"], values["data.batch_size"]) == (0.001, 8)
    assert values["model.validation.benchmark"] == str(benchmark)
    assert metrics == ["val/score", "val/miou", "train/loss"]
    assert set(metrics) <= set(board.Tags()["scalars"])  # the values are those of the scalars
    assert len(board.Scalars("val/miou")) == 2

    tags = board.Tags()["images"]
    assert [tag for tag in tags if tag.startswith("validation/")] == ["validation/i0", "validation/i1"]
    assert len([tag for tag in tags if tag.startswith("omitted/")]) == 2
    for tag in tags:
        assert [event.step for event in board.Images(tag)] == [2, 4]
        with Image.open(io.BytesIO(board.Images(tag)[0].encoded_image_string)) as picture:
            assert picture.width > 600  # several panels


def test_no_pictures_where_none_are_asked_for(tiny_training, tmp_path):
    assert fit(tiny_training, tmp_path / "run", *SHORT, "--pictures", "0") == 0
    board = events(tmp_path / "run")
    assert board.Tags()["images"] == []
    assert hyperparameters(board)[1] == ["val/score", "val/retrieval_accuracy", "train/loss"]


def test_pictures_show_what_captions_omit(finished):
    """The best concepts of archives that the captions do not name, as the files say; a shard without archives has none."""
    archive = ConceptArchive.open(str(finished))
    shards = tuple(TrainingShard(source, archive) for source in archive.sources)
    found = list(omitted_samples(shards, 3))
    rows = {row["key"]: row for row in archive.table(archive.shards[0]).to_pylist()}
    said = archive.read(archive.shards[0], mentioned=True)
    assert len(found) == 3
    for sample in found:
        number = said.keys.index(sample.key)
        mentioned = {said.names[c] for c in said.concepts[said.offsets[number] : said.offsets[number + 1]]}
        expected = [item["concept"] for item in rows[sample.key]["concepts"] if item["concept"] not in mentioned]
        assert sample.concepts == expected[:3] and sample.concepts
        assert not any(name in rows[sample.key]["caption"] for name in sample.concepts)
    assert list(omitted_samples((TrainingShard(archive.sources[0], None),), 3)) == []


def test_a_run_that_goes_on_stays_one_run(tiny_training, tmp_path):
    """Interrupted at step 3 with a checkpoint of step 2: what was logged at step 2 is there once."""
    output = tmp_path / "run"
    options = ("--trainer.limit_val_batches", "0", "--save_every", "2", "--pictures", "0")
    stop = with_callback("Spoil", steps="[3]")
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "6", *stop) == 1
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "6") == 0
    board = events(output)
    assert [event.step for event in board.Scalars("train/loss")] == list(range(6))
    assert newest_board(str(output)) == 0
    assert (sorted(losses(output)), sorted(losses(output, 1))) == ([0, 1, 2], [2, 3, 4, 5])  # CSV: a file for each part
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "2", "--resume", "no") == 0
    assert newest_board(str(output)) == len(list((output / "logs").glob("version_*"))) - 1 > 0  # another run


def test_a_log_that_is_opened_again_hides_nothing_that_was_written_since(tmp_path):
    board = Board(tmp_path, name="logs", version=0, purge_step=2)
    board.log_metrics({"loss": 1.0}, 2)
    board.save()
    with board._reopening():
        raise OSError("no space left")  # said in a line, not raised
    board._paused_until = 0.0
    board.log_metrics({"loss": 2.0}, 3)
    board.finalize("success")
    assert [event.step for event in events(tmp_path).Scalars("loss")] == [2, 3]


def test_weights_and_biases_is_refused_where_it_is_not_installed(tiny_training, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert fit(tiny_training, tmp_path / "run", *SHORT, "--wandb", "cocu") == 1
    assert "wandb: the package is not installed; run pip install wandb" in capsys.readouterr().err
    own = ("--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path))
    assert fit(tiny_training, tmp_path / "run", *SHORT, "--wandb", "cocu", *own) == 1
    assert "wandb: trainer.logger names the loggers already" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install cocu[wandb]")
def test_weights_and_biases_offline_is_one_run_with_settings_and_pictures(tiny_training, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    output = tmp_path / "run"
    options = (*SHORT, "--wandb", "cocu", "--pictures", "1")
    assert fit(tiny_training, output, *options) == 0
    identity = json.loads((output / "logs" / "wandb.json").read_text())["id"]
    (folder,) = (output / "logs" / "wandb").glob(f"offline-run-*-{identity}")
    assert list(folder.glob("*.wandb")) and list(folder.rglob("*.png"))
    assert fit(tiny_training, output, *options, "--trainer.max_steps", "6") == 0
    assert json.loads((output / "logs" / "wandb.json").read_text())["id"] == identity
