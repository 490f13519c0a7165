"""Folders of pictures for packing, and what packing makes of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from PIL import Image

from curation.config import load
from curation.samples import Sample, list_shards, read_samples
from curation.tools.pack import main

NAMES = [
    "IMG.1.jpg",
    "IMG.2.jpg",
    "two words (1).JPG",
    "[brackets]{0..3}.jpg",
    "犬.png",
    "naïve.jpeg",
    "naive.jpeg",
    "same.jpg",
    "same.png",
    "trip.2021/day 1/IMG.1.jpg",
    "a-b.jpg",
    "a/b.jpg",
    "__meta__.jpg",
    "%d.jpg",
    "-o.jpg",
]


def picture(number: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (number * 7 % 256, 90, 30)).save(out, kind)
    return out.getvalue()


def write_folder(folder: Path, names: list[str] = NAMES) -> dict[str, tuple[bytes, str]]:
    """Images with captions beside them: {name: (content, caption)}."""
    content = {}
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content[name] = (picture(number, "PNG" if name.endswith("png") else "JPEG"), f"an apple, number {number}")
        path.write_bytes(content[name][0])
        (path.parent / (path.name.rpartition(".")[0] + ".txt")).write_text(content[name][1])
    return content


def pack(source: Path, folder: Path, *options: str) -> int:
    return main([str(source), "-o", f"{folder}/{{}}.tar", *options])


def samples(folder: Path) -> dict[str, tuple[bytes, str]]:
    """What curation reads of the tars: {file name: (image, caption)}, led back by keys.csv. Every sample must be usable."""
    config = load(f"{folder}.yaml")
    with open(folder / "keys.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    by_key = {(row["shard"], row["key"]): row["file_name"] for row in rows}
    assert len(by_key) == len({row["key"] for row in rows}) == len(rows)
    content = {}
    for shard in list_shards(config.shards):
        with open(shard.path, "rb") as stream:
            for item in read_samples(stream, shard.path, config.image, config.caption):
                assert isinstance(item, Sample), item
                content[by_key[shard.name, item.key]] = (item.image, item.caption)
    assert len(content) == len(rows)
    return content


def rejects(folder: Path) -> dict[str, str]:
    with open(folder / "rejects.csv", encoding="utf-8", newline="") as stream:
        return {row["file_name"]: row["reason"] for row in csv.DictReader(stream)}


def failed(capfd, *arguments: object) -> str:
    """Run; it must fail with one line. The line."""
    assert main([str(argument) for argument in arguments]) == 1
    error = capfd.readouterr().err
    (line,) = [line for line in error.splitlines() if line]
    assert line.startswith("error:")
    return line
