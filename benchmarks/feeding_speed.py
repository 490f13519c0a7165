"""``python benchmarks/feeding_speed.py``: how fast images reach an encoder, and whether a fast encoder is kept busy.

First what one core decodes and cuts to 224 pixels. Then a tar is read, decoded and handed to an encoder that only sleeps,
as long as one of a given rate would compute: together they should be as fast as the slower of the two.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from embedding_speed import write_tar
from open_clip.transform import image_transform
from PIL import Image
from results import arguments, publish

from curation.base import images
from curation.base.markdown import table
from curation.base.versions import conditions
from curation.decoding import THREADS, split
from curation.encoder import Encoder
from curation.samples import read_samples

SIDES = (256, 512, 1024)  # pixels of the JPEGs
INPUT = 224
BATCH = 64
RATIO = 0.9  # of the slower of the two
RATES = (0.5, 1.0, 2.0)  # of the encoder, to that of decoding
GPU = 3000  # images/s that an encoder on a GPU is assumed to reach


def jpeg(side: int, seed: int) -> bytes:
    """A JPEG with detail of all scales."""
    random = np.random.default_rng(seed)
    picture = np.zeros((side, side, 3))
    for size in (4, 16, 64, side):
        coarse = Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8))
        picture += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float64) * 4 / size**0.5
    out = io.BytesIO()
    Image.fromarray((255 * (picture - picture.min()) / np.ptp(picture)).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def rate_of_a_core(work: Callable[[bytes], object], content: list[bytes], rounds: int) -> float:
    """Images a second of processor time, the best of some rounds."""
    best = np.inf
    for _ in range(rounds):
        began = time.process_time()
        for image in content:
            work(image)
        best = min(best, time.process_time() - began)
    return len(content) / best


def decoding(rounds: int) -> list[list[str]]:
    """A line for each size: images a second of a core, decoded, decoded roughly, and decoded and cut; cores for a GPU."""
    cut, _ = split(image_transform(INPUT, is_train=False))
    rows = []
    for side in SIDES:
        content = [jpeg(side, seed) for seed in range(8)]
        rates = [
            rate_of_a_core(work, content, rounds)
            for work in (
                lambda image: images.decode(image, INPUT),
                lambda image: images.decode(image, INPUT, rough=True),
                lambda image: np.array(cut(images.decode(image, INPUT))),
                lambda image: np.array(cut(images.decode(image, INPUT, rough=True))),
            )
        ]
        kilobytes = sum(map(len, content)) / len(content) / 1e3
        cells = [f"{side} px, {kilobytes:.0f} kB", *(f"{rate:.0f}" for rate in rates)]
        rows.append([*cells, *(f"{GPU / rate:.1f}" for rate in rates[2:])])
    return rows


class Sleeper(Encoder):
    """An encoder of a given rate, in images/s, that takes none of the processor's time, as one on a GPU."""

    def __init__(self, rate: float) -> None:
        self.device, self.batch_size, self.side = "cuda:0", BATCH, INPUT
        self.preprocess = image_transform(INPUT, is_train=False)
        self._rate = rate

    def encode_images(self, images: torch.Tensor) -> np.ndarray:
        """Nothing, after a while."""
        if np.isfinite(self._rate):
            time.sleep(len(images) / self._rate)
        return np.zeros((len(images), 1), np.float32)


def together(path: Path, rate: float) -> float:
    """Images a second from a tar through an encoder of a given rate."""
    began = time.perf_counter()
    with open(path, "rb") as stream:
        samples = read_samples(stream, str(path), "jpg", "txt", 1 << 24)
        count = sum(len(batch[0]) for batch in Sleeper(rate).encode_samples(samples) if isinstance(batch, tuple))
    return count / (time.perf_counter() - began)


def measure(count: int, rounds: int) -> list[tuple[float, float, float]]:
    """For each of RATES: images/s of decoding alone, of the encoder, and of both together; the best of rounds in turn."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "00000.tar"
        write_tar(path, [jpeg(SIDES[0], seed) for seed in range(32)] * (count // 32))
        together(path, np.inf)
        for share in RATES:
            pairs = []
            for _ in range(rounds):
                alone = together(path, np.inf)
                pairs.append((alone, share * alone, together(path, share * alone)))
            results.append(max(pairs, key=lambda pair: pair[2] / min(pair[:2])))
    return results


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    args = arguments(__file__, "How fast images reach an encoder.").parse_args()
    count, rounds = (8192, 5) if args.full else (4096, 3)
    rates = decoding(6)
    results = measure(count, rounds)

    header = ["", "decoded", "roughly", "and cut", "roughly, and cut", f"cores for {GPU} images/s", "roughly"]
    rows = [
        [f"{share:g} times", f"{alone:.0f}", f"{encoder:.0f}", f"{both:.0f}", f"{both / min(alone, encoder):.2f}"]
        for share, (alone, encoder, both) in zip(RATES, results, strict=True)
    ]
    parts = [
        conditions("torch", "pillow", "open_clip_torch"),
        f"Images a second of one core (processor time), from JPEGs to {INPUT} pixels as bytes. Roughly: libjpeg's scaled "
        "decoding, which curation does not use since it gives other pixels, and so other embeddings.",
        table(header, rates),
        f"{count} JPEGs of {SIDES[0]} pixels in a tar, decoded in {THREADS} threads for an encoder of a rate that is so "
        "many times that of decoding; it sleeps, as the processor does not work for a GPU. Images/s, the best of "
        f"{rounds} rounds.",
        table(["encoder", "decoding alone", "encoder alone", "together", "of the slower"], rows),
    ]
    marks = {
        f"at least {RATIO} of the slower of the two, encoder {share:g} times ({both / min(alone, encoder):.2f})": (
            both >= RATIO * min(alone, encoder)
        )
        for share, (alone, encoder, both) in zip(RATES, results, strict=True)
    }
    return publish("Feeding", parts, marks)


if __name__ == "__main__":
    sys.exit(main())
