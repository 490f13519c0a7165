"""``cocu convert SOURCE TARGET``: between our checkpoints and folders of transformers and open_clip."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from curation.base import files
from segmenters.checkpoint import save, save_huggingface, write_folder
from segmenters.convert_command import main
from segmenters.dense import DenseCLIP
from segmenters.groupvit import MEAN, STD
from segmenters.hf_clip import clip_config, clip_to_huggingface
from segmenters.opening import open_segmenter
from segmenters.paths import CheckpointError
from segmenters.pretrained import save_folder
from segmenters.text import tokenizer

SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # open_clip's names: Hugging Face's


def convert(source: str | Path, target: str | Path, kind: str | None = None, half: bool = False) -> str:
    """Write the folder ``target`` and return what was done, in a line.

    ``kind``: "huggingface", "cocu", or None for the other one; "cocu", which open_clip reads, for a CLIP. ``half``: weights
    in fp16. Raises CheckpointError for a source that is no checkpoint and for a target that holds something. The folder
    appears whole or not at all.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target}: exists already; remove it, or name another folder")

    loaded = open_segmenter(source)
    if half:
        loaded.model.half()
    ours = isinstance(loaded.model, DenseCLIP) or loaded.kind == "huggingface"
    kind = kind or ("cocu" if ours else "huggingface")
    partial = target.absolute().with_name(f"{target.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)

    if isinstance(loaded.model, DenseCLIP):
        save_clip(loaded.model, partial, kind)
    elif kind == "huggingface":
        save_huggingface(loaded.model, partial)
        save_processor(loaded.model.config.text_context, preprocessing(loaded.model.config.image_size), partial)
    else:
        save(loaded.model, partial)
    partial.replace(target)

    lost = loaded.model.grouping if isinstance(loaded.model, DenseCLIP) and kind == "huggingface" else None
    count = parameters(loaded.model) - (parameters(lost) if lost else 0)
    return (
        f"{target}: {count:,} parameters of {loaded.path} ({loaded.kind}) as a {kind} folder"
        f"{', but for its grouping head, for which transformers has no place' if lost else ''}"
    )


def parameters(module: nn.Module) -> int:
    """How many numbers it has learnt."""
    return sum(value.numel() for value in module.parameters())


def save_clip(model: DenseCLIP, folder: Path, kind: str) -> None:
    """Write a CLIP as open_clip ("cocu") or transformers reads it. Raises CocuError where that has no such model."""
    if kind == "cocu":
        save_folder(model, folder)
        return
    write_folder(folder, clip_to_huggingface(model), clip_config(model))
    config = model.config
    save_processor(config.text_context, preprocessing(config.image_size, config.mean, config.std), folder)


def save_processor(context: int, images: dict[str, Any], folder: Path) -> None:
    """Write what transformers' ``CLIPProcessor.from_pretrained`` reads: how images are prepared, and CLIP's tokenizer."""
    words = tokenizer()
    vocabulary = {SPECIAL.get(token, token): number for token, number in words.encoder.items()}
    merges = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in words.bpe_ranks)]) + "\n"

    start, end = SPECIAL.values()
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context, **special}

    with files.atomic_write(str(folder / "merges.txt")) as stream:
        stream.write(merges.encode())
    files.write_json(str(folder / "vocab.json"), vocabulary)
    files.write_json(str(folder / "tokenizer_config.json"), settings)
    files.write_json(str(folder / "preprocessor_config.json"), images)


def preprocessing(size: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> dict[str, Any]:
    """The settings of transformers' CLIPImageProcessor for images of ``size`` pixels."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


if __name__ == "__main__":
    sys.exit(main())
