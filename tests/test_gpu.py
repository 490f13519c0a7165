"""The same on a GPU as on the CPU, within tolerances that are written here: ``make gpu``.

Without a GPU both sides are the CPU, which shows that the tests themselves work; what only a GPU can show is left out.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import benchmark_worlds as worlds
import numpy as np
import pytest
import torch
from loss_ranks import Towers, total
from tiny_groupvit import TINY
from tiny_world import jpeg

from curation.archive import ConceptArchive
from curation.base.devices import to_device
from curation.config import EncoderConfig
from curation.encoder import load
from curation.samples import Sample
from evaluation.benchmark import read_benchmark
from evaluation.evaluate import evaluate
from segmenters import groupvit
from segmenters.groupvit import GroupViT
from segmenters.text import arrange
from training.loss import contrastive_losses
from training.optimizer import adamw, parameter_groups

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parent.parent
GPUS = torch.cuda.device_count()
DEVICE = "cuda:0" if GPUS else "cpu"
only_on_a_gpu = pytest.mark.skipif(not GPUS, reason="PyTorch sees no GPU")

SMALLEST_COSINE = {"fp32": 1 - 1e-5, "fp16": 1 - 1e-4, "bf16": 1 - 1e-3}  # of an embedding to that on the CPU in fp32
SCORES = 5e-3  # between scores of archives: embeddings are stored in fp16
SAME_ARCHIVES = 0.95  # share of archives with the same concepts; others have ties among their neighbours
LOSS = 1e-4  # between losses in fp32, as a share of the loss: features of tiny models are small, and so lose digits
GRADIENTS = 1e-3  # between gradients in fp32, which are clipped to a norm of 1
SAME_MOVES = 0.99  # share of weights that a step of AdamW moves alike; others have gradients near zero
SAME_PIXELS = 0.999  # share of pixels of the same class; others are ties
RESUMED = 1e-3  # between losses of a resumed run and of one that was not: some sums on a GPU have no fixed order


# --- curation -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16", pytest.param("fp16", marks=only_on_a_gpu)])
def test_embeddings(precision, tiny_clip):
    samples = [Sample(str(number), jpeg(40 + number, a="red", b="blue"), f"thing {number}") for number in range(40)]
    texts = [f"a photo of {number} things" for number in range(20)]
    on_cpu = load(EncoderConfig(f"local-dir:{tiny_clip}", precision="fp32", batch_size=16, device="cpu"))
    expected = [*(row for batch in on_cpu.encode_samples(samples) for row in batch[1]), *on_cpu.encode_texts(texts)]

    there = load(EncoderConfig(f"local-dir:{tiny_clip}", precision=precision, batch_size=16, device=DEVICE))
    assert there.device == DEVICE
    found = [*(row for batch in there.encode_samples(samples) for row in batch[1]), *there.encode_texts(texts)]
    cosines = (np.array(expected) * np.array(found)).sum(1)
    assert cosines.min() >= SMALLEST_COSINE[precision]


def test_archives(world, finished, tmp_path):
    from pipelines.curate import main

    output = tmp_path / "out"
    options = ["--encoder.device", DEVICE, "--retrieval.device", DEVICE]
    assert main(["--data", str(world), "--output", str(output), "--runner", "inprocess", *options]) == 0
    ours, theirs = (ConceptArchive.open(str(folder)) for folder in (output, finished))
    same, count = 0, 0
    for shard in ours.shards:
        read = [archive.read(shard) for archive in (ours, theirs)]
        assert read[0].keys == read[1].keys
        for row in range(len(read[0])):
            parts = [archives.take(np.array([row])) for archives in read]
            found, expected = (dict(zip(part.concepts.tolist(), part.score.tolist(), strict=True)) for part in parts)
            count += 1
            if found.keys() == expected.keys():
                same += 1
                assert all(abs(found[concept] - expected[concept]) < SCORES for concept in found)
    assert same >= SAME_ARCHIVES * count


# --- training -----------------------------------------------------------------------------------------------------------


def step(model, device, compiled=False):
    """Loss, gradients, and how the weights move in a step of AdamW, in fp32."""
    model = copy.deepcopy(model).to(device).train()
    torch.manual_seed(1)
    encode_image = torch.compile(model.encode_image) if compiled else model.encode_image
    encode_texts = torch.compile(model.encode_texts) if compiled else model.encode_texts
    image = encode_image(to_device(torch.randn(4, 3, 32, 32), device))
    texts = (arrange(["a red fox", "grass", "two dogs", "sky"], 77), arrange(["a fox", "grass"] * 4, 77))
    captions, prompts = encode_texts([type(part)(*(to_device(ids, device) for ids in part)) for part in texts])
    losses = contrastive_losses(image, captions, prompts.unflatten(0, (4, 2)), model.scale, model.scale)
    optimizer = adamw(parameter_groups(model, 0.0), 1e-3)
    total(losses).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    gradients = {name: value.grad.cpu() for name, value in model.named_parameters()}

    before = [value.detach().clone() for value in model.parameters()]
    optimizer.step()
    moves = [(value.detach() - old).cpu().flatten() for value, old in zip(model.parameters(), before, strict=True)]
    return total(losses).item(), gradients, torch.cat(moves)


@pytest.fixture
def same_noise(monkeypatch):
    """Gumbel noise that is the same on every device, compiled or not: drawn beforehand, one for each number of groups."""
    draw = groupvit.gumbel_noise
    noises = {groups: {"cpu": draw(torch.empty(4, groups, 64))} for groups in TINY.groups}
    for noise in noises.values():
        noise[DEVICE] = noise["cpu"].to(DEVICE)
    monkeypatch.setattr(
        groupvit, "gumbel_noise", lambda like: noises[like.shape[1]][str(like.device)][..., : like.shape[2]]
    )


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=only_on_a_gpu)])
def test_training_step(compiled, same_noise):
    torch.manual_seed(0)
    model = GroupViT(dataclasses.replace(TINY, drop_path=0.0 if compiled else 0.4))
    expected, gradients, moves = step(model, "cpu")
    loss, found, moved = step(model, DEVICE, compiled)
    assert loss == pytest.approx(expected, rel=LOSS)
    for name, value in found.items():
        torch.testing.assert_close(value, gradients[name], atol=GRADIENTS, rtol=0, msg=name)
    assert torch.isclose(moved, moves, rtol=0.1).float().mean() >= SAME_MOVES


@only_on_a_gpu
def test_a_resumed_run_goes_on_where_it_stopped(finished, tmp_path):
    def fit(output, steps, *more):
        sizes = [f"--model.sizes.{key}={json.dumps(value)}" for key, value in dataclasses.asdict(TINY).items()]
        options = [f"--data.archives={finished}", "--data.batch_size=8", "--data.workers=0", "--data.shuffle=8"]
        options += [f"--output={output}", f"--trainer.max_steps={steps}", "--trainer.log_every_n_steps=1"]
        options += ["--trainer.accelerator=gpu", "--trainer.devices=1", "--trainer.precision=bf16-mixed"]
        command = [sys.executable, "-m", "training", "fit", *sizes, *options, *more]
        subprocess.run(command, cwd=ROOT, check=True)
        return torch.load(output / "checkpoints" / "last.ckpt", map_location="cpu")["state_dict"]

    whole = fit(tmp_path / "whole", 6, "--save_every=1")
    fit(tmp_path / "parts", 3, "--save_every=1")
    resumed = fit(tmp_path / "parts", 6, "--save_every=1", "--ckpt_path=last")
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=RESUMED, rtol=RESUMED, msg=name)


@pytest.mark.skipif(GPUS < 2, reason="PyTorch sees fewer than two GPUs")
def test_two_gpus_train_one_model(tmp_path):
    torch.manual_seed(0)
    network = Towers(6).double()
    inputs = torch.randn(8, 4, 6, dtype=torch.float64)
    torch.save({"inputs": inputs, "weights": network.state_dict(), "concepts": None}, tmp_path / "inputs.pt")
    total(network(inputs, 0, 1, False)).backward()
    code = "import sys, loss_ranks as r; r.train_share(int(sys.argv[1]), 2, sys.argv[2], False, 'nccl')"
    command = [sys.executable, "-c", code]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)], cwd=ROOT / "tests") for rank in range(2)]
    assert [process.wait() for process in ranks] == [0, 0]
    for rank in range(2):
        gradients = torch.load(tmp_path / f"{rank}.pt", map_location="cpu")["gradients"]
        for name, value in network.named_parameters():
            torch.testing.assert_close(gradients[name], value.grad, atol=1e-9, rtol=0, msg=name)


# --- evaluation ---------------------------------------------------------------------------------------------------------


def test_evaluation(tmp_path):
    torch.manual_seed(0)
    model = GroupViT(TINY).eval()
    benchmark = read_benchmark(str(worlds.own(tmp_path)), "")
    expected = evaluate(model, benchmark).confusion
    found = evaluate(copy.deepcopy(model).to(DEVICE), benchmark).confusion
    assert found.sum() == expected.sum() > 0
    assert torch.minimum(found, expected).sum() >= SAME_PIXELS * expected.sum()


# --- the benchmark ------------------------------------------------------------------------------------------------------


def test_the_benchmark_runs_at_tiny_sizes(tmp_path):
    page = tmp_path / "GPU.md"
    command = [sys.executable, "benchmarks/gpu.py", "--tiny", "--output", str(page)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    text = page.read_text()
    for title in ("## Embedding", "## Search", "## Training"):
        assert title in text
    rates = [float(cell) for line in text.splitlines() for cell in line.split("|")[2:3] if cell.strip()[:1].isdigit()]
    assert len(rates) >= 4
    assert all(rate > 0 for rate in rates)
