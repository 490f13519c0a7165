"""``python benchmarks/training_speed.py``: a training step on CoCu's load against one with Hugging Face's GroupViT.

Both have the paper's sizes and the same weights. Images are noise; each comes with a caption and three prompts.
Beside it a step of dense training against the bare tower that it trains.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from results import arguments, in_turns, publish
from torch import Tensor
from torch.nn import functional as F
from transformers import GroupViTConfig as TheirConfig
from transformers import GroupViTModel

from curation.base.markdown import table
from curation.base.versions import conditions
from segmenters.groupvit import GroupViT
from segmenters.huggingface import to_huggingface
from segmenters.text import Texts, arrange, tokenize
from training.batches import Batch
from training.dense import DenseModule
from training.loss import contrastive_losses
from training.negatives import SampleConcepts, concept_ids, stack
from training.optimizer import adamw, parameter_groups

PROMPTS = 3  # of each image
CLIP = 5.0
DECAY, RATE = 0.05, 1e-4
WORDS = """man woman child dog cat horse street house beach mountain table chair window flower tree river bridge boat red
green old young small large wooden bright sitting standing holding walking near behind under with in on at the a"""
CONCEPTS = "dog, red panda, traffic light, wooden table, sea, coffee cup, grass, snow, bicycle, church tower"
MARKS = {  # (precision, texts of Hugging Face's model): how many times as fast ours must be
    ("fp32", "padded"): 1.6,
    ("bf16", "padded"): 1.8,
    ("bf16", "trimmed"): 1.1,
}
ENCODER, STRIDE, SIZE = "local-dir:package:pipelines/demo/clip", 16, 96  # of dense_demo.yaml
DENSE_BATCH, DENSE_VOCABULARY = 64, 1024
DENSE_MARK = 0.85  # of the samples a second of the bare tower


def made_up_texts(count: int) -> tuple[list[str], list[str]]:
    """Captions of 5 to 20 words, and prompts as CoCu makes them: a concept in one of the ImageNet templates."""
    rng = random.Random(0)
    captions = [" ".join(rng.choices(WORDS.split(), k=rng.randint(5, 20))) for _ in range(count)]
    prompts = [rng.choice(OPENAI_IMAGENET_TEMPLATES)(rng.choice(CONCEPTS.split(", "))) for _ in range(count * PROMPTS)]
    return captions, prompts


def our_step(model: GroupViT, pixels: Tensor, texts: Sequence[Texts], bf16: bool) -> Callable[[], None]:
    """A training step as ``cocu train`` does it."""
    model = model.train()
    optimizer = adamw(parameter_groups(model, DECAY), RATE)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            image = model.encode_image(pixels)
            captions, prompts = model.encode_texts(texts)
        prompts = prompts.unflatten(0, (-1, PROMPTS))  # (B, M, D)
        losses = contrastive_losses(image, captions, prompts, model.scale, model.scale)
        assert losses.prompts is not None
        (losses.caption + losses.prompts).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def their_step(model: GroupViTModel, pixels: Tensor, matrices: Sequence[Tensor], bf16: bool) -> Callable[[], None]:
    """A training step with Hugging Face's model, the loss written plainly and PyTorch's default AdamW."""
    model = model.train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY)
    count = len(pixels)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            image = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
            text = torch.cat([model.text_model(input_ids=matrix).pooler_output for matrix in matrices])
            text = model.text_projection(text)
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = model.logit_scale.exp() * image @ text.T  # (B, B + B·M)
        rows = torch.arange(count)
        loss = (F.cross_entropy(logits[:, :count], rows) + F.cross_entropy(logits[:, :count].T, rows)) / 2
        target = torch.eye(count).repeat_interleave(PROMPTS, 1) / PROMPTS  # (B, B·M)
        to_images = F.cross_entropy(logits[:, count:].T, rows.repeat_interleave(PROMPTS))
        loss = loss + (F.cross_entropy(logits[:, count:], target) + to_images) / 2
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()

    return step


def measure(batch: int, rounds: dict[str, int]) -> tuple[dict[tuple[str, str], float], tuple[int, int]]:
    """Seconds a step of each (precision, whose and which texts), and the longest caption and prompt in tokens."""
    torch.manual_seed(0)
    model = GroupViT()
    hugging = GroupViTModel(TheirConfig())
    hugging.load_state_dict(to_huggingface(model))

    pixels = torch.randn(batch, 3, model.config.image_size, model.config.image_size)
    captions, prompts = made_up_texts(batch)
    trimmed = [tokenize(captions), tokenize(prompts)]
    padded = [torch.cat([F.pad(ids, (0, model.config.text_context - ids.shape[1])) for ids in trimmed])]
    arranged = [arrange(some, model.config.text_context) for some in (captions, prompts)]

    seconds: dict[tuple[str, str], float] = {}
    for precision, turns in rounds.items():
        bf16 = precision == "bf16"
        steps = {
            "padded": their_step(hugging, pixels, padded, bf16),
            "trimmed": their_step(hugging, pixels, trimmed, bf16),
            "ours": our_step(model, pixels, arranged, bf16),
        }
        for step in steps.values():
            step()  # warm up: the state of the optimizers is made
        best = in_turns(list(steps.values()), turns)
        seconds |= {(precision, kind): fastest for kind, fastest in zip(steps, best, strict=True)}
    return seconds, (trimmed[0].shape[1], trimmed[1].shape[1])


def dense_step(module: DenseModule, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A training step of the image tower in bf16, whatever the loss."""
    optimizer = adamw(parameter_groups(module, DECAY), RATE)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()

    return step


def measure_dense(rounds: int) -> tuple[float, float]:
    """Seconds a step of the bare tower, and of dense training with its labels and losses."""
    names = [f"concept {number}" for number in range(DENSE_VOCABULARY)]
    module = DenseModule(ENCODER, stride=STRIDE, size=SIZE).train()
    module.data = SimpleNamespace(vocabulary=names)  # type: ignore[assignment]  # all that it is asked for
    module.on_fit_start()

    random = np.random.default_rng(0)
    ids = concept_ids(names)[:-1]
    archives = [random.choice(ids, 12, replace=False) for _ in range(DENSE_BATCH)]
    concepts = stack([SampleConcepts(archive[:4], archive) for archive in archives])
    texts = arrange(["a photo"] * DENSE_BATCH, 32)
    batch = Batch(torch.randn(DENSE_BATCH, 3, SIZE, SIZE), texts, texts, {}, concepts)

    bare = dense_step(module, lambda: module.model.encode_places(batch.pixels).float().square().mean())
    whole = dense_step(module, lambda: module.losses(batch)[0])
    for step in (bare, whole):
        step()  # warm up: the state of the optimizers is made
    fastest_bare, fastest_whole = in_turns([bare, whole], rounds)
    return fastest_bare, fastest_whole


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "Seconds of a training step, against Hugging Face's GroupViT.")
    args = parser.parse_args()
    batch = 16
    rounds = {"fp32": 6, "bf16": 12} if args.full else {"fp32": 2, "bf16": 8}
    torch.set_num_threads(1)
    seconds, (longest_caption, longest_prompt) = measure(batch, rounds)

    rows = []
    for precision in ("fp32", "bf16"):
        padded, trimmed, mine = (seconds[precision, kind] for kind in ("padded", "trimmed", "ours"))
        rows.append([precision, *(f"{value:.2f}" for value in (padded, trimmed, mine))])
        rows[-1] += [f"{padded / mine:.2f}", f"{trimmed / mine:.2f}"]

    text = (
        f"GroupViT of the paper's sizes in training mode, batches of {batch} images of 224 px with a caption and {PROMPTS} "
        "prompts each, on one thread: forward pass, losses, backward pass, clipping and AdamW. Hugging Face's model with "
        f"PyTorch's default AdamW, all texts padded to 77 tokens, or trimmed to the longest caption ({longest_caption}) "
        f"and prompt ({longest_prompt}) of the batch; ours arranged by length, see segmenters/text.py. bf16 "
        f"is autocast. Best of {rounds['fp32']} rounds in turn in fp32, of {rounds['bf16']} in bf16."
    )

    header = ["", "theirs padded, s", "theirs trimmed, s", "ours, s", "padded / ours", "trimmed / ours"]
    marks = {
        f"{precision}: at least {ratio} times as fast as Hugging Face's with {kind} texts": (
            seconds[precision, kind] >= ratio * seconds[precision, "ours"]
        )
        for (precision, kind), ratio in MARKS.items()
    }
    bare, dense = measure_dense(rounds["bf16"])
    dense_text = (
        f"Dense training of the demo's CLIP (dense_demo.yaml: {SIZE} px, places {STRIDE} px apart) and "
        f"{DENSE_VOCABULARY:,} concepts, against its bare image tower: both forward and backward pass, "
        f"clipping and AdamW, batches of {DENSE_BATCH}, bf16, one thread, best of {rounds['bf16']} in turn."
    )
    dense_header = ["bare tower, samples/s", "dense training, samples/s", "share"]
    dense_row = [f"{DENSE_BATCH / bare:.0f}", f"{DENSE_BATCH / dense:.0f}", f"{bare / dense:.2f}"]
    marks[f"dense training: at least {DENSE_MARK} of the bare tower's samples a second"] = bare >= DENSE_MARK * dense

    parts = [text, table(header, rows), dense_text, table(dense_header, [dense_row])]
    return publish("Training step", [conditions("torch", "transformers"), *parts], marks)


if __name__ == "__main__":
    sys.exit(main())
