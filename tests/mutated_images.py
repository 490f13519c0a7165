"""Images of every allowed format, mutated: what comes of each, and how much memory that took. Run as a script.

    python tests/mutated_images.py --images 5000

Prints a JSON object: how many were tried and used, how often each reason was given, and MiB above the process's own.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from curation.base.images import FORMATS, ImageError, decode, decode_stored

SHORT = 224  # pixels that the short side would be resized to
MODES = {
    "JPEG": ("RGB", "L", "CMYK"),
    "PNG": ("RGB", "RGBA", "LA", "P", "1", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "P", "1"),
    "TIFF": ("RGB", "RGBA", "CMYK", "I", "F", "I;16", "P", "1"),
    "AVIF": ("RGB", "RGBA"),
}
OPTIONS = {
    "JPEG": (
        {"progressive": True},
        {"exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"},
    ),
    "WEBP": ({"lossless": True},),
    "TIFF": ({"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}),
}


def originals() -> list[tuple[str, bytes]]:
    """(format, content) of small images in every allowed format, in each of its modes and with each of its options."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    images = []
    for kind, modes in MODES.items():
        for mode in modes:
            converted = picture.convert("L").convert(mode) if mode in ("I", "F", "I;16") else picture.convert(mode)
            for options in ({}, *OPTIONS.get(kind, ())):
                stream = io.BytesIO()
                converted.save(stream, kind, **options)
                images.append((kind, stream.getvalue()))
        frames = io.BytesIO()
        if kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
            picture.save(frames, kind, save_all=True, append_images=[picture.rotate(90)])
            images.append((kind, frames.getvalue()))
    assert {kind for kind, _ in images} == set(FORMATS)
    return images


def mutated(content: bytes, rng: random.Random) -> bytes:
    """``content`` with a few bytes changed, most of them near its beginning, where the headers are; sometimes cut."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 6)):
        reach = len(changed) if rng.random() < 0.4 else min(len(changed), 128)
        position = rng.randrange(reach)
        if rng.random() < 0.5:
            changed[position] = rng.choice((0, 1, 2, 127, 128, 254, 255, rng.randrange(256)))
        else:
            length = rng.randint(1, 4)
            changed[position : position + length] = rng.randbytes(length)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def resized(image: Image.Image) -> Image.Image:
    """As CLIP's preprocessing does it: the short side becomes SHORT pixels."""
    scale = SHORT / min(image.size)
    return image.resize([max(SHORT, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def main() -> None:
    """Decode mutated images in the ways of all callers; whatever escapes from one ends the process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    images = originals()
    for _, content in images:  # every decoder is loaded, and none of it is counted
        resized(decode(content, SHORT))

    own = peak()
    outcomes: Counter[str] = Counter()
    largest = 0.0
    for number in range(args.images):
        kind, content = images[number % len(images)]
        damaged = mutated(content, rng)
        before = peak()
        try:
            resized(decode(damaged, SHORT))
            outcomes["used"] += 1
        except ImageError as error:
            assert "\n" not in str(error)
            outcomes["rejected"] += 1
            outcomes[f"{kind}: {str(error)[:60]}"] += 1
        for options in ({}, {"short": 96, "rough": True}):
            try:
                decode(damaged, **options)
            except ImageError:
                outcomes["rejected elsewhere"] += 1
        try:
            decode_stored(damaged)
        except ImageError:
            outcomes["rejected elsewhere"] += 1
        if peak() - before > 20 and peak() - own > largest:
            largest = peak() - own
            print(json.dumps({"kind": kind, "number": number, "above": round(largest)}), flush=True)
    summary = {"tried": args.images, "used": outcomes["used"], "rejected": outcomes["rejected"]}
    print(json.dumps(summary | {"mib": round(peak() - own, 1), "reasons": dict(outcomes.most_common(40))}))


if __name__ == "__main__":
    main()
