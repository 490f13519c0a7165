"""Images of every allowed format, mutated: what comes of each, and how much memory that took. Run as a script.

    python tests/mutated_images.py --images 5000

Prints a JSON object: for every format, what came of its images; the reasons; MiB of memory above the process's own.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import re
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from curation.base.images import FORMATS, ImageError, decode, decode_stored

COUNTED = ("tried", "used", "rejected", "stopped", "leaked")
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
    if rng.random() < 0.5:
        repair_checksums(changed)
    return bytes(changed[: rng.randrange(len(changed))] if rng.random() < 0.1 else changed)


def repair_checksums(content: bytearray) -> None:
    """Give the chunks of a PNG the checksums that they should have, so that what is inside them is decoded."""
    start = 8
    while content.startswith(b"\x89PNG") and start + 12 <= len(content):
        end = start + 8 + int.from_bytes(content[start : start + 4], "big")
        if end + 4 > len(content):
            return
        content[end : end + 4] = zlib.crc32(content[start + 4 : end]).to_bytes(4, "big")
        start = end + 4


def peak() -> float:
    """The most memory that this process has had, in MiB."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def resized(image: Image.Image) -> Image.Image:
    """As CLIP's preprocessing does it: the short side becomes SHORT pixels."""
    scale = SHORT / min(image.size)
    return image.resize([max(SHORT, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def main() -> None:
    """Decode mutated images, and say what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = random.Random(args.seed)
    images = originals()
    for _, content in images:  # every decoder is loaded, and none of it is counted
        resized(decode(content, SHORT))

    own = peak()
    kinds: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for number in range(args.images):
        kind, content = images[number % len(images)]
        counts = kinds.setdefault(f"image: {kind}", Counter(dict.fromkeys(COUNTED, 0)))
        counts["tried"] += 1
        counts[outcome(mutated(content, rng), reasons)] += 1

    print(json.dumps({"kinds": kinds, "mib": round(peak() - own, 1), "reasons": dict(reasons.most_common(30))}))


def outcome(content: bytes, reasons: Counter[str]) -> str:
    """What comes of an image in the ways of all callers: used, rejected, or leaked, another exception."""
    result = "used"
    for options in ({"short": SHORT}, {}, {"short": 96, "rough": True}, None):
        try:
            if options is None:
                decode_stored(content)
            else:
                picture = decode(content, **options)
                if options == {"short": SHORT}:
                    resized(picture)
                del picture  # before the next is decoded
        except ImageError as error:
            if options == {"short": SHORT}:
                result = "rejected"
                reasons[str(error)[:80]] += 1
            assert "\n" not in str(error)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            return "leaked"
    return result


if __name__ == "__main__":
    main()
