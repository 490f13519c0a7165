"""The command line of ``cocu convert``. Light to import: no torch."""

from __future__ import annotations

import argparse

from curation.base.options import CommandParser
from curation.base.terminal import run_command
from segmenters.paths import require_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu convert",
        description="Convert weights between our checkpoints and Hugging Face folders, bit by bit the same.",
        epilog="""examples:
  cocu convert artifacts/my-run/last.ckpt groupvit-hf
      from training to transformers: GroupViTModel.from_pretrained("groupvit-hf"), CLIPProcessor.from_pretrained(...)
  cocu convert groupvit-hf groupvit
      back to config.json and model.safetensors as training and evaluation read them
  cocu convert artifacts/my-run/last.ckpt groupvit --to cocu
      only the weights of a training checkpoint, without the optimizer's state
  cocu convert artifacts/training/dense_demo/checkpoints/last.ckpt clip
      a CLIP from dense training to open_clip: open_clip.create_model_and_transforms("local-dir:clip")

The scale of the prompt loss in a training checkpoint serves training alone; it is left out.""",
    )
    parser.add_argument(
        "source",
        help="a .ckpt or the folder of a training run, a folder of ours, a Hugging Face GroupViT folder, or a CLIP by "
        "name: see cocu eval",
    )
    parser.add_argument("target", help="the folder to write; it must not exist, or be empty")
    parser.add_argument(
        "--to",
        choices=("huggingface", "cocu"),
        help="the kind of folder to write (default: cocu for a Hugging Face folder and for a CLIP, which is one that "
        "open_clip reads; else huggingface)",
    )
    parser.add_argument(
        "--half", action="store_true", help="weights in fp16: half the size; our programs compute in fp32 all the same"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        require_checkpoint(args.source)
        from segmenters.convert import convert  # imports torch, which --help does without

        print(convert(args.source, args.target, args.to, args.half))

    return run_command(work)
