"""A tiny CLIP and a tiny world: coloured shapes with captions that name some of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"apple": "red", "leaf": "green", "boat": "blue", "banana": "yellow", "grape": "purple"}
GROUNDS = {"sand": "khaki", "snow": "white", "night sky": "black"}
SHARDS, ROWS = 3, 24


def jpeg(size: int = 40, **shapes: str) -> bytes:
    """A JPEG with a ground colour and rectangles of other colours, as named: ground="white", a="red", ..."""
    image = Image.new("RGB", (size, size), shapes.pop("ground", "white"))
    draw = ImageDraw.Draw(image)
    for number, colour in enumerate(shapes.values()):
        left = 2 + number * size // 3
        draw.rectangle((left, size // 3, left + size // 3, 2 * size // 3), fill=colour)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=95)
    return out.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar with these members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def scene(rng: np.random.Generator, key: str) -> list[tuple[str, bytes]]:
    """Image, caption and truth of one scene: two or three objects on a ground, one of them named."""
    objects = [str(name) for name in rng.choice(list(COLOURS), rng.integers(2, 4), replace=False)]
    ground = str(rng.choice(list(GROUNDS)))
    plural = "s" if rng.random() < 0.3 and objects[0] != "leaf" else ""
    caption = f"A photo of {objects[0]}{plural}" + (f" on {ground}" if rng.random() < 0.3 else "")
    picture = jpeg(ground=GROUNDS[ground], **{name: COLOURS[name] for name in objects})
    truth = {"objects": objects, "stuff": [ground], "mentioned": objects[:1]}
    return [(f"{key}.jpg", picture), (f"{key}.txt", caption.encode()), (f"{key}.json", json.dumps(truth).encode())]


def make_tiny_clip(folder: Path) -> Path:
    """Write a folder for open_clip's ``local-dir:`` with a very small CLIP, random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.model.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def write_world(path: Path, clip: Path, **changes: object) -> Path:
    """A data set config beside the tars; ``changes`` replace top-level keys."""
    import yaml

    values = {
        "name": "world",
        "shards": f"{{00000..{SHARDS - 1:05d}}}.tar",
        "image": "jpg",
        "caption": "txt",
        "encoder": {"model": f"local-dir:{clip}", "precision": "fp32", "batch_size": 16},
        "vocabulary": {"source": "concepts.txt"},
        "retrieval": {"neighbors": 4},
    }
    values |= changes
    retrieval = values.get("retrieval")
    if isinstance(retrieval, dict) and "data" not in retrieval:  # shapes on three grounds: most are alike
        values["retrieval"] = {"duplicates": "keep"} | retrieval
    path.write_text(yaml.safe_dump(values))
    return path
