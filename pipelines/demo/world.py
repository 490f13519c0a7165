"""The demo world on disk, made once: training scenes as webdataset tars, validation scenes in PASCAL VOC's layout.

FOLDER/train/{00000..00007}.tar      key.jpg, key.txt (caption), key.json (truth)
FOLDER/val/                          JPEGImages, SegmentationClass, ImageSets/Segmentation/val.txt, classes.txt
FOLDER/concepts.txt                  the names of all things and stuff
FOLDER/ATTRIBUTION.txt               whose drawings these are
FOLDER/world.json                    what was made; written last
"""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import secrets
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from curation.base import files
from curation.base.errors import CocuError
from pipelines.demo.artwork import attribution
from pipelines.demo.captions import caption
from pipelines.demo.scene import CLASSES, Scene, draw

FOLDER = os.path.join("artifacts", "demo-world")
RECIPE = 2  # raised whenever what is drawn changes, so that a world of an older recipe is made again
TRAINING, VALIDATION = 1, 2  # streams of random numbers
QUALITY = 90  # of JPEGs
MARKER = "world.json"


@dataclass(frozen=True)
class WorldConfig:
    """How much is made."""

    shards: int = 8
    scenes: int = 500  # per shard
    validation: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises CocuError for a world without scenes."""
        for name in ("shards", "scenes", "validation"):
            if getattr(self, name) < 1:
                raise CocuError(f"{name}: {getattr(self, name)} must be at least 1")


DEMO = WorldConfig()  # the world of `make curate`


def ensure_world(
    folder: str,
    config: WorldConfig | None = None,
    processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> bool:
    """Make the world in ``folder`` unless it is there; returns whether it had to be made.

    The folder appears whole, or not at all; its content depends on ``config`` alone, never on ``processes``.
    ``progress(done, total)`` is called as scenes are finished. Raises CocuError when the extra ``demo`` is not installed,
    or the folder holds something else.
    """
    config = config or DEMO
    if is_made(folder, config):
        return False
    if os.path.exists(folder) and not os.path.isfile(os.path.join(folder, MARKER)):
        raise CocuError(f"{folder}: exists, but is not a demo world (no {MARKER}); remove it, or choose another folder")

    credit = attribution()
    temporary = f"{folder.rstrip(os.sep)}{files.TEMPORARY}{secrets.token_hex(4)}"
    os.makedirs(temporary)
    try:
        _write_world(temporary, config, credit, processes, progress or (lambda done, total: None))
        if os.path.exists(folder):  # a world of another recipe
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except OSError as error:
        if is_made(folder, config):  # another process was faster
            return False
        raise CocuError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def is_made(folder: str, config: WorldConfig) -> bool:
    """Whether the folder holds just this world."""
    return files.read_note(os.path.join(folder, MARKER)).get("recipe") == _recipe(config)


def _recipe(config: WorldConfig) -> dict[str, Any]:
    return {"version": RECIPE, **asdict(config)}


def _write_world(
    folder: str, config: WorldConfig, credit: str, processes: int, progress: Callable[[int, int], None]
) -> None:
    tasks: list[Callable[[], int]] = [partial(_write_shard, folder, config, shard) for shard in range(config.shards)]
    tasks.append(partial(_write_validation, folder, config))
    total = config.shards * config.scenes + config.validation
    done = 0
    progress(done, total)
    for scenes in _run_tasks(tasks, processes):
        done += scenes
        progress(done, total)

    for name, lines in (("concepts.txt", CLASSES), ("ATTRIBUTION.txt", [credit])):
        Path(folder, name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    files.write_json(os.path.join(folder, MARKER), {"recipe": _recipe(config), "attribution": credit})


def _run_tasks(tasks: list[Callable[[], int]], processes: int) -> Iterator[int]:
    if processes == 1:
        yield from (task() for task in tasks)
        return

    context = multiprocessing.get_context("spawn")  # a process that is forked from one with threads may hang
    ignore_interrupts = (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this process to deal with
    with ProcessPoolExecutor(processes, context, initializer=signal.signal, initargs=ignore_interrupts) as pool:
        try:
            for future in as_completed([pool.submit(task) for task in tasks]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def scene_and_caption(seed: int, stream: int, number: int) -> tuple[Scene, str, list[str]]:
    """A scene by its number, the same in whatever process and order it is drawn; its caption, and what that mentions."""
    rng = np.random.default_rng([seed, stream, number])
    scene = draw(rng)
    return scene, *caption(rng, scene.objects, scene.stuff)


def jpeg(picture: np.ndarray) -> bytes:
    """The JPEG of a picture (H, W, 3) uint8."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def truth(scene: Scene, text: str, mentioned: list[str]) -> dict[str, Any]:
    """The json sidecar: what is visible, its share of the picture, what is mentioned, and whose drawings these are."""
    return {
        "caption": text,
        "objects": list(scene.objects),
        "stuff": list(scene.stuff),
        "mentioned": mentioned,
        "area": scene.area,
        "attribution": attribution(),
    }


def _write_shard(folder: str, config: WorldConfig, shard: int) -> int:
    os.makedirs(os.path.join(folder, "train"), exist_ok=True)
    with tarfile.open(os.path.join(folder, "train", f"{shard:05d}.tar"), "w") as tar:
        for number in range(shard * config.scenes, (shard + 1) * config.scenes):
            scene, text, mentioned = scene_and_caption(config.seed, TRAINING, number)
            sidecar = json.dumps(truth(scene, text, mentioned)).encode()
            for extension, content in (("jpg", jpeg(scene.picture)), ("txt", text.encode()), ("json", sidecar)):
                info = tarfile.TarInfo(f"{number:06d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return config.scenes


def _write_validation(folder: str, config: WorldConfig) -> int:
    base = Path(folder, "val")
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / name).mkdir(parents=True)

    palette = voc_palette()
    with open(base / "captions.jsonl", "w", encoding="utf-8") as captions:
        for number in range(config.validation):
            scene, text, mentioned = scene_and_caption(config.seed, VALIDATION, number)
            (base / f"JPEGImages/{number:06d}.jpg").write_bytes(jpeg(scene.picture))
            mask = Image.fromarray(scene.mask, "P")
            mask.putpalette(palette)
            mask.save(base / f"SegmentationClass/{number:06d}.png")
            captions.write(json.dumps({"key": f"{number:06d}", **truth(scene, text, mentioned)}) + "\n")

    names = "".join(f"{number:06d}\n" for number in range(config.validation))
    (base / "ImageSets/Segmentation/val.txt").write_text(names)
    (base / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return config.validation


def voc_palette() -> list[int]:
    """PASCAL VOC's colours of the 256 indices, flat: the bits of an index spread over red, green and blue.

    >>> voc_palette()[:9]
    [0, 0, 0, 128, 0, 0, 0, 128, 0]
    """
    index = np.arange(256)[:, None]
    colours = np.zeros((256, 3), np.uint8)
    for level in range(8):  # three bits of the index are one bit of each channel, the highest first
        colours |= (((index >> (3 * level + np.arange(3))) & 1) << (7 - level)).astype(np.uint8)
    return colours.ravel().tolist()
