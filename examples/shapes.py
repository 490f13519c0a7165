"""A world of coloured shapes for the notebook walk.ipynb, and a small CLIP that knows it. Nothing is downloaded."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

SIZE = 48
THINGS = {"ball": "red", "tree": "green", "box": "blue", "sun": "gold", "plum": "purple"}
GROUNDS = {"sand": "khaki", "snow": "white", "night": "black"}
OPENINGS = ["a", "a photo of a", "a drawing of a", "look, a", "my"]


def draw(rng: np.random.Generator) -> tuple[Image.Image, list[str], str]:
    """A picture, its things and its ground: two or three shapes of different sizes, side by side."""
    names = [str(name) for name in rng.choice(list(THINGS), rng.integers(2, 4), replace=False)]
    ground = str(rng.choice(list(GROUNDS)))

    picture = Image.new("RGB", (SIZE, SIZE), GROUNDS[ground])
    brush = ImageDraw.Draw(picture)
    width = SIZE // len(names)
    for number, name in enumerate(names):
        side = int(rng.integers(width * 2 // 3, width + 1))
        left = number * width + int(rng.integers(0, width - side + 1))
        top = int(rng.integers(0, SIZE - side))
        right = left + side - 1
        bottom = top + side - 1
        if name == "tree":
            brush.polygon([(left, bottom), (right, bottom), (left + side // 2, top)], THINGS[name])
        elif name == "box":
            brush.rectangle((left, top, right, bottom), THINGS[name])
        else:
            brush.ellipse((left, top, right, bottom), THINGS[name])
    return picture, names, ground


def make_world(folder: Path, shards: int = 3, scenes: int = 200) -> None:
    """Write tars of scenes whose captions name one thing, and sometimes the ground; the truth is in json sidecars."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for scene in range(scenes):
                picture, names, ground = draw(rng)
                caption = f"{rng.choice(OPENINGS)} {names[0]}" + (f" on {ground}" if rng.random() < 0.3 else "")
                encoded = io.BytesIO()
                picture.save(encoded, "PNG")
                truth = json.dumps({"objects": names, "stuff": [ground]})

                fields = {"png": encoded.getvalue(), "txt": caption.encode(), "json": truth.encode()}
                for extension, content in fields.items():
                    member = tarfile.TarInfo(f"{shard:02d}{scene:04d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def teach_clip(folder: Path, steps: int) -> float:
    """Train a small CLIP on other scenes whose captions say more, and write it for open_clip's ``local-dir:``.

    Returns the mean loss of the last batches; chance is the logarithm of the batch size, 3.5.
    """
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    model = open_clip.model.CLIP(**config)
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)

    losses = []
    for _ in range(steps):
        scenes = [draw(rng) for _ in range(32)]
        captions = [describe(rng, names, ground) for _, names, ground in scenes]
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _, _ in scenes])).permute(0, 3, 1, 2)
        images, texts, scale = model((pixels / 255 - 0.5) / 0.25, tokenize(captions, 32))  # (B, D), (B, D), ()
        loss = open_clip.ClipLoss()(images, texts, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return float(np.mean(losses[-20:]))


def describe(rng: np.random.Generator, names: list[str], ground: str) -> str:
    """A caption of one thing, some, or all, and perhaps the ground: the prompts of concepts are short too."""
    mentioned = [str(name) for name in rng.permutation(names)[: rng.integers(1, len(names) + 1)]]
    if rng.random() < 0.5:
        mentioned.append(ground)
    return f"{rng.choice(OPENINGS)} " + " and a ".join(mentioned)
