"""Steps of training that are worked out apart from torch: losses, gradients and weights, by slow formulas in float64.

Towers are replaced by one matrix each, so that all that is left is what a step does with their features.
"""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from PIL import Image
from tiny_groupvit import TINY
from torch import nn
from torch.utils.data import DataLoader

from segmenters.text import token_ids
from training.batches import collate
from training.loss import Losses
from training.module import GroupViTModule, OptimizerConfig
from training.stream import TrainingSample

CAPTION_WEIGHT, PROMPT_WEIGHT = 0.7, 0.4
DECAY, BETAS, PEAK, FINAL = 0.3, (0.5, 0.75), 0.02, 0.008  # rates of the batch of 3; given for one of 6
COLOURS = ["red", "lime", "yellow"]
SAMPLES = [  # caption and two prompts of each of three images, in two batches
    [("apple", ["boat", "sand"]), ("leaf", ["snow", "grape"]), ("dog", ["cat", "tree"])],
    [("tree", ["sand", "leaf"]), ("boat", ["cat", "apple"]), ("snow", ["dog", "grape"])],
]
WORDS = sorted({word for batch in SAMPLES for caption, prompts in batch for word in [caption, *prompts]})
VECTORS = dict(zip(WORDS, np.random.default_rng(3).normal(size=(len(WORDS), 2)), strict=True))
BEGIN = {
    "colours": np.array([[0.9, -0.3], [-0.2, 0.7], [0.4, 0.5]]),  # a matrix: decays
    "shift": np.array([0.3, -0.1]),  # a bias: does not
    "words": np.array([[0.8, 0.2], [-0.3, 0.6]]),
}


# --- by hand --------------------------------------------------------------------------------------------------------------


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(vector**2))


def loss_by_hand(values: dict[str, np.ndarray], batch: list) -> float:
    """The weighted loss of a batch of (colour, caption, prompts): docs/method.md §5, one pair after another."""
    images = [unit(np.array(colour) @ values["colours"] + values["shift"]) for colour, _, _ in batch]
    captions = [unit(VECTORS[caption] @ values["words"]) for _, caption, _ in batch]
    prompts = [[unit(VECTORS[word] @ values["words"]) for word in words] for _, _, words in batch]
    scale, prompt_scale = (min(math.exp(values[name]), 100) for name in ("scale", "prompt_scale"))

    caption_loss = prompt_loss = 0.0
    count, each = len(batch), len(prompts[0])
    for i in range(count):
        own = math.exp(scale * images[i] @ captions[i])
        caption_loss -= math.log(own / sum(math.exp(scale * images[i] @ text) for text in captions)) / (2 * count)
        caption_loss -= math.log(own / sum(math.exp(scale * image @ captions[i]) for image in images)) / (2 * count)
        for text in prompts[i]:
            own = math.exp(prompt_scale * images[i] @ text)
            every = sum(math.exp(prompt_scale * images[i] @ other) for texts in prompts for other in texts)
            prompt_loss -= math.log(own / every) / (2 * count * each)
            prompt_loss -= math.log(own / sum(math.exp(prompt_scale * image @ text) for image in images)) / (
                2 * count * each
            )
    return CAPTION_WEIGHT * caption_loss + PROMPT_WEIGHT * prompt_loss


def gradient_by_hand(values: dict[str, np.ndarray], batch: list) -> dict[str, np.ndarray]:
    """By central differences."""
    gradient = {}
    for name, value in values.items():
        gradient[name] = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            ends = []
            for step in (1e-6, -1e-6):
                moved = np.array(value)
                moved[index] += step
                ends.append(loss_by_hand(values | {name: moved}, batch))
            gradient[name][index] = (ends[0] - ends[1]) / 2e-6
    return gradient


def train_by_hand(values: dict[str, np.ndarray], batches: list) -> tuple[list[float], list, dict[str, np.ndarray]]:
    """Losses, gradients and the weights after a step of AdamW (Loshchilov and Hutter, 2019) on each batch."""
    rates = [PEAK, (PEAK + FINAL) / 2]  # half a cosine over two steps
    first = {name: np.zeros_like(value) for name, value in values.items()}
    second = {name: np.zeros_like(value) for name, value in values.items()}
    losses, gradients = [], []
    for number, (batch, rate) in enumerate(zip(batches, rates, strict=True), 1):
        losses.append(loss_by_hand(values, batch))
        gradients.append(gradient_by_hand(values, batch))
        updated = {}
        for name, value in values.items():
            slope = gradients[-1][name]
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * slope
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * slope**2
            move = (first[name] / (1 - BETAS[0] ** number)) / (np.sqrt(second[name] / (1 - BETAS[1] ** number)) + 1e-8)
            decay = DECAY if value.ndim >= 2 else 0.0
            updated[name] = value - rate * decay * value - rate * move
        values = updated
    return losses, gradients, values


# --- by the module --------------------------------------------------------------------------------------------------------


class Recorder(Callback):
    """Keeps the loss and the gradients of every step."""

    def __init__(self) -> None:
        self.losses, self.gradients = [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append({name: value.grad.numpy().copy() for name, value in weights(module).items()})

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


def weights(module: GroupViTModule) -> dict[str, torch.Tensor]:
    """The weights that have a gradient, by the names of :data:`BEGIN`."""
    return {name: module.get_parameter(name) for name in BEGIN} | {
        "scale": module.model.logit_scale,
        "prompt_scale": module.prompt_logit_scale,
    }


def small_module() -> GroupViTModule:
    """A module with matrices for towers."""
    optimizer = OptimizerConfig(
        2 * PEAK, 2 * FINAL, reference_batch=6, warmup_epochs=0, weight_decay=DECAY, betas=BETAS
    )
    module = GroupViTModule(TINY, optimizer, caption_weight=CAPTION_WEIGHT, prompt_weight=PROMPT_WEIGHT)
    module.data = SimpleNamespace(batch_size=3, steps=2)
    for name, value in BEGIN.items():
        module.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float32)))

    table = torch.zeros(49408, 2)
    for word, vector in VECTORS.items():
        ids = token_ids(word, 77)
        assert len(ids) == 3  # a word is one token
        table[int(ids[1])] = torch.tensor(vector)

    def encode_texts(texts):
        ends = [torch.cat([table[matrix[:, 1]] for matrix in some.matrices])[some.rows] for some in texts]
        return [end @ module.words for end in ends]

    module.encode_image = lambda pixels: pixels.mean((2, 3)) @ module.colours + module.shift
    module.encode_texts = encode_texts
    return module


def picture(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def real_batches() -> list:
    """The samples as the data makes them: decoded, tokenised, one prompt after another."""
    transform = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # noqa: E731
    return [
        collate(
            [
                TrainingSample("x", 0, picture(colour), caption, prompts)
                for colour, (caption, prompts) in zip(COLOURS, batch, strict=True)
            ],
            transform,
            77,
            required=True,
        )
        for batch in SAMPLES
    ]


@pytest.mark.parametrize("scales", [(None, None), (math.log(150), None), (None, math.log(170))])
def test_two_steps_are_those_worked_out_by_hand(scales):
    """Weights of the two losses, both scales and their clamps, decay, betas, rates, and whose the prompts are."""
    module = small_module()
    for parameter, value in zip((module.model.logit_scale, module.prompt_logit_scale), scales, strict=True):
        if value is not None:
            parameter.data.fill_(value)
    start = [math.log(1 / 0.07) if value is None else value for value in scales]

    recorder = Recorder()
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False, callbacks=[recorder])  # fmt: skip
    trainer.fit(module, DataLoader(real_batches(), batch_size=None))

    red, green, yellow = (1, 0, 0), (0, 1, 0), (1, 1, 0)
    batches = [[(c, *sample) for c, sample in zip((red, green, yellow), batch, strict=True)] for batch in SAMPLES]
    values = BEGIN | {"scale": np.array(start[0]), "prompt_scale": np.array(start[1])}
    losses, gradients, expected = train_by_hand(values, batches)
    assert recorder.losses == pytest.approx(losses, rel=2e-4)
    for found, by_hand in zip(recorder.gradients, gradients, strict=True):
        for name, value in by_hand.items():
            np.testing.assert_allclose(found[name], value, rtol=2e-3, atol=2e-5, err_msg=name)
    for name, parameter in weights(module).items():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=2e-4, atol=1e-5, err_msg=name)
    for value, gradient in zip(scales, (gradients[0]["scale"], gradients[0]["prompt_scale"]), strict=True):
        assert (gradient == 0) == (value is not None)  # beyond the clamp a scale does not move


def test_weights_begin_as_published():
    """Both scales at 1 / 0.07; truncated normal weights of 0.02; text positions of 0.01; no bias (docs/method.md §5)."""
    torch.manual_seed(0)
    module = GroupViTModule(TINY)
    assert module.model.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert module.prompt_scale.item() == pytest.approx(14.2857, rel=1e-5)

    model = module.model
    assert model.text.tokens.weight.std().item() == pytest.approx(0.02, rel=0.01)
    assert model.text.tokens.weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert model.text.positions.std().item() == pytest.approx(0.01, rel=0.1)
    for value in (
        model.image.positions,
        model.image.patch.weight,
        model.text_projection[0].weight,
        torch.cat([stage.tokens.flatten() for stage in model.image.stages[:2]]),
    ):
        assert value.std().item() == pytest.approx(0.02, rel=0.25)
    biases = [layer.bias for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert len(biases) > 20 and not any(bias.any() for bias in biases)


def test_what_is_random_in_the_model_changes_with_seed_step_and_rank(monkeypatch):
    drawn = {}
    for seed, step, rank in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        module = GroupViTModule(TINY, seed=seed)
        progress = SimpleNamespace(total=SimpleNamespace(ready=step))
        module._trainer = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)))
        monkeypatch.setattr(GroupViTModule, "global_rank", rank)
        for _ in range(2):
            module.on_train_batch_start(None, 0)
            numbers = tuple(torch.rand(3).tolist())
            assert drawn.setdefault((seed, step, rank), numbers) == numbers
    assert len(set(drawn.values())) == 4


def test_the_loss_is_told_which_of_how_many_ranks_this_is(monkeypatch):
    """With world_size 1 each rank would contrast its own samples alone, and nothing would look wrong."""
    module = small_module()
    module._trainer = SimpleNamespace(world_size=3)
    monkeypatch.setattr(GroupViTModule, "global_rank", 2)
    monkeypatch.setattr(module, "_log_step", lambda *values: None)
    told = []

    def losses(*features, rank, world_size):
        told.append((rank, world_size))
        return Losses(torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.5))

    monkeypatch.setattr("training.module.contrastive_losses", losses)
    assert float(module.training_step(real_batches()[0], 0)) == pytest.approx(CAPTION_WEIGHT + 2 * PROMPT_WEIGHT)
    assert told == [(2, 3)]
