"""What would run on a GPU, on one that is not there: devices, operations, and what makes the host wait."""

from __future__ import annotations

import ast
import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pretended_gpu import DEVICE, OnGpu, pretended_gpu
from tiny_groupvit import TINY
from tiny_world import jpeg

from curation.config import EncoderConfig
from curation.encoder import Encoder
from curation.index.lists import Lists
from curation.index.search import search_lists
from curation.samples import Sample
from evaluation import inference, metric
from segmenters import transformer
from segmenters.groupvit import GroupViT
from segmenters.text import arrange
from training.batches import Batch
from training.module import GroupViTModule
from training.negatives import SampleConcepts, stack
from training.optimizer import adamw, parameter_groups

ROOT = Path(__file__).parent.parent
CAPTIONS = ["a red fox on a rock", "grass", "two dogs and a bus in the rain", "sky"]
PROMPTS = ["a photo of a fox.", "a photo of grass."] * 4


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


# --- the pretended GPU itself -------------------------------------------------------------------------------------------


def test_a_tensor_on_another_device_is_an_error():
    with pretended_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        with pytest.raises(RuntimeError, match="tensors on cuda:0 and on cpu"):
            there + here
        assert (there + torch.tensor(1.0)).device == DEVICE  # a scalar may be anywhere
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize(
    ("work", "waits"),
    [
        (lambda x: x.item(), 1),
        (lambda x: bool(x > 0), 1),
        (lambda x: x.expand(4).nonzero(), 1),
        (lambda x: x.expand(4)[x.expand(4) > 0], 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.ones(2).to(x.device), 1),
        (lambda x: torch.ones(2).to(x.device, non_blocking=True), 0),
        (lambda x: (x * 2).sum().softmax(0), 0),
    ],
)
def test_what_makes_the_host_wait_is_noted(work, waits):
    with pretended_gpu() as gpu:
        x = torch.ones((), device="cuda")
        work(x)
        assert len(gpu.waits) == waits


@pytest.mark.skipif(not torch.version.cuda, reason="only a build for CUDA knows which kernels there are")
def test_an_operation_without_a_kernel_for_cuda_is_an_error():
    with pretended_gpu(), pytest.raises(NotImplementedError, match="no kernel for CUDA"):
        torch.ops.aten.mkldnn_linear(torch.ones(2, 2, device="cuda"), torch.ones(2, 2, device="cuda"))


# --- training -----------------------------------------------------------------------------------------------------------


def batch_of(seed):
    """Four samples with two prompts each; archives that hold some of what the prompts say."""
    generator = torch.Generator().manual_seed(seed)
    held = [np.array([5, 9]), np.array([], np.int64), np.array([7]), np.array([5])]
    drawn = np.array([[5, 7], [5, -1], [7, 5], [9, 5]])
    concepts = stack([SampleConcepts(*pair) for pair in zip(drawn, held, strict=True)])
    pixels = torch.randn(4, 3, 32, 32, generator=generator)
    return Batch(pixels, arrange(CAPTIONS, 77), arrange(PROMPTS, 77), {}, concepts)


def module_of(drop_path):
    torch.manual_seed(0)
    return GroupViTModule(dataclasses.replace(TINY, drop_path=drop_path))


def on_trainer(module, optimizer):
    """The parts of Lightning's trainer that a step looks at; returns what the step logs."""
    logged = {}
    module._trainer = SimpleNamespace(
        world_size=1, global_rank=0, global_step=1, log_every_n_steps=50, optimizers=[optimizer], strategy=None
    )
    module.log_dict = lambda values, **_: logged.update(values)
    return logged


def train(module, batches, autocast):
    """One step of the optimizer: two batches accumulated, gradients clipped. Returns what was logged."""
    optimizer = adamw(parameter_groups(module, 0.05), 1e-3)
    logged = on_trainer(module, optimizer)
    for number, batch in enumerate(batches):
        torch.manual_seed(number)  # of drop path and grouping
        with torch.autocast("cuda" if batch.pixels.is_cuda else "cpu", torch.bfloat16, enabled=autocast):
            loss = module.training_step(batch, number)
        (loss / len(batches)).backward()
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    return logged | {"norm": norm}


def move(batch):
    """A batch as Lightning moves it."""
    module = GroupViTModule(TINY, prompt_weight=0.0)
    return module.transfer_batch_to_device(batch, DEVICE, 0)


@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_step_stays_on_the_gpu_and_never_waits(autocast, drop_path=0.6):
    expected = module_of(drop_path)
    train(expected, [batch_of(1), batch_of(2)], autocast)

    module = module_of(drop_path)
    with pretended_gpu() as gpu:
        module.to("cuda")
        batches = [move(batch_of(1)), move(batch_of(2))]
        gpu.waits.clear()
        logged = train(module, batches, autocast)
        assert gpu.waits == []
        assert {type(value) for value in logged.values()} == {OnGpu}  # Lightning copies numbers there, and waits

    for name, value in module.named_parameters():
        assert isinstance(value, OnGpu), name
        theirs = dict(expected.named_parameters())[name]
        # In bf16 attention is computed by another kernel than on a CPU; Adam's first step is of one size everywhere.
        torch.testing.assert_close(value.held, theirs, atol=2.1e-3 if autocast else 1e-5, rtol=0, msg=name)


def test_on_a_gpu_texts_of_all_lengths_are_one_pass_and_attention_is_without_plans(monkeypatch):
    """A pass is some thousand kernels to start, and a plan of cuDNN for each new shape takes seconds."""
    rows, plans, real = [], [], transformer.F.scaled_dot_product_attention

    def attention(q, k, v, **options):
        rows.append(len(q))
        plans.append(torch.backends.cuda.cudnn_sdp_enabled())
        return real(q, k, v, **options)

    model = GroupViT(TINY).eval()
    texts = [arrange(CAPTIONS, 77), arrange(PROMPTS[:3], 77)]
    assert [len(matrix) for some in texts for matrix in some.matrices] == [2, 2, 1, 2]
    with torch.no_grad():
        expected = model.encode_texts(texts)
    monkeypatch.setattr(transformer.F, "scaled_dot_product_attention", attention)
    with torch.no_grad(), pretended_gpu():
        found = model.to("cuda").encode_texts([type(some)(*(ids.to("cuda") for ids in some)) for some in texts])
        assert rows == [7] * TINY.text_layers
        assert plans == [False] * TINY.text_layers
    assert torch.backends.cuda.cudnn_sdp_enabled()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.held, theirs)


def test_validation_never_waits():
    module = module_of(0.0).eval()
    expected = on_trainer(module, None)
    with torch.no_grad():
        module.validation_step(batch_of(1), 0)
        with pretended_gpu() as gpu:
            module.to("cuda")
            batch = move(batch_of(1))
            gpu.waits.clear()
            logged = on_trainer(module, None)
            module.validation_step(batch, 0)
            assert gpu.waits == []
    torch.testing.assert_close(logged["val/caption_loss"].held, expected["val/caption_loss"])


def test_under_cudas_own_autocast_features_are_bf16_and_losses_fp32():
    """In a process of its own: FakeTensorMode replaces what PyTorch knows of CUDA, for good."""
    command = [sys.executable, str(Path(__file__).parent / "fake_tensors.py")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "features bfloat16, losses float32 on cuda:0\n"


# --- evaluation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_evaluation_on_the_gpu_counts_the_same_pixels(threshold):
    torch.manual_seed(3)
    model = GroupViT(TINY).eval()
    view = inference.View(short=40, long_max=80, crop=32, stride=16)
    images = [torch.randn(3, 40, 56), torch.randn(3, 52, 40)]
    names = ["fox", "grass", "sky", "road", "bus", "rain"]
    labels = [torch.randint(0, len(names), (44, 61)), torch.randint(0, len(names), (60, 47))]
    labels[0][:3] = 255

    def matrix(model, labels):
        classes = inference.embed_classes(model, names, threshold)
        stream = [(number, image, (40, 56) if number == 0 else (52, 40)) for number, image in enumerate(images)]
        total = 0
        for number, result in inference.segment(model, classes, stream, view, 4, with_groups=True):
            predicted = inference.resize_labels(result.labels, tuple(labels[number].shape))
            total = total + metric.confusion(labels[number], predicted, 1 + len(names), 255)
        return total

    expected = matrix(model, labels)
    with pretended_gpu() as gpu:
        there = copy.deepcopy(model).to("cuda")
        moved = [values.to("cuda") for values in labels]
        gpu.waits.clear()
        found = matrix(there, moved)
        assert isinstance(found, OnGpu)
        assert torch.equal(found.held, expected)
        assert set(gpu.waits) <= {"aten::bincount", "aten::nonzero"}  # regions and counts are known by values alone
    assert expected.sum() == sum(values.numel() for values in labels) - 3 * 61


# --- curation -----------------------------------------------------------------------------------------------------------


def test_images_and_texts_are_encoded_on_the_gpu_as_on_the_cpu(tiny_clip):
    encoder = Encoder(EncoderConfig(f"local-dir:{tiny_clip}", precision="fp32", batch_size=3), "cpu", "fp32")
    samples = [Sample(str(number), jpeg(40 + number, a="red"), f"thing {number}") for number in range(7)]
    expected = np.concatenate([batch[1] for batch in encoder.encode_samples(samples)])
    texts = encoder.encode_texts(["a fox", "grass"])
    weights = encoder.weights

    with pretended_gpu() as gpu:
        encoder.model.to("cuda")
        encoder.device = "cuda:0"
        gpu.waits.clear()
        found = np.concatenate([batch[1] for batch in encoder.encode_samples(samples)])
        assert gpu.waits == ["Tensor.cpu"] * 3  # once a batch, for its embeddings
        np.testing.assert_array_equal(encoder.encode_texts(["a fox", "grass"]), texts)
        del encoder.__dict__["weights"]
        assert encoder.weights == weights
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_the_search_on_the_gpu_finds_the_same_neighbours(bf16):
    random = np.random.default_rng(0)
    centres = random.normal(size=(6, 32))
    vectors = centres[random.integers(0, 6, 900)] + random.normal(size=(900, 32))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    vectors[100:400] = vectors[100]  # a crowd of duplicates
    queries = vectors[::3]
    bounds = np.array([0, 250, 251, 600, 900])
    probes = np.broadcast_to(np.arange(4), (len(queries), 4))

    def search(device, bf16):
        lists = Lists(
            4,
            lambda number: (
                torch.from_numpy(vectors[bounds[number] : bounds[number + 1]]),
                np.arange(bounds[number], bounds[number + 1]),
            ),
        )
        return search_lists(queries, probes, lists, 7, bf16, device)

    cosines, ids = search("cpu", False)
    with pretended_gpu():
        found_cosines, found_ids = search("cuda:0", bf16)
    np.testing.assert_array_equal(found_ids, ids)
    np.testing.assert_allclose(found_cosines, cosines, atol=1e-6)


# --- the source ---------------------------------------------------------------------------------------------------------


def test_one_named_place_leaves_the_device():
    """Everything else calls to_host and to_device, so that what waits for a GPU can be found by name."""
    writing = {"segmenters/checkpoint.py", "segmenters/pretrained.py"}  # weights into files
    allowed = {"curation/base/devices.py", *writing}
    for package in ("curation", "segmenters", "evaluation", "training"):
        for path in sorted((ROOT / package).rglob("*.py")):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            moves = {call.attr for call in calls if isinstance(call, ast.Attribute)} & {"cpu", "cuda", "synchronize"}
            assert not moves or str(path.relative_to(ROOT)) in allowed, f"{path}: {moves}"
