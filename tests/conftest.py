"""A tiny CLIP and a tiny world, made once a session: coloured shapes with captions that name some of them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
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


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small CLIP."""
    return make_tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A YAML file of a data set of three shards with a given vocabulary; three of its samples are unusable."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(7)
    for shard in range(SHARDS):
        members = [member for row in range(ROWS) for member in scene(rng, f"{shard:02d}{row:04d}")]
        if shard == 1:
            members += [("bad0.jpg", b"not a jpeg"), ("bad0.txt", b"an apple"), ("bad1.txt", b"an apple")]
            members += [("bad2.jpg", jpeg()), ("bad2.txt", b" \n")]
        write_tar(folder / f"{shard:05d}.tar", members)
    (folder / "concepts.txt").write_text("\n".join([*COLOURS, *GROUNDS]) + "\n")
    write_world(folder / "world.yaml", tiny_clip)
    return folder / "world.yaml"


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
    path.write_text(yaml.safe_dump(values | changes))
    return path


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run over the world, made by the real command in this process. Not to be changed."""
    from pipelines.curate import main

    folder = tmp_path_factory.mktemp("finished") / "out"
    assert main(["--data", str(world), "--output", str(folder), "--runner", "inprocess"]) == 0
    return folder


@pytest.fixture(scope="session")
def huggingface(tmp_path_factory: pytest.TempPathFactory):
    """A very small Hugging Face GroupViT with weights large enough for its groups to differ: (model, its folder)."""
    import torch
    from transformers import GroupViTConfig, GroupViTModel

    torch.set_num_threads(1)  # tiny models: threads of several test processes would only wait for each other
    image = {"image_size": 64, "patch_size": 16, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40}
    image |= {
        "num_hidden_layers": 4,
        "depths": [2, 1, 1],
        "num_group_tokens": [6, 4, 0],
        "num_output_groups": [6, 4, 4],
    }
    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 1}
    config = GroupViTConfig(text_config=text, vision_config=image, projection_dim=12, projection_intermediate_dim=20)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = GroupViTModel(config).eval()
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim == 0 or not value.is_floating_point():
                continue
            noise = torch.randn_like(value)
            if name.endswith("running_var"):
                value.data = 0.5 + noise.abs()
            elif value.ndim == 1:
                value.data += 0.2 * noise
            else:
                value.data = noise * (1.5 * value[0].numel() ** -0.5 if value.shape[0] > 1 else 1.0)
    folder = tmp_path_factory.mktemp("groupvit-hf")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="session")
def groupvit(huggingface):
    """Our GroupViT with the weights of ``huggingface``."""
    from training.checkpoint import load

    return load(huggingface[1]).model
