"""The losses against a slow double loop, and over two real processes against one."""

from __future__ import annotations

import math
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_ranks import Towers, total, train_share

from training.loss import contrastive_losses
from training.negatives import NONE, Concepts, SampleConcepts, concept_id, concept_ids, stack

DEADLINE = 90  # seconds that two processes may take


def slow(image, captions, prompts, scale, prompt_scale, drawn=None, held=None):
    """(caption loss, prompt loss, accuracy), written out with a Python float for every pair.

    With concepts, drawn[j][k] of each prompt and the sets held[i] of each image, what an image holds does not count.
    """

    def cosine(a, b):
        a, b = a.tolist(), b.tolist()
        norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / norms

    rows, caption, right = len(image), 0.0, 0
    for i in range(rows):
        to_texts = [scale * cosine(image[i], captions[j]) for j in range(rows)]
        to_images = [scale * cosine(image[j], captions[i]) for j in range(rows)]
        for logits in (to_texts, to_images):
            caption -= logits[i] - math.log(sum(math.exp(x) for x in logits))
            right += max(logits) == logits[i]
    if prompts is None:
        return caption / (2 * rows), None, right / (2 * rows)
    each, multi = prompts.shape[1], 0.0

    def counts(i, j, k):
        return i == j or drawn is None or drawn[j][k] not in held[i]

    for i in range(rows):
        denominator = sum(
            math.exp(prompt_scale * cosine(image[i], prompts[j, k]))
            for j in range(rows) for k in range(each) if counts(i, j, k)
        )  # fmt: skip
        for m in range(each):
            own = prompt_scale * cosine(image[i], prompts[i, m])
            multi -= own - math.log(denominator)
            others = sum(
                math.exp(prompt_scale * cosine(image[j], prompts[i, m])) for j in range(rows) if counts(j, i, m)
            )
            multi -= own - math.log(others)
    return caption / (2 * rows), multi / (2 * rows * each), right / (2 * rows)


def features(rows, each, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(rows, 2 + each, width, generator=generator, dtype=dtype)
    return parts[:, 0] * 3, parts[:, 1], parts[:, 2:] if each else None


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6), each=st.integers(0, 4), width=st.integers(2, 6), scale=st.floats(1, 100),
    prompt_scale=st.floats(1, 100), seed=st.integers(0, 1000),
)  # fmt: skip
def test_losses_equal_the_double_loop(rows, each, width, scale, prompt_scale, seed):
    given_features = features(rows, each, width, seed)
    losses = contrastive_losses(*given_features, scale, prompt_scale)
    caption, multi, accuracy = slow(*given_features, scale, prompt_scale)
    assert losses.caption.item() == pytest.approx(caption, abs=1e-9)
    assert losses.accuracy.item() == pytest.approx(accuracy)
    if each:
        assert losses.prompts.item() == pytest.approx(multi, abs=1e-9)
    else:
        assert losses.prompts is None


NAMES = ["sky", "grass", "dog", "cat", "", "Zürich"]


@settings(max_examples=60, deadline=None)
@given(
    concepts=st.lists(
        st.tuples(st.lists(st.sampled_from([*NAMES, None]), min_size=2, max_size=2), st.sets(st.sampled_from(NAMES))),
        min_size=1, max_size=6,
    ),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_what_an_archive_holds_does_not_count_against_its_image(concepts, seed):
    """None: a prompt about no concept, a caption that stands in; it counts against all."""
    given_features = features(len(concepts), 2, 5, seed)
    drawn = [np.array([NONE if name is None else concept_id(name) for name in names]) for names, _ in concepts]
    held_ids = [concept_ids(sorted(held))[:-1] for _, held in concepts]  # concept_ids ends in NONE
    batch = stack([SampleConcepts(*sample) for sample in zip(drawn, held_ids, strict=True)])
    losses = contrastive_losses(*given_features, 3.0, 7.0, batch)
    names, held = [names for names, _ in concepts], [(held | set(names)) - {None} for names, held in concepts]
    _, expected, _ = slow(*given_features, 3.0, 7.0, names, held)
    assert losses.prompts.item() == pytest.approx(expected, abs=1e-9)


def test_when_everything_is_excused_only_the_own_prompts_are_left():
    image, captions, prompts = features(3, 2, 4)
    concepts = Concepts(torch.full((3, 2), 5), torch.full((3, 1), 5))
    loss = contrastive_losses(image.requires_grad_(), captions, prompts, 1.0, 9.0, concepts).prompts
    loss.backward()
    assert image.grad.isfinite().all()
    cosines = 9 * torch.nn.functional.cosine_similarity(image[:, None], prompts, dim=-1)  # (3, 2)
    torch.testing.assert_close(loss, (cosines.logsumexp(1) - cosines.mean(1)).mean() / 2)


def test_a_concept_has_one_number_in_every_vocabulary():
    one, other = concept_ids(["dog", "red panda"]), concept_ids(["red panda", "cat", "dog"])
    assert one.tolist() == [other[2], other[0], NONE]
    assert len({*one, *other}) == 4


def test_hand_computed_values():
    # Two pairs at right angles: each image has cosine 1 with its own text and 0 with the other's.
    unit = torch.eye(2)
    losses = contrastive_losses(5 * unit, unit, unit[:, None].expand(2, 3, 2), 2.0, 3.0)
    assert losses.caption.item() == pytest.approx(math.log(1 + math.exp(-2)))
    to_prompts = math.log(3) + math.log(1 + math.exp(-3))  # three equal prompts share the target
    assert losses.prompts.item() == pytest.approx((to_prompts + math.log(1 + math.exp(-3))) / 2)
    assert losses.accuracy.item() == 1
    assert contrastive_losses(unit, unit.flip(0), None, 2.0, None).accuracy.item() == 0


def test_one_prompt_equal_to_the_caption_gives_the_caption_loss():
    image, captions, _ = features(5, 0, 7)
    losses = contrastive_losses(image, captions, captions[:, None], 9.0, 9.0)
    torch.testing.assert_close(losses.prompts, losses.caption)


def test_the_order_of_the_batch_does_not_matter():
    image, captions, prompts = features(7, 3, 5)
    order, inner = torch.randperm(7), torch.randperm(3)
    one = contrastive_losses(image, captions, prompts, 10.0, 20.0)
    other = contrastive_losses(image[order], captions[order], prompts[order][:, inner], 10.0, 20.0)
    for found, expected in zip(other, one, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_captions_prompts_and_zeros_stay_finite(dtype, scale):
    image, captions, _ = features(6, 0, 8, dtype=torch.float32)
    same = captions[:1].expand(6, 8)
    zeros = [torch.zeros(6, 8)] if dtype != torch.float16 else []  # their gradient is beyond float16's range
    for text in (same, captions, *zeros):
        leaf, text = image.to(dtype).requires_grad_(), text.to(dtype).clone().requires_grad_()
        factor = torch.tensor(scale, requires_grad=True)
        losses = contrastive_losses(leaf, text, text[:, None].expand(6, 3, 8), factor, factor)
        total(losses).backward()
        assert total(losses).isfinite()
        assert losses.caption.dtype == torch.float32
        assert all(x.grad.isfinite().all() for x in (leaf, text, factor))
    # When every text is the same, an image can only guess: log 6 either way, and log 18 for three prompts a row.
    losses = contrastive_losses(image, same, same[:, None].expand(6, 3, 8), 0.0, 0.0)
    assert losses.caption.item() == pytest.approx(math.log(6), rel=1e-5)
    assert losses.prompts.item() == pytest.approx((math.log(18) + math.log(6)) / 2, rel=1e-5)


def test_autocast_changes_nothing():
    image, captions, prompts = features(6, 3, 32, dtype=torch.float32)
    plain = contrastive_losses(image, captions, prompts, 100.0, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        under = contrastive_losses(image, captions, prompts, 100.0, 100.0)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


def test_accuracy_has_no_gradient():
    image, captions, _ = features(3, 0, 4)
    assert not contrastive_losses(image.requires_grad_(), captions, None, 10.0, None).accuracy.requires_grad


@pytest.mark.parametrize(
    ("captions", "prompts", "scale", "message"),
    [
        ((3, 8), None, 1.0, r"captions: \(3, 8\) features for images of \(4, 8\)"),
        ((4, 8), (4, 8), 1.0, r"prompts: \(4, 8\)"),
        ((4, 8), (3, 2, 8), 1.0, r"prompts: \(3, 2, 8\)"),
        ((4, 8), (4, 0, 8), 1.0, "M of 1 or more"),
        ((4, 8), (4, 2, 8), None, "scale of their own"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(captions, prompts, scale, message):
    given_prompts = None if prompts is None else torch.ones(prompts)
    with pytest.raises(ValueError, match=message):
        contrastive_losses(torch.ones(4, 8), torch.ones(captions), given_prompts, 1.0, scale)


@pytest.mark.parametrize("kind", ["prompts", "captions", "outside"])
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path, kind):
    """Each rank pads what its archives hold to a length of its own."""
    torch.manual_seed(0)
    network, plain = Towers(12).double(), kind == "captions"
    inputs = torch.randn(10, 5, 12, dtype=torch.float64)
    concepts = Concepts(torch.randint(0, 6, (10, 3)), torch.randint(-1, 6, (10, 2))) if kind == "outside" else None
    torch.save(
        {"inputs": inputs, "weights": network.state_dict(), "concepts": concepts and tuple(concepts)},
        tmp_path / "inputs.pt",
    )
    losses = network(inputs, 0, 1, plain, concepts)
    if concepts:
        assert losses.prompts != network(inputs, 0, 1, plain).prompts
    total(losses).backward()

    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=train_share, args=(rank, 2, str(tmp_path), plain)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]

    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    mean_loss, accuracy = (torch.stack([x["losses"][k] for x in found]).mean() for k in (0, 1))
    torch.testing.assert_close(mean_loss, total(losses).detach(), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(accuracy, losses.accuracy)
    for name, value in network.named_parameters():
        assert value.grad.any(), name
        for rank in range(2):  # DDP has averaged them
            torch.testing.assert_close(found[rank]["gradients"][name], value.grad, atol=1e-11, rtol=1e-10)
