"""One scene: two to four things on one or two kinds of stuff, and the class of every pixel. Pure: arrays out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipelines.demo.artwork import DRAWINGS, stamps
from pipelines.demo.stuff import TEXTURES

SIZE = 96  # pixels of a scene's side
CLASSES = (*DRAWINGS, *TEXTURES)  # the class index of a mask's pixel counts along these
MIXED = 255  # mask value of pixels on an edge, which belong to two things
LEAST_AREA = 0.015  # share of the picture below which a concept does not count as visible


@dataclass(frozen=True)
class Setting:
    """What occurs together: stuff from top to bottom, things that stand on the lower, and things that fly."""

    stuff: tuple[tuple[str, ...], ...]
    standing: tuple[str, ...]
    flying: tuple[str, ...] = ()
    straight: bool = False  # the border between the stuff is a straight line


SETTINGS = (
    Setting(
        (("sky", "grass"), ("sky", "grass"), ("grass",)),
        ("cow", "pig", "sheep", "duck", "tractor", "sunflower", "cow", "pig", "sheep", "house"),
        ("balloon", "butterfly"),
    ),
    Setting(
        (("sky", "grass"), ("night", "grass"), ("grass",)),
        ("bear", "fox", "mushroom", "tree", "sunflower"),
        ("butterfly",),
    ),
    Setting(
        (("sky", "snow"), ("night", "snow"), ("snow",)),
        ("penguin", "snowman", "bear", "fox", "tree", "house", "penguin", "snowman"),
        ("airplane", "balloon"),
    ),
    Setting(
        (("sky", "road"), ("brick", "road"), ("night", "road"), ("road",)),
        ("car", "bus", "house", "tree", "umbrella", "tractor", "car", "bus"),
        ("airplane", "balloon"),
        straight=True,
    ),
    Setting(
        (("sky", "water"), ("night", "water"), ("water",)),
        ("whale", "octopus", "turtle", "fish", "duck", "whale"),
        ("airplane", "balloon"),
    ),
    Setting(
        (("sky", "sand"), ("water", "sand"), ("sand",)),
        ("turtle", "umbrella", "watermelon", "octopus", "car"),
        ("butterfly", "airplane"),
    ),
    Setting(
        (("brick", "wood"), ("wood",), ("brick",)),
        ("apple", "banana", "eggplant", "watermelon", "pumpkin", "mushroom"),
        ("butterfly",),
        straight=True,
    ),
)
STRAY = 0.15  # chance of each thing to be one that does not belong to the setting
FLYING = 0.15  # chance of each of the others to be one that flies

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Scene:
    """A picture and its truth."""

    picture: np.ndarray  # (SIZE, SIZE, 3) uint8
    mask: np.ndarray  # (SIZE, SIZE) uint8: class index along CLASSES, or MIXED
    objects: tuple[str, ...]  # visible things, the largest first
    stuff: tuple[str, ...]  # visible stuff, the largest first
    area: dict[str, float]  # share of the picture of each of them


def draw(rng: np.random.Generator, things: int | None = None, scale: float = 1.0) -> Scene:
    """A random scene. ``things``: how many (default 2 to 4); ``scale``: their size against the usual one."""
    while True:
        scene = _compose(rng, things or int(rng.choice([2, 3, 4], p=[0.4, 0.4, 0.2])), scale)
        if scene is not None:
            return scene


def _compose(rng: np.random.Generator, count: int, scale: float) -> Scene | None:
    """One attempt; None when a thing or the stuff came to lie out of sight."""
    setting = SETTINGS[rng.integers(len(SETTINGS))]
    grounds = setting.stuff[rng.integers(len(setting.stuff))]
    horizon = int(SIZE * rng.uniform(0.36, 0.6)) if len(grounds) == 2 else 0
    picture = np.zeros((SIZE, SIZE, 3), np.float32)
    mask = np.full((SIZE, SIZE), MIXED, np.uint8)
    everywhere = np.ones((SIZE, SIZE), np.float32)
    _blend(picture, mask, TEXTURES[grounds[0]](rng, SIZE), everywhere, grounds[0])
    if horizon:
        _blend(picture, mask, TEXTURES[grounds[1]](rng, SIZE), _below(rng, horizon, setting.straight), grounds[1])

    things = _choose_things(rng, setting, count)
    drawings = []
    boxes: list[Box] = []
    for thing in things:
        side = SIZE * scale * rng.uniform(0.92, 1.12) * {1: 0.62, 2: 0.5, 3: 0.43}.get(count, 0.38)
        stamp = _vary(rng, thing, side)
        boxes.append(_choose_box(rng, stamp.size, boxes, horizon, thing in setting.flying))
        drawings.append(stamp)

    for number in sorted(range(count), key=lambda number: boxes[number][3]):  # what stands lower is nearer
        layer = Image.new("RGBA", (SIZE, SIZE))
        layer.paste(drawings[number], boxes[number][:2])
        pixels = np.asarray(layer, np.float32)
        _blend(picture, mask, pixels[..., :3], pixels[..., 3] / 255, things[number])

    share = np.bincount(mask.ravel(), minlength=256)[: len(CLASSES)] / mask.size
    area = {CLASSES[i]: round(float(share[i]), 4) for i in np.argsort(-share, kind="stable") if share[i] >= LEAST_AREA}
    if set(area) != {*grounds, *things}:
        return None
    objects = tuple(name for name in area if name in DRAWINGS)
    stuff = tuple(name for name in area if name in TEXTURES)
    return Scene(np.clip(picture, 0, 255).astype(np.uint8), mask, objects, stuff, area)


def _blend(picture: np.ndarray, mask: np.ndarray, colours: np.ndarray, alpha: np.ndarray, name: str) -> None:
    """Lay colours (H, W, 3) over the picture by alpha (H, W), and note in the mask which class the pixels now show."""
    picture += alpha[..., None] * (colours - picture)
    mask[alpha > 0.25] = MIXED
    mask[alpha >= 0.75] = CLASSES.index(name)


def _below(rng: np.random.Generator, horizon: int, straight: bool) -> np.ndarray:
    """(SIZE, SIZE) float32: the share of each pixel that lies below a horizon, straight or hilly."""
    columns = np.linspace(0, 2 * np.pi, SIZE)
    hills = sum(rng.uniform(0, 2.5) * np.sin(k * columns + rng.uniform(0, 6)) for k in (1, 2, 3))
    edge = horizon + (0 if straight else hills)
    return np.clip(np.arange(SIZE)[:, None] - edge + 0.5, 0, 1).astype(np.float32) * np.ones((1, SIZE), np.float32)


def _choose_things(rng: np.random.Generator, setting: Setting, count: int) -> list[str]:
    """Different things, most of them of the setting, at most one of them flying."""
    chosen: list[str] = []
    while len(chosen) < count:
        if rng.random() < STRAY:
            thing = list(DRAWINGS)[rng.integers(len(DRAWINGS))]
        elif setting.flying and rng.random() < FLYING:
            thing = setting.flying[rng.integers(len(setting.flying))]
        else:
            thing = setting.standing[rng.integers(len(setting.standing))]
        if thing not in chosen and not (thing in setting.flying and set(chosen) & set(setting.flying)):
            chosen.append(thing)
    return chosen


def _vary(rng: np.random.Generator, thing: str, side: float) -> Image.Image:
    """One of the drawings of a thing: its long side ``side`` pixels, perhaps mirrored, slightly turned and tinted."""
    drawings = stamps()[thing]
    stamp = drawings[rng.integers(len(drawings))]
    factor = side / max(stamp.size)
    stamp = stamp.resize([max(round(length * factor), 1) for length in stamp.size], Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        stamp = stamp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stamp = stamp.rotate(rng.uniform(-10, 10), Image.Resampling.BICUBIC, expand=True)

    hue, saturation, value = Image.merge("RGB", stamp.split()[:3]).convert("HSV").split()
    turn = int(rng.integers(-6, 7))
    strength = rng.uniform(0.85, 1.15)
    light = rng.uniform(0.88, 1.08)
    tinted = Image.merge(
        "HSV",
        [
            hue.point([(level + turn) % 256 for level in range(256)]),
            saturation.point([min(round(level * strength), 255) for level in range(256)]),
            value.point([min(round(level * light), 255) for level in range(256)]),
        ],
    ).convert("RGB")
    tinted.putalpha(stamp.getchannel("A"))
    return tinted


def _choose_box(rng: np.random.Generator, size: tuple[int, int], boxes: list[Box], horizon: int, flies: bool) -> Box:
    """A box for a stamp of ``size`` where it covers little of what is in ``boxes`` already."""
    width, height = size
    best: Box = (0, 0, width, height)
    least = np.inf
    for _ in range(24):
        left = int(rng.integers(-4, max(SIZE - width + 4, -3)))
        if flies:
            top = int(rng.integers(-2, max(horizon - height // 2, 6)))
        else:
            bottom = int(rng.integers(min(max(horizon + 6, height - 2), SIZE), SIZE + 3))
            top = bottom - height
        box = (left, top, left + width, top + height)

        covered = max((_overlap(box, other) for other in boxes), default=0.0)
        if covered < least:
            best = box
            least = covered
        if covered < 0.05:
            break
    return best


def _overlap(a: Box, b: Box) -> float:
    """Common area of two boxes relative to the smaller one."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / smaller
