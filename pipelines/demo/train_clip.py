"""``python -m pipelines.demo.train_clip FOLDER``: the recipe of the small CLIP that ships in ``pipelines/demo/clip``.

It stands in for a CLIP of web scale: it has seen this world, in scenes that occur neither in the demo's training set nor in
its benchmark, with captions that mention all or part of what is visible. It is open_clip's model, loss and tokenizer in a
short loop. At first it sees single large things, then scenes: from scenes alone it would learn only grounds and skies for a
long time. Training takes less than half an hour on one core, in bf16 where the CPU is fast at it; the shipped weights were
trained so.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.demo.captions import full_caption, indefinite
from pipelines.demo.drawn import HELD_OUT, IMAGE, SCENES, SINGLE, DrawnScenes, draw_many
from pipelines.demo.scene import CLASSES

CONTEXT = 32  # tokens
TOKEN_IDS = 49408  # of open_clip's tokenizer
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": IMAGE,
    },
    "text_cfg": {"context_length": CONTEXT, "vocab_size": TOKEN_IDS, "width": 80, "heads": 2, "layers": 3},
}
MEAN = [0.48, 0.46, 0.41]
STD = [0.27, 0.26, 0.28]
PREPROCESS = {
    "mean": MEAN,
    "std": STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    steps: int = 1000
    batch: int = 128
    first: float = 0.15  # share of the steps with single things only
    single: float = 0.15  # share of single things after that
    scenes: int = 12000
    singles: int = 2000
    held_out: int = 600
    rate: float = 1.5e-3
    warm_up: int = 100
    decay: float = 0.05
    seed: int = 0


# --- batches -----------------------------------------------------------------------------------------------------------


def batch(rng: np.random.Generator, parts: list[tuple[DrawnScenes, int]]) -> tuple[np.ndarray, list[str]]:
    """Random pictures, half of them mirrored, with fresh captions: so many of each part."""
    pictures = []
    captions = []
    for drawn, count in parts:
        for row in rng.integers(len(drawn.pictures), size=count):
            picture = drawn.pictures[row]
            pictures.append(picture[:, ::-1] if rng.random() < 0.5 else picture)
            captions.append(training_caption(rng, drawn.objects[row], drawn.stuff[row]))
    return np.stack(pictures), captions


def training_caption(rng: np.random.Generator, objects: tuple[str, ...], stuff: tuple[str, ...]) -> str:
    """A caption of everything, or one time in two of some things and perhaps some stuff."""
    if rng.random() < 0.5:
        names = (*objects, *stuff)
        count = rng.integers(1, len(names) + 1)
        mentioned = {names[i] for i in rng.permutation(len(names))[:count]}
        objects = tuple(name for name in objects if name in mentioned)
        stuff = tuple(name for name in stuff if name in mentioned)
        if not objects:  # "a photo of a road"
            return f"a photo of {' and '.join(indefinite(name) for name in stuff)}"
    return full_caption(rng, objects, stuff)


def to_images(pictures: np.ndarray) -> torch.Tensor:
    """(B, 3, H, W) float32, normalised, of pictures (B, H, W, 3) uint8."""
    images = (pictures.astype(np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))


# --- quality -----------------------------------------------------------------------------------------------------------


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Mean over concepts of the average precision of ranking all pictures by a concept. scores, truth: (N, concepts)."""
    ranked = np.take_along_axis(truth, np.argsort(-scores, axis=0, kind="stable"), axis=0)
    precision = np.cumsum(ranked, axis=0) / np.arange(1, len(ranked) + 1)[:, None]
    return float(np.mean((precision * ranked).sum(0) / np.maximum(ranked.sum(0), 1)))


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, held_out: DrawnScenes) -> dict[str, float]:
    """How well the model knows scenes that it has not seen.

    Mean average precision of "a photo of a {c}.", and the share of what is visible that is also visible in a picture's
    nearest neighbour.
    """
    model.eval()
    images = torch.cat([model.encode_image(to_images(part), True) for part in np.array_split(held_out.pictures, 8)])
    texts = model.encode_text(tokenizer([f"a photo of a {name}." for name in CLASSES]), True)
    model.train()

    visible = held_out.visible()  # (N, classes)
    similarity = images @ images.T  # (N, D) @ (D, N) -> (N, N)
    similarity.fill_diagonal_(-1)
    nearest = visible[similarity.argmax(1).numpy()]
    return {
        "average precision": average_precision((images @ texts.T).numpy(), visible),
        "shared with neighbour": float(np.mean((nearest & visible).sum(1) / visible.sum(1))),
    }


# --- training ----------------------------------------------------------------------------------------------------------


def train(recipe: Recipe, processes: int = 2) -> tuple[Any, dict[str, float]]:
    """The trained model, and how well it does on held-out scenes."""
    import open_clip
    from open_clip.loss import ClipLoss

    rng = np.random.default_rng([recipe.seed, SCENES])
    torch.manual_seed(recipe.seed)
    print("drawing", flush=True)
    scenes = draw_many(recipe.seed, SCENES, recipe.scenes, processes)
    singles = draw_many(recipe.seed, SINGLE, recipe.singles, processes)
    held_out = draw_many(recipe.seed, HELD_OUT, recipe.held_out, processes)

    model = open_clip.model.CLIP(**MODEL).to(memory_format=torch.channels_last).train()
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT)
    optimizer = adamw(model, recipe)
    contrastive_loss = ClipLoss()
    bf16 = torch.cpu._is_avx512_bf16_supported()
    seen = torch.zeros(TOKEN_IDS, dtype=torch.bool)  # token ids
    mean_loss = 0.0
    began = time.monotonic()

    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * learning_rate(step, recipe)
        alone = recipe.batch if step < recipe.first * recipe.steps else round(recipe.single * recipe.batch)
        pictures, captions = batch(rng, [(singles, alone), (scenes, recipe.batch - alone)])
        tokens = tokenizer(captions)  # (B, CONTEXT)
        seen[tokens.unique()] = True

        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            images = model.encode_image(
                to_images(pictures).contiguous(memory_format=torch.channels_last), True
            )  # (B, D)
            texts = model.encode_text(tokens, True)  # (B, D)
        loss = contrastive_loss(images.float(), texts.float(), model.logit_scale.exp())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))

        mean_loss += (loss.item() - mean_loss) / min(step + 1, 50)
        if (step + 1) % 50 == 0:
            quality = evaluate(model, tokenizer, held_out) if (step + 1) % 100 == 0 else {}
            columns = "".join(f"  {name} {value:.3f}" for name, value in quality.items())
            print(f"step {step + 1}  {time.monotonic() - began:.0f} s  loss {mean_loss:.3f}{columns}", flush=True)

    with torch.no_grad():  # tokens that it never saw mean nothing; zeros say so, and take no room in a package
        model.token_embedding.weight[~seen] = 0
    return model.eval(), evaluate(model, tokenizer, held_out)


def adamw(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": recipe.decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), eps=1e-6, fused=True)


def learning_rate(step: int, recipe: Recipe) -> float:
    """The learning rate relative to the highest one: a linear warm-up, then half a cosine."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return float(0.5 * (1 + np.cos(np.pi * done)) + 0.01)


# --- the shipped folder ------------------------------------------------------------------------------------------------


def save(model: Any, folder: Path, recipe: Recipe, quality: dict[str, float]) -> None:
    """Write the folder that open_clip's ``local-dir:`` reads, with weights in fp16, and the recipe beside it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    card = {"recipe": asdict(recipe), "held_out": {name: round(value, 4) for name, value in quality.items()}}
    (folder / "recipe.json").write_text(json.dumps(card, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo.train_clip", description="Train the demo's small CLIP, and write it to FOLDER."
    )
    parser.add_argument("folder", type=Path)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"(default: {value})")
    parser.add_argument("--processes", type=int, default=2, help="processes that draw scenes (default: 2)")
    args = vars(parser.parse_args(arguments))
    folder = args.pop("folder")
    processes = args.pop("processes")

    recipe = Recipe(**args)
    model, quality = train(recipe, processes)
    save(model, folder, recipe, quality)
    print(f"{folder}: {quality}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
