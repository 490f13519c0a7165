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
    brush, width = ImageDraw.Draw(picture), SIZE // len(names)
    for number, name in enumerate(names):
        side = int(rng.integers(width * 2 // 3, width + 1))
        left, top = number * width + int(rng.integers(0, width - side + 1)), int(rng.integers(0, SIZE - side))
        box = (left, top, left + side - 1, top + side - 1)
        if name == "tree":
            brush.polygon([(left, box[3]), (box[2], box[3]), (left + side // 2, top)], THINGS[name])
        else:
            (brush.rectangle if name == "box" else brush.ellipse)(box, THINGS[name])
    return picture, names, ground


def make_world(folder: Path, shards: int = 3, scenes: int = 200) -> None:
    """Tars of scenes whose captions name one thing, and sometimes the ground; the truth is in json sidecars."""
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
    """Train a small CLIP on other scenes with captions that say all, and write it for open_clip's ``local-dir:``.

    Returns the loss of the last batches; chance is the logarithm of the batch size, 3.5.
    """
    config = {
        "embed_dim": 64,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    rng, model, tokenize = np.random.default_rng(2), open_clip.model.CLIP(**config), open_clip.get_tokenizer("ViT-B-32")
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(steps):
        scenes = [draw(rng) for _ in range(32)]
        texts = []
        for _, names, ground in scenes:  # one thing, some, or all, as the prompts of concepts are short
            said = [
                *rng.permutation(names)[: rng.integers(1, len(names) + 1)],
                *([ground] if rng.random() < 0.5 else []),
            ]
            texts.append(f"{rng.choice(OPENINGS)} " + " and a ".join(map(str, said)))
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture, _, _ in scenes])).permute(0, 3, 1, 2)
        images, words, scale = model((pixels / 255 - 0.5) / 0.25, tokenize(texts, 32))
        loss = open_clip.ClipLoss()(images, words, scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return float(np.mean(losses[-20:]))
