"""From JPEGs to a trained step on one machine with a GPU: ``cocu curate``, then ``cocu train``; a part of ``make gpu``.

The parts alone cannot tell whether the cores keep the GPU busy: reading, decoding, copies and checkpoints are all in it.
The encoder's weights are random, and so are neighbours; their number, and with it the time, is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from data_speed import picture

from curation.base.processors import usable_processors
from curation.tools.pack.writer import ShardWriter

ROOT = Path(__file__).resolve().parent.parent
SIDE = 256  # pixels of the JPEGs
CONCEPTS = [f"thing{number}" for number in range(500)]
SKIPPED = 20  # first steps, in which kernels are chosen and workers start


@dataclass(frozen=True)
class Load:
    """How much is curated and trained."""

    shards: int
    rows: int  # samples of a shard
    steps: int
    batch: int
    sizes: dict[str, object]  # of the model that trains, where they are not the paper's
    compiled: bool


def write_shard(folder: Path, rows: int, shard: int) -> None:
    """A tar of JPEGs that all differ, with captions of two concepts each."""
    random = np.random.default_rng(shard)
    writer = ShardWriter(folder, shard, rows, sys.maxsize, lambda path: None)
    for row in range(rows):
        first, second = random.choice(CONCEPTS, 2, replace=False)
        fields = {"jpg": picture(random, SIDE), "txt": f"a photo of a {first} and a {second}"}
        writer.write(f"{shard:05d}{row:05d}", fields)
    writer.close()


def write_world(folder: Path, load: Load, model: Path) -> Path:
    """Shards, a vocabulary, and the data set's YAML, whose path is returned."""
    folder.mkdir()
    with ProcessPoolExecutor(usable_processors()) as pool:
        list(pool.map(partial(write_shard, folder, load.rows), range(load.shards)))
    (folder / "concepts.txt").write_text("\n".join(CONCEPTS) + "\n")
    path = folder / "world.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "world",
                "shards": str(folder / f"{{00000..{load.shards - 1:05d}}}.tar"),
                "encoder": {"model": f"local-dir:{model}"},
                "vocabulary": {"source": str(folder / "concepts.txt")},
                "retrieval": {"duplicates": "keep"},  # for a random encoder all images are alike
            }
        )
    )
    return path


def curate(world: Path, out: Path, device: str, workers: int, decoders: int) -> dict[str, float]:
    """Seconds of each stage of ``cocu curate``, and of all of it by the clock."""
    options = [f"--workers={workers}", f"--encoder.decoders={decoders}", f"--encoder.device={device}"]
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(world), "--output", str(out), *options]
    began = time.perf_counter()
    subprocess.run([*command, f"--retrieval.device={device}"], cwd=ROOT, check=True)
    whole = time.perf_counter() - began
    return {**json.loads((out / "manifest.json").read_text())["seconds"], "whole": whole}


def train(archives: Path, output: Path, load: Load, device: str) -> float:
    """Samples a second of ``cocu train``, once it runs: by the times in its TensorBoard log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [f"--model.sizes.{key}={json.dumps(value)}" for key, value in load.sizes.items()]
    options += [
        f"--data.archives={archives}",
        f"--data.batch_size={load.batch}",
        f"--data.workers={usable_processors() - 2}",
    ]
    options += [f"--output={output}", f"--trainer.max_steps={load.steps}", "--trainer.log_every_n_steps=1"]
    options += [f"--trainer.accelerator={'gpu' if device.startswith('cuda') else 'cpu'}", "--trainer.devices=1"]
    options += ["--trainer.precision=bf16-mixed", f"--model.compile={str(load.compiled).lower()}"]
    subprocess.run([sys.executable, "-m", "training", "fit", *options], cwd=ROOT, check=True)

    (events,) = {path.parent for path in output.rglob("events.out.tfevents.*")}
    log = EventAccumulator(str(events))
    log.Reload()
    losses = log.Scalars(next(tag for tag in log.Tags()["scalars"] if "loss" in tag))
    first, last = losses[min(SKIPPED, len(losses) // 2)], losses[-1]
    return load.batch * (last.step - first.step) / (last.wall_time - first.wall_time)


def whole(load: Load, device: str, model: Path, folder: Path) -> list[list[str]]:
    """Rows of the page: images/s that are embedded, that become archives, and samples/s that train."""
    count = load.shards * load.rows
    began = time.perf_counter()
    world = write_world(folder / "world", load, model)
    print(f"{count} JPEGs written in {time.perf_counter() - began:.0f} s", file=sys.stderr)

    rows = []
    cores = usable_processors()
    many = ((max(1, cores // 4), 3), (cores, 0))  # workers, and decoders of each
    for workers, decoders in many if device.startswith("cuda") else ((1, 0),):
        out = folder / f"out-{workers}-{decoders}"
        seconds = curate(world, out, device, workers, decoders)
        name = f"{count:,} JPEGs, {workers} workers with {decoders} decoders each"
        rows.append([f"{name}: embedded", f"{count / seconds['embed']:.0f}"])
        rows.append([f"{name}: all of `cocu curate`", f"{count / seconds['whole']:.0f}"])

    rate = train(out, folder / "trained", load, device)
    rows.append([f"`cocu train`, batches of {load.batch}{', compiled' if load.compiled else ''}", f"{rate:.0f}"])
    return rows
