"""Training the places of a CLIP by archives: losses against plain loops, labels, and runs of the command line."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import yaml
from tiny_clip import save_clip, tiny_clip
from training_runs import with_callback

from curation.archive import ConceptArchive, Sampler
from curation.base.errors import CocuError
from segmenters.opening import open_segmenter
from segmenters.pretrained import save_folder
from training.cli import main, names_encoder
from training.dense import DenseModule, choose, train_only
from training.labels import LabelDataModule, positives
from training.negatives import NONE, concept_id, concept_ids
from training.places import POOLINGS, image_loss, place_loss
from training.stream import TrainingSample

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "training" / "configs"
RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(3, 4, 6))  # images, concepts, places
POSITIVE = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
UNKNOWN = np.array([[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- losses ---------------------------------------------------------------------------------------------------------------


def literal_pool(kind: str, row: np.ndarray, sharpness: float) -> float:
    if kind == "smooth":
        return math.log(sum(math.exp(sharpness * x) for x in row) / len(row)) / sharpness
    if kind == "top":
        count = max(1, round(len(row) / sharpness))
        return sum(sorted(row)[-count:]) / count
    some = 1 - math.prod(1 - sigmoid(x) for x in row)
    return math.log(some / (1 - some))


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("sharpness", [1.0, 3.0, 10.0])
def test_poolings_equal_their_formulas(kind, sharpness):
    found = POOLINGS[kind].function(torch.from_numpy(LOGITS), sharpness).numpy()
    expected = [[literal_pool(kind, row, sharpness) for row in image] for image in LOGITS]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_smooth_maximum_is_between_mean_and_maximum():
    pool = POOLINGS["smooth"].function
    logits = torch.from_numpy(LOGITS)
    torch.testing.assert_close(pool(logits, 0.0), logits.mean(-1))
    torch.testing.assert_close(pool(logits, 1e4), logits.amax(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", POOLINGS)
def test_poolings_of_extreme_logits_are_finite_with_finite_gradients(kind):
    logits = torch.tensor([[[-80.0, -90.0], [80.0, 90.0]]], requires_grad=True)
    pooled = POOLINGS[kind].function(logits, 3.0)
    image_loss(pooled, torch.tensor([[True, False]]), torch.zeros(1, 2, dtype=torch.bool)).backward()
    assert pooled.isfinite().all()
    assert logits.grad.isfinite().all()


def test_the_image_loss_knows_positives_unknowns_and_negatives():
    pooled = LOGITS[:, :, 0]
    total = 0.0
    for image in range(3):
        for concept in range(4):
            if POSITIVE[image, concept]:
                total -= math.log(sigmoid(pooled[image, concept]))
            elif not UNKNOWN[image, concept]:
                total -= math.log(1 - sigmoid(pooled[image, concept]))
    found = image_loss(*map(torch.from_numpy, (pooled, POSITIVE, UNKNOWN)))
    assert float(found) == pytest.approx(total / 3)


def test_unknown_concepts_get_no_gradient():
    pooled = torch.from_numpy(LOGITS[:, :, 0].copy()).requires_grad_()
    image_loss(pooled, torch.from_numpy(POSITIVE), torch.from_numpy(UNKNOWN)).backward()
    left_out = UNKNOWN & ~POSITIVE
    assert left_out.any()
    assert (pooled.grad.numpy() == 0).tolist() == left_out.tolist()


def test_the_place_loss_keeps_places_to_what_is_possible():
    possible = POSITIVE | UNKNOWN
    terms = []
    for image in range(2):  # the third has nothing
        for place in range(6):
            exponentials = [math.exp(x) for x in LOGITS[image, :, place]]
            inside = sum(x for x, allowed in zip(exponentials, possible[image], strict=True) if allowed)
            terms.append(-math.log(inside / sum(exponentials)))
    found = place_loss(torch.from_numpy(LOGITS), torch.from_numpy(possible))
    assert float(found) == pytest.approx(sum(terms) / len(terms))
    logits = torch.from_numpy(LOGITS).requires_grad_()
    place_loss(logits, torch.zeros(3, 4, dtype=torch.bool)).backward()
    assert not logits.grad.any()


# --- labels ---------------------------------------------------------------------------------------------------------------


def test_positives_are_the_captions_and_the_drawn_each_once():
    assert positives(np.array([5, 3]), np.array([3, NONE, 9])).tolist() == [3, 5, 9]


def test_what_is_needed_is_chosen_and_others_fill_up():
    ids = torch.arange(0, 200, 2)
    needed = torch.tensor([[4, 100, NONE], [7, 198, NONE]])  # 7 is no concept
    chosen = choose(ids, needed, 10)
    assert len(chosen) == 10 and (chosen.diff() > 0).all()
    assert {2, 50, 99} <= set(chosen.tolist())
    assert choose(ids, ids[None, :30], 10).tolist() == list(range(30))
    assert choose(ids, needed, 100).tolist() == list(range(100))


@pytest.fixture(scope="module")
def batch(finished):
    data = LabelDataModule(
        str(finished), sampler=Sampler("top", 2), negatives="outside", batch_size=4, workers=0, image_size=32
    )
    data.setup("fit")
    run = ConceptArchive.open(finished)
    outcomes = data.stream(data.shards, data.sampler, 0, 0, True, data.negatives).read(data.plan.spans(0, 0, 0), 0, 0)
    return data, run, [outcome for outcome in outcomes if isinstance(outcome, TrainingSample)]


def test_labels_are_those_of_the_archives(batch):
    data, run, samples = batch
    assert data.vocabulary == sorted(run.vocabulary)
    more = 0
    for sample in samples:
        shard, key = sample.where.split(": ")
        name = shard.rsplit("/", 1)[1].removesuffix(".tar")
        archives, captions = run.read(name), run.read(name, mentioned=True)
        row = archives.keys.index(key)
        names = [archives.names[c] for c in archives.concepts[archives.offsets[row] : archives.offsets[row + 1]]]
        said = [captions.names[c] for c in captions.concepts[captions.offsets[row] : captions.offsets[row + 1]]]
        assert set(sample.concepts.drawn.tolist()) == {concept_id(word) for word in [*said, *names[:2]]}
        assert set(sample.concepts.held.tolist()) == {concept_id(word) for word in names}
        more += len(set(sample.concepts.held.tolist()) - set(sample.concepts.drawn.tolist()))
    assert more > 0


def test_labels_need_archives(world):
    data = LabelDataModule(shards=[str(world.parent / "00000.tar")], require_archives=False, batch_size=4, workers=0)
    data.setup("fit")
    with pytest.raises(CocuError, match=r"data.archives: missing; the places of a CLIP learn concepts"):
        _ = data.vocabulary


def test_labels_after_the_epochs_of_the_sampler_are_those_of_captions(batch):
    data, run, samples = batch
    stream = data.stream(data.shards, data.sampler, 0, 0, True, data.negatives, sampler_epochs=1)
    outcomes = stream.read(data.plan.spans(0, 0, 0), 1, 0)
    later = {outcome.where: outcome for outcome in outcomes if isinstance(outcome, TrainingSample)}
    fewer = 0
    for sample in samples:
        shard, key = sample.where.split(": ")
        captions = run.read(shard.rsplit("/", 1)[1].removesuffix(".tar"), mentioned=True)
        row = captions.keys.index(key)
        said = [captions.names[c] for c in captions.concepts[captions.offsets[row] : captions.offsets[row + 1]]]
        labels = later[sample.where].concepts
        assert set(labels.drawn.tolist()) == {concept_id(word) for word in said}
        assert labels.held.tolist() == sample.concepts.held.tolist()  # what is excused stays
        fewer += len(sample.concepts.drawn) > len(labels.drawn)
    assert fewer > 0


# --- runs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["transformer", "timm", "resnet"])
def test_only_what_is_tuned_is_trained(kind):
    model = tiny_clip(kind)
    train_only(model, "projection", learn_scale=False)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    assert trained and all("proj" in name or "ln_post" in name for name in trained)
    train_only(model, "all", learn_scale=True)
    model.encode_places(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, value in model.named_parameters():
        assert not value.requires_grad or value.grad is not None or name.endswith("logit_scale"), name
    assert not any(
        value.requires_grad for name, value in model.clip.named_parameters() if name.startswith("transformer.")
    )


@pytest.fixture(scope="module")
def arguments(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dense")
    clip = save_clip(tiny_clip("timm"), folder / "clip")
    config = folder / "dense.yaml"
    model = {"encoder": f"local-dir:{clip}", "stride": 16, "size": 64, "concepts": 3, "place_weight": 0.5}
    data = {"archives": str(finished), "batch_size": 4, "workers": 0, "negatives": "outside"}
    trainer = {"max_epochs": 1, "num_sanity_val_steps": 0, "accelerator": "cpu", "log_every_n_steps": 1}
    config.write_text(json.dumps({"model": model, "data": data, "trainer": trainer}))
    return ["fit", "--config", str(config)]


def test_a_run_makes_a_checkpoint_for_evaluation_and_for_open_clip(arguments, tmp_path, capsys):
    from segmenters.convert import main as convert

    assert main([*arguments, "--output", str(tmp_path / "run"), "--trainer.max_steps", "3"]) == 0
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    opened = open_segmenter(path)
    assert (opened.kind, opened.model.tower.stride, opened.model.config.image_size) == ("lightning", 16, 64)

    assert convert([str(path), str(tmp_path / "folder")]) == 0
    exported = open_segmenter(tmp_path / "folder")
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(exported.model.encode_places(pixels), opened.model.encode_places(pixels))
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'folder'}")
    assert torch.equal(theirs.visual.head.proj.weight, opened.model.clip.visual.head.proj.weight)


def test_a_grouping_head_is_learnt_and_kept(arguments, tmp_path):
    fit = [*arguments, "--model.groups", "3", "--trainer.limit_val_batches", "0", "--trainer.max_steps"]
    assert main([*fit, "2", "--output", str(tmp_path / "run")]) == 0
    opened = open_segmenter(tmp_path / "run").model
    content = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    moments = [state["exp_avg"] for state in content["optimizer_states"][0]["state"].values()]
    assert any(moment.shape == (3, 12) and moment.any() for moment in moments)  # the centres had gradients
    assert torch.equal(content["state_dict"]["model.grouping.centres"], opened.grouping.centres)

    save_folder(opened, tmp_path / "folder")
    again = DenseModule(f"local-dir:{tmp_path / 'folder'}")  # its head goes on from where it was
    assert torch.equal(again.model.grouping.centres, opened.grouping.centres)
    assert DenseModule(f"local-dir:{tmp_path / 'folder'}", groups=5).model.grouping.centres.shape == (5, 12)


def test_a_run_has_the_sampler_in_its_first_epochs_only(arguments, tmp_path, capsys, monkeypatch):
    labels = {0: 0, 1: 0, 2: 0}
    losses = DenseModule.losses

    def counted(self, batch):
        labels[self.current_epoch] += int((batch.concepts.drawn != NONE).sum())
        return losses(self, batch)

    monkeypatch.setattr(DenseModule, "losses", counted)
    limits = ["--trainer.limit_val_batches", "0", "--trainer.max_epochs", "3", "--data.sampler_epochs", "1"]
    assert main([*arguments, "--output", str(tmp_path / "run"), *limits]) == 0
    assert "sampler cluster in the first epoch, then caption" in " ".join(capsys.readouterr().out.split())
    assert labels[0] > labels[1] == labels[2] > 0  # every epoch has the same samples


def test_two_processes_train_one_model(arguments, tmp_path):
    """A real run over gloo, of batches of two: the same weights on both ranks, and no sample seen twice."""
    ranks = tmp_path / "ranks"
    ranks.mkdir()
    command = [sys.executable, "-m", "training", *arguments, "--output", str(tmp_path / "run"), "--model.groups", "3"]
    command += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
    run = subprocess.run(
        [*command, *with_callback("Ranks", folder=ranks)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (*first, weights), (*second, others) = ((ranks / f"{rank}.txt").read_text().split() for rank in (0, 1))
    assert weights == others
    assert len(first) == len(second) and len({*first, *second}) == 72


def test_a_resumed_run_repeats_the_uninterrupted_one(arguments, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit = [*arguments, "--trainer.limit_val_batches", "0", "--trainer.limit_train_batches", "4", "--save_every", "1"]
    assert main([*fit, "--output", str(whole)]) == 0
    stop = "[{class_path: tests.training_stop.StopAt, init_args: {step: 2}}]"
    assert main([*fit, "--output", str(parts), "--trainer.callbacks", stop]) == 0
    assert main([*fit, "--output", str(parts), "--ckpt_path", "last"]) == 0
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (whole, parts)]
    assert states[0]["global_step"] == states[1]["global_step"] == 4
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


@pytest.fixture(scope="module")
def begun(arguments, tmp_path_factory):
    """One step of a run, in its folder."""
    output = tmp_path_factory.mktemp("begun") / "run"
    assert (
        main([*arguments, "--output", str(output), "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]) == 0
    )
    return output


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.groups", "3"], "model.groups: null -> 3; set them as they were"),
        (["--model.tune", "projection"], "model.tune: all -> projection"),
        (["--model.learn_scale", "false"], "model.learn_scale: true -> false"),
        (["--model.encoder", "{vit}", "--model.stride", "null"], "weights of another model; set model as it was"),
    ],
)
def test_a_run_does_not_go_on_with_another_model(begun, arguments, extra, message, tmp_path, capsys):
    vit = f"local-dir:{save_clip(tiny_clip('transformer'), tmp_path / 'vit')}"
    before = (begun / "checkpoints" / "last.ckpt").read_bytes()
    options = [word.format(vit=vit) for word in extra]
    assert main([*arguments, "--output", str(begun), "--trainer.max_steps", "2", *options]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert message in text and "last.ckpt: " in text and "--resume no" in text
    assert (begun / "checkpoints" / "last.ckpt").read_bytes() == before


def test_other_readings_train_other_weights(arguments, tmp_path, capsys):
    """MaskCLIP passes the second half of the last block, which NACLIP leaves out: the optimizer has no state of it."""
    vit = f"local-dir:{save_clip(tiny_clip('transformer'), tmp_path / 'vit')}"
    fit = [*arguments, "--model.encoder", vit, "--model.stride", "null", "--output", str(tmp_path / "run")]
    fit += ["--trainer.limit_val_batches", "0", "--trainer.max_steps"]
    assert main([*fit, "1"]) == 0
    assert main([*fit, "2", "--model.reading", "maskclip"]) == 1
    assert "last.ckpt: this run trained other weights" in capsys.readouterr().err


def test_the_checkpoint_of_the_other_kind_of_model_is_refused(begun, arguments, tiny_training, tmp_path, capsys):
    assert main(["validate", "--config", str(tiny_training), "--output", str(begun), "--ckpt_path", "last"]) == 1
    assert "last.ckpt: a checkpoint of a CLIP's places (model.encoder), but this" in capsys.readouterr().err
    output = ["--output", str(tmp_path), "--trainer.limit_val_batches", "0", "--trainer.max_steps", "1"]
    assert main(["fit", "--config", str(tiny_training), *output]) == 0
    assert main([*arguments, *output]) == 1
    assert "last.ckpt: a checkpoint of a GroupViT, but this configuration trains a CLIP's" in capsys.readouterr().err


def test_a_validation_without_scores_prints_no_line(arguments, tmp_path, capsys):
    assert main([*arguments, "--output", str(tmp_path), "--trainer.limit_train_batches", "1"]) == 0
    assert "step 1:" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.validation.batch_size", "0"], "validation.batch_size: 0 must be at least 1"),
        (["--model.validation.limit", "-5"], "validation.limit: -5 must be at least 1"),
        (["--model.stride", "0"], "stride: 0 must be at least 1"),
        (["--model.pooling", "mean"], "model.pooling"),
        (["--model.tune", "none"], "model.tune"),
        (["--model.encoder", "local-dir:nowhere"], "open_clip_config.json: missing"),
        (["--model.stride", "5"], "asked for 5"),
        (["--model.size", "0"], "model.size: 0 must be at least 1"),
        (["--data.sampler_epochs", "0"], "data.sampler_epochs: 0 must be at least 1"),
    ],
)
def test_mistakes_are_one_line(arguments, extra, message, tmp_path, capsys):
    assert main([*arguments, "--output", str(tmp_path), *extra]) != 0
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("dense_*.yaml")), ids=lambda path: path.stem)
def test_packaged_configurations_are_valid(path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(path), "--print_config"])
    assert ended.value.code in (0, None)
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["output"] == f"artifacts/training/{path.stem}"
    assert (values["data"]["sampler"]["kind"], values["data"]["negatives"]) == ("top", "outside")
    command = subprocess.run(
        ["make", "-n", "train", f"CONFIG={path}"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"--config '{path}'" in command.stdout and "sizes" not in command.stdout


def test_an_encoder_decides_what_is_trained(arguments):
    assert names_encoder(arguments)
    assert names_encoder(["fit", "--model.encoder=open_clip:ViT-B-16/openai"])
    assert names_encoder(["fit", "--model.encoder", "open_clip:ViT-B-16/openai"])
    assert names_encoder(["fit", "-c", arguments[2]])
    assert names_encoder({"model": {"encoder": "local-dir:clip"}})
    assert names_encoder({"subcommand": "fit", "fit": {"model": {"encoder": "local-dir:clip"}, "data": None}})
    assert not names_encoder(["fit", "--config", "training/configs/cocu_demo.yaml"])
    assert not names_encoder({"subcommand": "fit", "fit": {"model": {"sizes": {}}}})
    assert len(concept_ids(["fox"])) == 2
