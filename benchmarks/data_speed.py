"""``python benchmarks/data_speed.py``: samples a second of the data module, against what a training step takes.

Both on one core: tars and archives are read, joined, decoded, augmented and tokenised in this process, and the model
trains in it, in turn. Two loads: a small model on pictures of 96 px, and the paper's model on pictures of 256 px.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from results import arguments, in_turns, publish

from curation.archive import SCHEMA, ConceptArchive, Sampler, archive_batch
from curation.base.configuration import read_yaml
from curation.base.markdown import table
from curation.base.parquet import parquet_writer
from curation.base.ragged import Ragged
from curation.base.versions import conditions
from segmenters.groupvit import GroupViT, GroupViTConfig
from training.augmentation import Augmentation
from training.batches import Batch, Batches
from training.loss import contrastive_losses
from training.optimizer import adamw, parameter_groups
from training.plan import Plan
from training.stream import Stream, TrainingShard

ROOT = Path(__file__).resolve().parent.parent
RATIO = 3.0  # samples/s of the data against the model's
CONCEPTS = [f"concept {number}" for number in range(500)]
SIZES = ROOT / "training" / "configs" / "sizes" / "scenes.yaml"  # of the small model


def picture(rng: np.random.Generator, size: int) -> bytes:
    """A JPEG of smooth blocks and some noise, about as large as a photo's."""
    blocks = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(blocks) + rng.normal(0, 8, (size, size, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_run(folder: Path, size: int, shards: int, rows: int) -> ConceptArchive:
    """A finished run in ``folder``: tars with pictures of ``size`` px, and archives of about twelve concepts."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(shards):
        keys = [f"{shard:04d}{row:05d}" for row in range(rows)]
        captions = [f"a photo of {CONCEPTS[rng.integers(500)]} and a {CONCEPTS[rng.integers(500)]}" for _ in keys]
        write_tar(folder / f"{shard:05d}.tar", keys, captions, size, rng)
        write_archives(folder / "archives" / f"{shard:05d}.parquet", keys, captions, rng)

    config = {"shards": [f"{{00000..{shards - 1:05d}}}.tar"], "image": "jpg", "caption": "txt"}
    (folder / "manifest.json").write_text(json.dumps({"config": config}))
    return ConceptArchive.open(str(folder))


def write_tar(path: Path, keys: list[str], captions: list[str], size: int, rng: np.random.Generator) -> None:
    """A tar with a picture of ``size`` px for every caption."""
    with tarfile.open(path, "w") as tar:
        for key, caption in zip(keys, captions, strict=True):
            for extension, content in (("jpg", picture(rng, size)), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_archives(path: Path, keys: list[str], captions: list[str], rng: np.random.Generator) -> None:
    """Archives of about twelve random concepts each."""
    lengths = rng.poisson(12, len(keys))
    score = np.concatenate([np.sort(1 + rng.random(length))[::-1] for length in lengths]).astype(np.float32)
    archives = Ragged.from_lengths(lengths, rng.integers(0, len(CONCEPTS), len(score)))
    columns: dict[str, np.ndarray] = {
        "score": score,
        "global": score / 2,
        "local": score / 2,
        "cluster": rng.integers(0, 6, len(score)).astype(np.int16),
        "support": np.ones(len(score), np.int16),
    }
    batch = archive_batch(
        pa.array(keys), pa.array(captions), pa.array(CONCEPTS), archives.offsets, archives.values, **columns
    )
    with parquet_writer(str(path), SCHEMA, {}) as writer:
        writer.write_batch(batch)


def read(archive: ConceptArchive, size: int, batch_size: int, count: int) -> list[Batch]:
    """The first ``count`` batches of an epoch, with the paper's augmentation and cluster-guided prompts."""
    stream = Stream(tuple(TrainingShard(source, archive) for source in archive.sources), Sampler(), 1000, 0)
    plan = Plan(tuple(archive.rows), batch_size)
    return list(islice(Batches(stream, plan, partial(Augmentation().transform, size), 77), count))


def training_step(config: GroupViTConfig, batch: Batch) -> Callable[[], None]:
    """A training step in bf16 on one batch."""
    torch.manual_seed(0)
    model = GroupViT(config).train()
    optimizer = adamw(parameter_groups(model, 0.05), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            image = model.encode_image(batch.pixels)
            captions, prompts = model.encode_texts([batch.captions, batch.prompts])
        prompts = prompts.unflatten(0, (len(image), -1))  # (B, M, D)
        losses = contrastive_losses(image, captions, prompts, model.scale, model.scale)
        assert losses.prompts is not None
        (losses.caption + losses.prompts).backward()
        optimizer.step()

    return step


def measure(archive: ConceptArchive, config: GroupViTConfig, batch_size: int, rounds: int) -> tuple[float, float]:
    """Samples a second of the data and of the model, which take turns."""
    count = max(min(sum(archive.rows), 2048) // batch_size // 2, 1)
    step = training_step(config, read(archive, config.image_size, batch_size, 1)[0])
    step()
    reading, training = in_turns([partial(read, archive, config.image_size, batch_size, count), step], rounds)
    return count * batch_size / reading, batch_size / training


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "Samples a second of the data module and of a training step.")
    parser.add_argument("--archives", help="measure the small model on this output folder of a curation run too")
    args = parser.parse_args()
    rounds = 4 if args.full else 2
    rows = 1024 if args.full else 256
    torch.set_num_threads(1)

    small = GroupViTConfig(**read_yaml(SIZES)["model"]["sizes"])
    with tempfile.TemporaryDirectory() as folder:
        loads = [
            ("small model, pictures of 96 px", make_run(Path(folder, "small"), 96, 4, rows), small, 128),
            ("paper's model, pictures of 256 px", make_run(Path(folder, "large"), 256, 4, rows), GroupViTConfig(), 16),
        ]
        if args.archives:
            name = f"small model, {Path(args.archives).name}"
            loads.append((name, ConceptArchive.open(args.archives), small, 128))
        figures = {name: measure(archive, config, size, rounds) for name, archive, config, size in loads}

    lines = [[name, f"{data:,.0f}", f"{model:,.1f}", f"{data / model:.1f}"] for name, (data, model) in figures.items()]
    marks = {
        f"{name}: data at least {RATIO:.0f} times as fast as the model": data >= RATIO * model
        for name, (data, model) in figures.items()
    }
    text = (
        "Samples a second on one core: tars and archives read, joined, decoded, augmented as in the paper (RandAugment, "
        "random erasing) and tokenised; and a training step in bf16 with one caption and three prompts a sample. "
        f"Best of {rounds} rounds in turn."
    )
    rows_of_table = table(["", "data", "model", "data / model"], lines)
    return publish("Training data", [conditions("torch", "timm"), text, rows_of_table], marks)


if __name__ == "__main__":
    sys.exit(main())
