"""Weight decay, learning rate and AdamW against hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from tiny_groupvit import TINY
from torch import nn

from segmenters.groupvit import GroupViT
from training.optimizer import adamw, learning_rate, parameter_groups, scaled


def test_norms_biases_and_logit_scales_do_not_decay_everything_else_does():
    model = GroupViT(TINY)
    model.prompt_logit_scale = nn.Parameter(torch.tensor(2.6))
    model.image.norm.bias.requires_grad = False
    decayed, kept = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.05, 0.0)
    names = {id(value): name for name, value in model.named_parameters()}
    without = {names[id(value)] for value in kept["params"]}
    normed = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm1d)
        for part in ("weight", "bias")
    }
    biases = {name for name in names.values() if name.endswith("bias")}
    assert without | {"image.norm.bias"} == normed | biases | {"logit_scale", "prompt_logit_scale"}
    found = {names[id(value)] for value in decayed["params"]}
    assert found | without == set(names.values()) - {"image.norm.bias"}
    assert {"image.positions", "text.positions", "image.stages.0.tokens", "text.tokens.weight"} <= found


def test_a_module_without_matrices_has_one_group():
    assert [group["weight_decay"] for group in parameter_groups(nn.LayerNorm(3), 0.1)] == [0.0]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.25),  # of the peak, 1
        (1, 0.5),
        (2, 0.75),
        (3, 1.0),
        (5, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the cosine
        (7, 0.6),  # half
        (11, 0.2),
        (12, 0.2),
        (1000, 0.2),
    ],
)
def test_the_rate_rises_linearly_and_falls_as_a_cosine(step, expected):
    assert learning_rate(step, 11, 3, 1.0, 0.2) == pytest.approx(expected)


def test_short_runs_have_a_rate():
    assert learning_rate(0, 1, 0, 1.0, 0.1) == 1.0
    assert [learning_rate(step, 2, 3, 1.0, 0.1) for step in range(2)] == [0.25, 0.5]
    assert learning_rate(3, 3, 3, 1.0, 0.1) == 1.0


def test_rates_follow_the_batch():
    assert scaled(1.6e-3, 4096) == 1.6e-3
    assert scaled(1.6e-3, 1024) == pytest.approx(4e-4)
    assert scaled(1.0, 3, reference=2) == 1.5


def test_two_steps_equal_hand_computed_adamw():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    bias = nn.Parameter(torch.tensor([0.5]))
    holder = nn.Module()
    holder.weight, holder.bias = weight, bias
    optimizer = adamw(parameter_groups(holder, 0.1), lr=0.01, betas=(0.8, 0.9))
    assert optimizer.defaults["fused"]
    w, b = [1.0, -2.0], [0.5]
    moments = {"w": ([0.0, 0.0], [0.0, 0.0]), "b": ([0.0], [0.0])}
    for step, gradients in enumerate([{"w": [3.0, 0.5], "b": [-1.0]}, {"w": [-1.0, 0.25], "b": [2.0]}], start=1):
        weight.grad, bias.grad = torch.tensor([gradients["w"]]), torch.tensor(gradients["b"])
        optimizer.step()
        for name, values, decay in (("w", w, 0.1), ("b", b, 0.0)):
            first, second = moments[name]
            for place, gradient in enumerate(gradients[name]):
                first[place] = 0.8 * first[place] + 0.2 * gradient
                second[place] = 0.9 * second[place] + 0.1 * gradient**2
                direction = first[place] / (1 - 0.8**step) / (math.sqrt(second[place] / (1 - 0.9**step)) + 1e-8)
                values[place] -= 0.01 * decay * values[place] + 0.01 * direction
    assert weight.tolist()[0] == pytest.approx(w, abs=1e-6)
    assert bias.tolist() == pytest.approx(b, abs=1e-6)


def test_lightning_clips_its_gradients_in_mixed_precision():
    layer = nn.Linear(2, 1)
    optimizer = adamw(parameter_groups(layer, 0.1), lr=0.01)
    for value in layer.parameters():
        value.grad = torch.full_like(value, 100.0)
    MixedPrecision("bf16-mixed", "cpu").clip_gradients(optimizer, 5.0)
    norm = math.sqrt(sum(value.grad.square().sum().item() for value in layer.parameters()))
    assert norm == pytest.approx(5.0, rel=1e-4)
