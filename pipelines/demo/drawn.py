"""Many scenes in memory, in the size that the demo CLIP sees. Light to import: the processes that draw need no torch."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image

from pipelines.demo.scene import CLASSES, draw

IMAGE = 64  # pixels
SCENES, SINGLE, HELD_OUT = 3, 4, 5  # streams of random numbers; those of the world on disk are 1 and 2


@dataclass(frozen=True)
class DrawnScenes:
    """Scenes in memory: N pictures with what is visible in each."""

    pictures: np.ndarray  # (N, IMAGE, IMAGE, 3) uint8
    objects: Sequence[tuple[str, ...]]
    stuff: Sequence[tuple[str, ...]]

    def visible(self) -> np.ndarray:
        """(N, classes) bool: what is visible in each."""
        pairs = zip(self.objects, self.stuff, strict=True)
        return np.array([[name in objects or name in stuff for name in CLASSES] for objects, stuff in pairs])


def draw_many(seed: int, stream: int, count: int, processes: int = 2) -> DrawnScenes:
    """``count`` scenes of a stream of random numbers: the same whatever the number of processes."""
    draw_one = partial(_draw_one, seed, stream)
    if processes == 1:
        scenes = list(map(draw_one, range(count)))
    else:
        with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
            scenes = list(pool.map(draw_one, range(count), chunksize=100))
    pictures, objects, stuff = zip(*scenes, strict=True)
    return DrawnScenes(np.stack(pictures), objects, stuff)


def _draw_one(seed: int, stream: int, number: int) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    rng = np.random.default_rng([seed, stream, number])
    scene = draw(rng, 1, rng.uniform(0.9, 1.3)) if stream == SINGLE else draw(rng)
    small = Image.fromarray(scene.picture).resize((IMAGE, IMAGE), Image.Resampling.BICUBIC)
    return np.asarray(small), scene.objects, scene.stuff
