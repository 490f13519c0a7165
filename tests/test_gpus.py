"""Which GPU each process takes, and what happens where its memory is too small."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch

from curation.base import devices, gpus
from curation.base.errors import CocuError
from curation.base.gpus import own_device, take, take_instance, visible_gpus
from curation.encoder import Encoder

# Takes a GPU, says which, and holds it until its standard input ends.
HOLDER = """\
import sys
from curation.base.gpus import take

print(take(sys.argv[2:], sys.argv[1]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """A process that holds nothing yet, and a folder of locks."""
    monkeypatch.setattr(gpus, "_held", {})
    monkeypatch.setattr(gpus, "user_folder", lambda: str(tmp_path))
    return str(tmp_path / "gpus")


# --- GPUs and processes -------------------------------------------------------------------------------------------------


def hold(folder, names):
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLDER, folder, *names], stdin=pipe, stdout=pipe, text=True)
    return process, int(process.stdout.readline())


def test_processes_share_the_gpus_out_and_a_dead_one_gives_its_gpu_back(tmp_path):
    folder, names = str(tmp_path), ["0", "1"]
    held = [hold(folder, names) for _ in range(4)]
    try:
        assert Counter(position for _, position in held) == {0: 2, 1: 2}  # whatever their process ids
        process, position = held[1]
        process.kill()
        process.wait()
        held.append(hold(folder, names))
        assert held[-1][1] == position
    finally:
        for process, _ in held:
            process.kill()
            process.wait()


def test_a_process_keeps_the_gpu_that_it_has(alone):
    assert [take(["a", "b"], alone) for _ in range(3)] == [0, 0, 0]
    assert take(["b", "a"], alone) == 1  # known by its name, not by its place


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        ({}, 3, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": "2,0"}, 2, ["2", "0"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-1, GPU-2"}, 2, ["GPU-1", "GPU-2"]),
        ({"CUDA_VISIBLE_DEVICES": "0,1,-1,3"}, 2, ["0", "1"]),  # CUDA stops at the first that is none
    ],
)
def test_the_gpus_are_those_that_cuda_shows(environment, count, expected):
    assert visible_gpus(environment, count) == expected


def test_only_the_device_cuda_is_shared_out(alone, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert [own_device(name) for name in ("cpu", "cuda:1")] == ["cpu", "cuda:1"]
    process, position = hold(alone, ["4"])
    try:
        assert (position, own_device("cuda")) == (0, "cuda:1")
    finally:
        process.kill()
        process.wait()


def test_of_several_instances_of_divided_gpus_a_process_sees_its_own_alone(alone):
    environment = {"CUDA_VISIBLE_DEVICES": "MIG-a,MIG-b"}
    process, _ = hold(alone, ["MIG-a"])
    try:
        take_instance(environment)
        assert environment == {"CUDA_VISIBLE_DEVICES": "MIG-b"}
        for other in ({}, {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "MIG-a"}):
            before = dict(other)
            take_instance(other)
            assert other == before
    finally:
        process.kill()
        process.wait()


def test_processes_of_a_mixed_machine_agree_on_the_arithmetic(monkeypatch):
    capabilities = {0: (9, 0), 1: (7, 5)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert [devices.has_fast_bf16(name) for name in ("cuda:0", "cuda:1", "cuda")] == [True, False, False]
    capabilities[1] = (8, 0)
    assert devices.has_fast_bf16("cuda")


# --- memory -------------------------------------------------------------------------------------------------------------


class Limited:
    """A model that fits ``most`` rows into memory at once."""

    def __init__(self, most):
        self.most, self.sizes = most, []

    def encode_image(self, images):
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return images.flatten(1)[:, :5]


def encoder_with(model):
    encoder = object.__new__(Encoder)
    encoder.model, encoder.device, encoder.dtype, encoder.batch_size = model, "cpu", torch.float32, 8
    return encoder


def test_a_batch_too_large_for_memory_is_halved_and_said_so_once(capsys):
    images = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = encoder_with(Limited(8)).encode_images(images)
    assert capsys.readouterr().err == ""

    model = Limited(2)
    encoder = encoder_with(model)
    np.testing.assert_array_equal(encoder.encode_images(images), whole)
    assert model.sizes == [8, 4, 2, 2, 2, 2]
    np.testing.assert_array_equal(encoder.encode_images(images[:5]), whole[:5])
    assert model.sizes[6:] == [2, 2, 1]  # it has learnt
    said = capsys.readouterr().err
    assert said.count("encoder.batch_size") == said.count("\n") == 1
    assert "8 need more memory than cpu has" in said


def test_a_memory_too_small_for_one_image_is_an_error():
    with pytest.raises(CocuError, match=r"^encoder\.device: .*too small"):
        encoder_with(Limited(0)).encode_images(torch.zeros(4, 3, 2, 2))


def test_other_errors_of_a_model_are_not_hidden():
    model = Limited(8)
    model.encode_image = lambda images: images @ images.new_zeros(7, 7)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        encoder_with(model).encode_images(torch.zeros(4, 3, 2, 2))
