"""The model against Hugging Face's on the same weights, and what training needs of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_groupvit import TEXTS, TINY, doubled, hugging

from segmenters import cpu_attention
from segmenters.groupvit import GroupViT, GroupViTConfig, assign
from segmenters.text import END_OF_TEXT, arrange, tokenize
from segmenters.transformer import Attention, add_branch, attend

CLOSE = {"atol": 1e-12, "rtol": 0}  # in float64


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 160), (176, 80), (48, 48), (70, 101)])
def test_image_features_and_assignments_equal_hugging_faces(huggingface, groupvit, size):
    theirs, ours = doubled(huggingface[0], groupvit)
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0)).double()
    groups, image, attentions = hugging(theirs, pixels)
    with torch.no_grad():
        encoding = ours.encode_groups(pixels)
        assert encoding.groups.std() > 0.1
        torch.testing.assert_close(encoding.groups, groups, **CLOSE)
        torch.testing.assert_close(encoding.image, image, **CLOSE)
        torch.testing.assert_close(ours.encode_image(pixels), image, **CLOSE)
    assert len(encoding.assignments) == len(attentions) == 2
    for soft, attention in zip(encoding.assignments, attentions, strict=True):
        assert soft.std() > 0.02  # far from uniform
        torch.testing.assert_close(soft, attention, **CLOSE)
    assert encoding.grid == (size[0] // 16, size[1] // 16)
    torch.testing.assert_close(encoding.masks().sum(1), torch.ones(3, *encoding.grid, dtype=torch.float64))


def test_the_native_size_equals_hugging_faces_own_forward(huggingface, groupvit):
    theirs, ours = doubled(huggingface[0], groupvit)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)).double()
    tokens = tokenize(TEXTS)
    with torch.no_grad():
        output = theirs(input_ids=tokens, pixel_values=pixels)
        image, text = ours(pixels, tokens)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(image), output.image_embeds, **CLOSE)
    torch.testing.assert_close(unit(text), output.text_embeds, **CLOSE)
    assert groupvit.scale.item() == pytest.approx(huggingface[0].logit_scale.exp().item())


def test_text_features_equal_hugging_faces_whatever_the_padding(huggingface, groupvit):
    theirs, ours = doubled(huggingface[0], groupvit)
    tokens = tokenize(TEXTS)
    padded = torch.nn.functional.pad(tokens, (0, 77 - tokens.shape[1]), value=END_OF_TEXT)
    with torch.no_grad():
        features = theirs.text_projection(theirs.text_model(input_ids=padded).pooler_output)
        torch.testing.assert_close(ours.encode_text(tokens), features, **CLOSE)
        torch.testing.assert_close(ours.encode_text(tokens[:1, :9]), features[:1], **CLOSE)


def test_tokens_are_clips(huggingface):
    tokens = tokenize(TEXTS[:4])
    # "a photo of a cat" as published with CLIP: start 49406, end 49407.
    assert tokenize(["a photo of a cat"]).tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407]]
    assert huggingface[0].config.text_config.eos_token_id == END_OF_TEXT
    assert (tokens == END_OF_TEXT).sum(1).tolist() == [1, 1, 1, 1]
    long = tokenize(TEXTS)
    assert long.shape == (5, 77)
    assert long[4, 76] == END_OF_TEXT
    assert tokenize([]).shape == (0, 1)


def test_the_papers_sizes_are_the_defaults():
    config = GroupViTConfig()
    assert (config.width, config.heads, config.depths, config.groups) == (384, 6, (6, 3, 3), (64, 8))
    assert (config.text_width, config.text_layers, config.text_heads, config.text_context) == (256, 12, 4, 77)
    assert (config.projection_hidden, config.projection, config.drop_path) == (4096, 256, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 30}, "not a multiple of patch_size"),
        ({"depths": (1, 1)}, "stages need 1 groups"),
        ({"heads": 3}, "multiple of heads"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        GroupViTConfig(**{"image_size": 32, "patch_size": 8, "width": 16, "heads": 2, **change})


def test_an_image_smaller_than_a_patch_is_refused(groupvit):
    with pytest.raises(ValueError, match="smaller than a patch"):
        groupvit.encode_image(torch.zeros(1, 3, 12, 64))


def test_assignment_is_hard_in_evaluation_and_random_with_a_gradient_in_training():
    logits = torch.randn(2, 4, 500, generator=torch.Generator().manual_seed(0)).requires_grad_()
    hard = assign(logits, training=False)
    assert torch.equal(hard.sum(1), torch.ones(2, 500))
    assert torch.equal(hard.argmax(1), logits.argmax(1))
    drawn = assign(logits, training=True)
    torch.testing.assert_close(drawn.sum(1), torch.ones(2, 500))
    torch.testing.assert_close(drawn.max(1).values, torch.ones(2, 500))
    assert not torch.equal(drawn.argmax(1), logits.argmax(1))
    (drawn * torch.randn(drawn.shape)).sum().backward()
    assert logits.grad.abs().sum() > 0


def test_drawn_assignments_follow_the_softmax():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])[None, :, None].expand(1, 4, 20000).contiguous()
    frequency = assign(logits, training=True).mean(2)[0]
    torch.testing.assert_close(frequency, logits[0, :, 0].softmax(0), atol=0.015, rtol=0)


def test_under_bfloat16_autocast_the_assignment_stays_float32():
    torch.manual_seed(0)
    model = GroupViT(TINY).train()
    with torch.autocast("cpu", torch.bfloat16):
        _, assignments, _ = model.image(torch.randn(2, 3, 32, 32))
        image, text = model(torch.randn(2, 3, 32, 32), tokenize(["a", "b"]))
    assert [assignment.dtype for assignment in assignments] == [torch.float32] * 2
    assert image.isfinite().all() and text.isfinite().all()


def test_every_weight_gets_a_gradient():
    torch.manual_seed(0)
    model = GroupViT(TINY).train()
    image, text = model(torch.randn(4, 3, 32, 32), tokenize(["a cat", "a dog", "grass", "sky"]))
    (model.scale * (image @ text.T)).logsumexp(1).sum().backward()
    without = [
        name for name, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()
    ]
    assert without == []
    zero = [name for name, value in model.named_parameters() if not value.grad.any()]
    assert zero == []


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(4000, 3)
    seen = []
    dropped = add_branch(x, lambda part: seen.append(len(part)) or 2 * part, 0.25) - x
    assert dropped.unique().tolist() == pytest.approx([0, 8 / 3])
    assert dropped.mean() == pytest.approx(2, abs=0.06)
    assert (dropped == dropped[:, :1]).all()
    assert seen == [int(dropped[:, 0].count_nonzero())]  # what is dropped is not computed
    assert torch.equal(add_branch(x, lambda part: 2 * part, 0.0), 3 * x)
    rates = [block.rate for stage in GroupViT(GroupViTConfig(**{**vars(TINY), "drop_path": 0.2})).image.stages
             for block in stage.blocks]  # fmt: skip
    assert rates == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("drawn", [[0.5, 0.9, 0.6], [0.49, 0.5, 0.1], [0.1, 0.2, 0.3]])
def test_drop_path_by_hand_when_all_some_or_none_are_kept(drawn, compiling, monkeypatch):
    """At a rate of a half a branch counts twice where it is kept, compiled or not, also where nothing is dropped."""
    monkeypatch.setattr(torch, "rand", lambda size, device=None: torch.tensor(drawn))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    expected = [[a + 2 * 10 * a if u >= 0.5 else a for a in row] for row, u in zip(x.tolist(), drawn, strict=True)]
    assert add_branch(x, lambda part: 10 * part, 0.5).tolist() == expected


def test_a_branch_that_all_of_a_batch_drop_has_a_gradient_of_zero():
    x, weight = torch.ones(2, 3), torch.ones(3, requires_grad=True)
    added = add_branch(x, lambda part: part * weight, 1 - 1e-12)
    assert torch.equal(added, x)
    added.sum().backward()
    assert weight.grad.tolist() == [0, 0, 0]  # DDP waits for a gradient of every parameter


def test_drop_path_leaves_the_compiled_image_tower_one_graph():
    torch.manual_seed(0)
    model = GroupViT(GroupViTConfig(**{**vars(TINY), "drop_path": 0.2})).train()
    found = torch._dynamo.explain(model.encode_image)(torch.randn(2, 3, 32, 32))
    torch._dynamo.reset()
    assert (found.graph_count, found.graph_break_count) == (1, 0)


def test_evaluation_mode_is_deterministic(groupvit):
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(groupvit.encode_image(pixels), groupvit.encode_image(pixels))


def test_importing_the_model_loads_neither_open_clip_nor_transformers():
    code = "import sys, segmenters.groupvit, evaluation.evaluate; print(*{n.partition('.')[0] for n in sys.modules})"
    root = Path(__file__).parent.parent
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert not {"open_clip", "transformers", "lightning", "apache_beam"} & set(loaded.split())


def test_texts_of_several_lengths_equal_one_padded_matrix_in_training_mode():
    torch.manual_seed(0)
    model = GroupViT(TINY).train().double()
    texts = ["a cat sits on a red mat in the sun", "a dog", "grass"], ["fox", "the blue sky"] * 3
    captions, prompts = map(tokenize, texts)
    arranged = [arrange(some, 77) for some in texts]
    assert [len(some.matrices) for some in arranged] == [2, 2]
    features = model.encode_texts(arranged)
    assert [len(part) for part in features] == [3, 6]
    statistics = model.text_projection[1].running_mean.clone()
    model.text_projection[1].reset_running_stats()
    padded = [torch.nn.functional.pad(part, (0, 77 - part.shape[1])) for part in (captions, prompts)]
    together = model.encode_text(torch.cat(padded))
    torch.testing.assert_close(torch.cat(features), together, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.text_projection[1].running_mean, statistics, atol=1e-12, rtol=0)
    apart = model.encode_text(captions)
    assert (apart - features[0]).abs().max() > 0.01  # or else the batch norm would not matter here


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_formula_in_both_precisions(dtype, masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, 3, 9, 8, generator=generator).to(dtype) for _ in range(4))
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    found, expected = ([x.clone().to(kind).requires_grad_() for x in (q, k, v)] for kind in (dtype, torch.float64))
    mixed = attend(*found, mask)
    assert mixed.dtype == dtype
    scores = torch.einsum("bhqd,bhkd->bhqk", expected[0], expected[1]) / 8**0.5
    for row in range(9 if masked else 0):
        scores[..., row, row + 1 :] = -torch.inf
    shares = scores.exp() / scores.exp().sum(-1, keepdim=True)
    plain = torch.einsum("bhqk,bhkd->bhqd", shares, expected[2])
    (mixed * weight).sum().backward()
    (plain * weight).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(mixed.double(), plain, atol=tolerance, rtol=0)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=tolerance, rtol=0)


def test_attention_goes_step_by_step_in_bfloat16_on_a_cpu_only(monkeypatch):
    used = []
    monkeypatch.setattr(cpu_attention, "attend", lambda q, k, v, mask: used.append(q.dtype) or v)
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        Attention(24, 3).to(dtype)(torch.randn(2, 5, 24, dtype=dtype))
    assert used == [torch.bfloat16]
