"""Which device and precision are chosen."""

import numpy as np
import pytest

from curation.base.devices import choose_device, choose_precision
from curation.base.errors import CocuError
from curation.encoder import encode_concepts

# --- choices of the encoder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requested", "gpus", "expected"),
    [
        ("auto", 0, "cpu"),
        ("auto", 1, "cuda"),
        ("auto", 8, "cuda"),
        ("cpu", 0, "cpu"),
        ("cpu", 8, "cpu"),
        ("cuda", 1, "cuda"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:7", 8, "cuda:7"),
    ],
)
def test_device_is_the_one_requested_or_the_best_there_is(requested, gpus, expected):
    assert choose_device(requested, gpus, "encoder.device") == expected


@pytest.mark.parametrize(("requested", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:10", 2)])
def test_gpu_that_is_not_there_is_an_error_naming_it(requested, gpus):
    with pytest.raises(CocuError, match=rf"encoder\.device: {requested} .*{gpus} GPU"):
        choose_device(requested, gpus, "encoder.device")


@pytest.mark.parametrize(
    ("requested", "device", "fast_bf16", "expected"),
    [
        ("auto", "cpu", False, "fp32"),
        ("auto", "cpu", True, "bf16"),
        ("auto", "cuda", False, "fp16"),
        ("auto", "cuda:1", False, "fp16"),
        ("auto", "cuda:1", True, "bf16"),
        ("fp32", "cuda", True, "fp32"),
        ("fp32", "cpu", True, "fp32"),
        ("bf16", "cpu", False, "bf16"),
        ("fp16", "cuda:0", True, "fp16"),
    ],
)
def test_precision_is_the_one_requested_or_the_fastest_that_is_safe(requested, device, fast_bf16, expected):
    assert choose_precision(requested, device, fast_bf16) == expected


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_half_precision_on_a_cpu_is_an_error(fast_bf16):
    with pytest.raises(CocuError, match=r"encoder\.precision: fp16"):
        choose_precision("fp16", "cpu", fast_bf16)


def fake_encode(texts):
    """Unit rows that depend on the whole text."""
    rows = np.array([np.random.default_rng(list(text.encode())).standard_normal(6) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("prompts", [["a photo of a {c}."], ["{c}", "a {c} by a {c}", "the {c} {{c}}"]])
def test_concepts_are_embedded_as_the_normalised_mean_over_prompts(prompts):
    concepts = ["dog", "wine glass", "{0}"]
    expected = []
    for concept in concepts:
        mean = np.mean([fake_encode([prompt.replace("{c}", concept)])[0] for prompt in prompts], axis=0)
        expected.append(mean / np.linalg.norm(mean))
    found = encode_concepts(fake_encode, concepts, prompts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
