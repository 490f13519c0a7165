"""The grounds and skies of the demo world: textures computed from random numbers, each of its own colour and pattern."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

Texture = Callable[[np.random.Generator, int], np.ndarray]


def smooth(rng: np.random.Generator, size: int, across: int, down: int) -> np.ndarray:
    """Soft noise (size, size) float32 in about -1 to 1: random values on a grid of ``across`` x ``down``, interpolated."""
    grid = rng.uniform(-1, 1, (down, across)).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def coloured(colour: tuple[int, int, int], light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 3) float32: a colour that varies a little between scenes, lightened by ``light`` (size, size)."""
    base = np.array(colour, np.float32) + rng.uniform(-10, 10, 3)
    return (base + light[..., None]).astype(np.float32)


def down(size: int) -> np.ndarray:
    """(size, size) float32: 0 at the top to 1 at the bottom."""
    return np.broadcast_to(np.linspace(0, 1, size, dtype=np.float32)[:, None], (size, size))


def sky(rng: np.random.Generator, size: int) -> np.ndarray:
    """Light blue, paler towards the horizon, with clouds."""
    blue = coloured((110, 180, 245), 60 * down(size), rng)
    cloud = np.clip(2.5 * smooth(rng, size, 4, 6) - 0.7, 0, 1)[..., None]
    return blue * (1 - cloud) + 250 * cloud


def night(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark blue with stars."""
    picture = coloured((18, 20, 62), 25 * down(size), rng)
    picture[rng.random((size, size)) < 0.012] = (250, 245, 200)
    return picture


def grass(rng: np.random.Generator, size: int) -> np.ndarray:
    """Green with upright blades."""
    blades = smooth(rng, size, size // 2, size // 8)
    return coloured((95, 165, 50), 32 * blades + 10 * smooth(rng, size, 4, 4), rng)


def sand(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pale yellow, grainy, with ripples."""
    ripples = np.sin(size * 0.16 * down(size) * np.pi + 4 * smooth(rng, size, 3, 3))
    return coloured((228, 200, 140), 8 * ripples + rng.normal(0, 9, (size, size)), rng)


def water(rng: np.random.Generator, size: int) -> np.ndarray:
    """Deep blue green with waves."""
    waves = np.sin(size * 0.26 * down(size) * np.pi + 5 * smooth(rng, size, 6, 4))
    return coloured((15, 95, 150), 28 * waves, rng)


def snow(rng: np.random.Generator, size: int) -> np.ndarray:
    """Nearly white, with soft blue shadows."""
    shade = np.clip(smooth(rng, size, 4, 8), -1, 1)[..., None]
    return np.array([236, 240, 247], np.float32) + shade * np.array([14, 10, 4], np.float32)


def road(rng: np.random.Generator, size: int) -> np.ndarray:
    """Dark grey, speckled, with a dashed line."""
    picture = coloured((82, 82, 88), rng.normal(0, 9, (size, size)), rng)
    top = int(size * rng.uniform(0.55, 0.9))
    phase = int(rng.integers(size))
    dashes = (np.arange(size) + phase) % (size // 4) < size // 7
    picture[top : top + max(size // 32, 2), dashes] = (235, 225, 190)
    return picture


def brick(rng: np.random.Generator, size: int) -> np.ndarray:
    """Courses of red bricks."""
    height = size // 12
    width = size // 5
    rows, columns = np.mgrid[:size, :size] + rng.integers(width, size=2)[:, None, None]
    course = rows // height
    shifted = columns + course % 2 * (width // 2)
    shades = rng.uniform(-22, 22, (course.max() + 1, shifted.max() // width + 1))
    picture = coloured((172, 78, 60), shades[course, shifted // width], rng)
    picture[(rows % height == 0) | (shifted % width == 0)] = (205, 190, 178)  # mortar
    return picture


def wood(rng: np.random.Generator, size: int) -> np.ndarray:
    """Brown planks with grain."""
    height = size // 6
    rows = np.mgrid[:size, :size][0] + rng.integers(height)
    shades = rng.uniform(-14, 14, rows.max() // height + 1)[rows // height]
    picture = coloured((140, 92, 50), shades + 16 * smooth(rng, size, 5, size // 2), rng)
    picture[rows % height == 0] *= 0.55
    return picture


TEXTURES: dict[str, Texture] = {
    "sky": sky,
    "night": night,
    "grass": grass,
    "sand": sand,
    "water": water,
    "snow": snow,
    "road": road,
    "brick": brick,
    "wood": wood,
}
