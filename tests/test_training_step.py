"""Loss and gradients of the model in training mode against Hugging Face's, and with recomputed activations."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tiny_groupvit import TINY

from segmenters import groupvit as module
from segmenters import transformer
from segmenters.groupvit import GroupViT
from segmenters.huggingface import huggingface_names
from segmenters.text import arrange, tokenize
from training.loss import contrastive_losses

TEXTS = ["a photo of a red fox.", "grass", "A photo of a siamese cat, 2 dogs & a bus!", "", "sky over sand", "a dog"]

# What a norm, or the softmax over groups, takes away again: their gradient is zero but for rounding.
WITHOUT_EFFECT = (
    "mix.down.bias", "projector.1.down.bias", "grouping.query.bias", "projection.0.bias", "image.norm.bias",
    "text.norm.bias",
)  # fmt: skip


class Noise:
    """Gumbel noise that two models can share: the k-th draw depends on k and its shape only."""

    def __init__(self):
        self.draws = 0

    def draw(self, shape):
        self.draws += 1
        uniform = torch.rand(shape, generator=torch.Generator().manual_seed(self.draws), dtype=torch.float64)
        return -(-uniform.log()).log()


def test_loss_and_every_gradient_equal_hugging_faces_in_training_mode(huggingface, groupvit, monkeypatch):
    theirs = copy.deepcopy(huggingface[0]).double().train()
    ours = GroupViT(dataclasses.replace(groupvit.config, drop_path=0.0)).double().train()
    ours.load_state_dict({name: value.double() for name, value in groupvit.state_dict().items()})
    pixels = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = tokenize(TEXTS)
    assert theirs.logit_scale.exp() < module.LARGEST_SCALE

    noise = Noise()
    monkeypatch.setattr(torch.distributions.gumbel.Gumbel, "sample", lambda self, shape: noise.draw(shape))
    output = theirs(input_ids=tokens, pixel_values=pixels, return_loss=True, output_attentions=True)
    output.loss.backward()
    assert noise.draws == 2

    noise = Noise()
    monkeypatch.setattr(module, "gumbel_noise", lambda like: noise.draw(like.shape))
    seen = []
    ours.image.register_forward_hook(lambda _, __, found: seen.append(found[1]))
    image, text = ours(pixels, tokens)
    losses = contrastive_losses(image, text, None, ours.scale, None)
    losses.caption.backward()
    assert noise.draws == 2

    def close(found, expected, name=""):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0, msg=lambda text: f"{name}: {text}")

    close(losses.caption, output.loss)
    close(torch.nn.functional.normalize(image), output.image_embeds)
    close(torch.nn.functional.normalize(text), output.text_embeds)
    attentions = [soft for soft in output.vision_model_output.attentions if soft is not None]
    for found, expected in zip(seen[0], attentions, strict=True):
        close(found, expected)
    gradients = {name: value.grad for name, value in theirs.named_parameters()}
    for name, value in ours.named_parameters():
        names = huggingface_names(name)
        expected = torch.cat([gradients.pop(part) for part in names]) if len(names) > 1 else gradients.pop(names[0])
        assert (value.grad.abs().max() > 1e-5) == (not name.endswith(WITHOUT_EFFECT)), name
        close(value.grad, expected.reshape(value.shape), name)
    assert not gradients
    for kind in ("running_mean", "running_var"):
        close(getattr(ours.image_projection[1], kind), getattr(theirs.visual_projection[1], kind))
        close(getattr(ours.text_projection[1], kind), getattr(theirs.text_projection[1], kind))


def step(model, seed, autocast):
    """Loss and gradients of one step, with drop path and Gumbel noise from the seed."""
    model.zero_grad()
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        image = model.encode_image(torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
        captions, prompts = model.encode_texts([arrange(TEXTS, 77), arrange(["fox", "cat"] * 6, 77)])
    losses = contrastive_losses(image, captions, prompts.unflatten(0, (6, 2)), model.scale, model.scale)
    (losses.caption + losses.prompts).backward()
    return losses.caption.item(), {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputed_activations_change_no_gradient(autocast, monkeypatch):
    torch.manual_seed(0)
    model = GroupViT(dataclasses.replace(TINY, drop_path=0.4)).train()
    plain_loss, plain = step(model, 3, autocast)
    entered = []
    original = transformer.checkpoint
    monkeypatch.setattr(
        transformer, "checkpoint", lambda *given, **named: entered.append(1) or original(*given, **named)
    )
    model.recompute = True
    loss, gradients = step(model, 3, autocast)
    # Blocks of the image tower, and of the text tower for short captions, long captions, and prompts of one length.
    assert len(entered) == 3 + 2 * 3
    assert loss == plain_loss
    assert all(torch.equal(gradients[name], plain[name]) for name in plain)
    assert step(model, 4, autocast)[0] != plain_loss  # the noise matters
    entered.clear()
    with torch.no_grad():
        model.encode_image(torch.randn(2, 3, 32, 32))
    model.recompute = False
    assert not model.recompute
    step(model, 3, autocast)
    assert not entered
