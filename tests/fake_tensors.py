"""``python tests/fake_tensors.py``: a training step's forward pass under FakeTensorMode, by the rules of CUDA's autocast.

Its tensors have no values: an operation whose shape depends on values is an error, and so is one on two devices.
"""

from __future__ import annotations

import dataclasses
from unittest import mock

import torch
from tiny_groupvit import TINY
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call

from segmenters.groupvit import GroupViT
from segmenters.text import tokenize
from training.loss import contrastive_losses
from training.negatives import Concepts


def main() -> None:
    """Raises AssertionError for what is on another device, or in another precision, than it should be."""
    weights = GroupViT(TINY).state_dict()
    model = GroupViT(dataclasses.replace(TINY, drop_path=0.0)).train()  # drop path draws on the host
    dropping = GroupViT(dataclasses.replace(TINY, drop_path=0.4)).train()
    pixels, captions, prompts = torch.randn(4, 3, 32, 32), tokenize(["a fox", "grass"] * 2), tokenize(["a fox."] * 8)
    drawn, held = torch.randint(0, 9, (4, 2)), torch.randint(0, 9, (4, 3))

    believed = mock.patch("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    bf16 = mock.patch("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
    with believed, bf16, FakeTensorMode() as mode:

        def there(value: torch.Tensor) -> torch.Tensor:
            return mode.from_tensor(value).to("cuda:0")

        weights = {name: there(value) for name, value in weights.items()}
        with torch.autocast("cuda", torch.bfloat16):
            image, of_captions = functional_call(model, weights, (there(pixels), there(captions)))
            _, of_prompts = functional_call(model, weights, (there(pixels), there(prompts)))
            scale = weights["logit_scale"].exp()
            concepts = Concepts(there(drawn), there(held))
            losses = contrastive_losses(image, of_captions, of_prompts.unflatten(0, (4, 2)), scale, scale, concepts)
            with mock.patch("torch.compiler.is_compiling", lambda: True):  # then drop path draws on the device
                dropped, _ = functional_call(dropping, weights, (there(pixels), there(captions)))

        assert (dropped.dtype, str(dropped.device)) == (torch.bfloat16, "cuda:0")
        assert image.dtype == of_captions.dtype == of_prompts.dtype == torch.bfloat16
        assert {value.dtype for value in losses} == {torch.float32}
        assert {str(value.device) for value in losses} == {"cuda:0"}
        for mistake, error in (
            (lambda: losses.caption.item(), DataDependentOutputException),
            (lambda: concepts.held.nonzero(), DynamicOutputShapeException),
            (lambda: image.float() @ mode.from_tensor(torch.ones(8, 8)), RuntimeError),
        ):
            try:
                mistake()
            except error:
                continue
            raise AssertionError(f"no {error.__name__}")
    print("features bfloat16, losses float32 on cuda:0")


if __name__ == "__main__":
    main()
