"""The command line of ``cocu segment``. Light to import: no torch."""

from __future__ import annotations

import argparse
import os

from PIL import Image

from curation.base.configuration import require
from curation.base.options import CommandParser
from curation.base.terminal import run_command
from evaluation.options import AUTO
from segmenters.paths import require_checkpoint


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu segment",
        description="Draw where the words are in an image. Name everything that you expect, including backgrounds such as "
        "grass: each pixel gets the word that fits it best.",
    )
    parser.add_argument("image", help="a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file")
    parser.add_argument("--words", required=True, help='comma-separated, such as "red fox, grass, water"')
    parser.add_argument(
        "-o", "--output", default="segmentation.png", help="picture to write (default: segmentation.png)"
    )
    parser.add_argument("--checkpoint", help="as for cocu eval (default: newest .ckpt in artifacts/)")
    parser.add_argument(
        "--heatmap", action="store_true", help="draw how well each pixel fits each word, one panel a word"
    )
    parser.add_argument(
        "--per-word", action="store_true", help="with --heatmap: a colour scale of its own for every word"
    )
    parser.add_argument(
        "--threshold",
        type=threshold_value,
        help="leave pixels whose best word scores less unnamed: 0 to 1, or auto, chosen by the image (default: name all)",
    )
    parser.add_argument("--size", type=int, help="pixels of the short side (default: twice the model's input)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    return parser


def threshold_value(text: str) -> float | str:
    """A number, or auto. Raises ValueError for anything else."""
    return text if text == AUTO else float(text)


def words_of(args: argparse.Namespace) -> list[str]:
    """The words to look for, each once."""
    return list(dict.fromkeys(word.strip() for word in args.words.split(",") if word.strip()))


def check_options(args: argparse.Namespace) -> None:
    """Raises CocuError for options that have no meaning, alone or together, and for paths that are not there."""
    words = words_of(args)
    require(bool(words), "words: none is given; separate them by commas")
    suffix = os.path.splitext(args.output)[1].lower()
    written = Image.registered_extensions().get(suffix) in Image.SAVE  # others are only read
    require(written, f"output: {args.output}: Pillow writes no such format; use .png")
    require(
        args.heatmap or len(words) > 1,
        "words: a single word would cover the whole image; name what else is there, or use --heatmap",
    )
    require(
        args.threshold is None or not args.heatmap, "threshold: has no meaning with --heatmap; leave one of them out"
    )
    in_range = args.threshold in (None, AUTO) or 0 <= args.threshold <= 1
    require(in_range, f"threshold: {args.threshold} is not in 0..1")
    require(args.heatmap or not args.per_word, "per-word: is about the colours of --heatmap; add it, or leave this out")
    require(args.size is None or args.size > 0, f"size: {args.size} must be at least 1")
    require(os.path.exists(args.image), f"{args.image}: no such image")
    require_checkpoint(args.checkpoint)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        check_options(args)
        from evaluation.segment import write  # imports torch, which --help does without

        write(args)

    return run_command(work)
