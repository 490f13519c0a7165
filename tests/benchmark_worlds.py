"""Tiny data sets in exactly the layout, with the file names and label encodings, of the official ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 30)  # width, height
CITY = dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True))
COCO_FIRST_THINGS = {0: 1, 1: 2, 10: 11, 12: 12, 24: 24, 26: 25, 27: 26, 30: 27, 89: 80}  # value in the PNG: class


def photo(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """A picture with blocks of colour."""
    blocks = np.random.default_rng(seed).integers(0, 255, (3, 4, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)


def stripes(values: list[int], size: tuple[int, int] = SIZE) -> np.ndarray:
    """(H, W) int64: vertical stripes of the values, in order."""
    return np.broadcast_to(np.array(values)[np.arange(size[0]) * len(values) // size[0]], size[::-1]).copy()


def mask(path: Path, values: np.ndarray, palette: bool = False) -> None:
    """A PNG of 8 bits, with a palette as PASCAL VOC's, or in RGB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    if palette:
        image = image.convert("P")
        image.putdata(values.astype(np.uint8).ravel().tolist())
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
        assert image.mode == "P"
    image.save(path)


def rgb(labels: np.ndarray) -> np.ndarray:
    """ImageNet-S: R + 256 G."""
    return np.stack([labels % 256, labels // 256, np.zeros_like(labels)], -1)


def split(path: Path, ids: list[str]) -> None:
    """A split file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(ids) + "\n")


def voc(root: Path) -> list[np.ndarray]:
    """PASCAL VOC 2012: palette PNGs, 255 on the edges."""
    base, truth = root / "VOCdevkit/VOC2012", [stripes([0, 1, 20, 255]), stripes([15, 255])]
    for name, labels in zip(["2007_000033", "2011_003256"], truth, strict=True):
        photo(base / f"JPEGImages/{name}.jpg", 1)
        mask(base / f"SegmentationClass/{name}.png", labels, palette=True)
    photo(base / "JPEGImages/2007_000027.jpg", 2)  # of the training set
    split(base / "ImageSets/Segmentation/val.txt", ["2007_000033", "2011_003256"])
    return truth


def context(root: Path) -> list[np.ndarray]:
    """PASCAL Context."""
    base, truth = root / "VOCdevkit/VOC2010", [stripes([0, 1, 59])]
    photo(base / "JPEGImages/2008_000008.jpg", 3)
    mask(base / "SegmentationClassContext/2008_000008.png", truth[0])
    split(base / "ImageSets/SegmentationContext/val.txt", ["2008_000008"])
    return truth


def coco_object(root: Path, converted: bool = False) -> list[np.ndarray]:
    """COCO with stuffthingmaps: thing ids with gaps, stuff from 91 on, 255; or with converted masks."""
    base, values = root / "coco", stripes([*COCO_FIRST_THINGS, 91, 181, 255])
    lookup = np.zeros(256, np.int64)
    lookup[list(COCO_FIRST_THINGS)] = list(COCO_FIRST_THINGS.values())
    photo(base / "images/val2017/000000000139.jpg", 4)
    if converted:
        mask(base / "annotations/val2017/000000000139_instanceTrainIds.png", lookup[values])
    else:
        mask(base / "annotations/val2017/000000000139.png", values)
    return [lookup[values]]


def coco_stuff(root: Path, converted: bool = True) -> list[np.ndarray]:
    """COCO-Stuff."""
    base, truth = root / "coco_stuff164k", [stripes([0, 79, 80, 170, 255])]
    photo(base / "images/val2017/000000000285.jpg", 5)
    if converted:
        mask(base / "annotations/val2017/000000000285_labelTrainIds.png", truth[0])
    else:
        mask(base / "annotations/val2017/000000000285.png", stripes([0, 89, 91, 181, 255]))
    return truth


def imagenet_s(root: Path, classes: int) -> list[np.ndarray]:
    """ImageNet-S: RGB masks with ids above 255, 1000 ignored, a folder a class, an image of over a million pixels."""
    base = root / f"ImageNetS/ImageNetS{classes}"
    large = (1200, 900)
    truth = [stripes([0, classes, 1000]), stripes([classes // 2, 1000], large)]
    names = [("n01443537", "ILSVRC2012_val_00000236", SIZE), ("n02086240", "ILSVRC2012_val_00000009", large)]
    for (wnid, name, size), labels in zip(names, truth, strict=True):
        photo(base / f"validation/{wnid}/{name}.JPEG", 6, size)
        mask(base / f"validation-segmentation/{wnid}/{name}.png", rgb(labels))
    return truth


def cityscapes(root: Path, converted: bool = False) -> list[np.ndarray]:
    """Cityscapes: labelIds 0..33 (train ids where converted)."""
    base, values = root / "city", stripes(list(range(34)), (68, 34))
    lookup = np.full(256, 255, np.int64)
    lookup[list(CITY)] = list(CITY.values())
    stem = "frankfurt/frankfurt_000000_000294"
    photo(base / f"leftImg8bit/val/{stem}_leftImg8bit.png", 7, (68, 34))
    if converted:
        mask(base / f"gtFine/val/{stem}_gtFine_labelTrainIds.png", lookup[values])
    else:
        mask(base / f"gtFine/val/{stem}_gtFine_labelIds.png", values)
    return [lookup[values]]


def ade20k(root: Path) -> list[np.ndarray]:
    """ADE20K: 0 is nothing, 1..150 are classes; 255 is nothing in masks that were converted."""
    base = root / "ADEChallengeData2016"
    photo(base / "images/validation/ADE_val_00000001.jpg", 8)
    mask(base / "annotations/validation/ADE_val_00000001.png", stripes([0, 1, 150, 255]))
    return [stripes([255, 0, 149, 255])]


OFFICIAL = {
    "voc": voc,
    "context": context,
    "coco_object": coco_object,
    "imagenet_s_50": lambda root: imagenet_s(root, 50),
    "imagenet_s_300": lambda root: imagenet_s(root, 300),
    "coco_stuff": coco_stuff,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
}


def evaluated(checkpoint: object, path: Path, output: Path) -> list[str]:
    """The arguments that evaluate a checkpoint on a benchmark of one's own."""
    paths = ["--checkpoint", str(checkpoint), "--benchmarks", str(path), "--output", str(output)]
    return [*paths, "--device", "cpu"]


def own(folder: Path, images: int = 5, **changes: object) -> Path:
    """A user's benchmark, small images of several sizes; returns its YAML file. ``changes`` replace keys."""
    import yaml

    rng = np.random.default_rng(9)
    for number in range(images):
        size = [(100, 70), (64, 64), (70, 110)][number % 3]
        photo(folder / f"data/images/i{number}.png", number, size)
        mask(folder / f"data/masks/i{number}.png", stripes([*rng.integers(0, 4, 5).tolist(), 255], size))
    values = {
        "background": True,
        "bg_threshold": 0.4,
        "resize_short": 80,
        "crop": 64,
        "stride": 32,
        "classes": ["background", "red fox", "grass", "water"],
        "layout": {"root": "data", "images": "images/{id}.png", "masks": "masks/{id}.png"},
    } | changes
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
    return path
