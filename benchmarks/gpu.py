"""``make gpu``: what a GPU does with this, in under ten minutes; nothing is downloaded.

First the tests marked ``gpu`` (tests/test_gpu.py), then speed and memory, with random weights and synthetic data, into
benchmarks/GPU.md under the card's name. Without a GPU all of it runs at tiny sizes on the CPU, and no page is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from embedding_speed import write_model
from gpu_whole import Load, whole
from synthetic import random_world, write_clip
from training_speed import made_up_texts

from curation.base.devices import choose_precision, has_fast_bf16, to_device
from curation.base.markdown import table
from curation.base.versions import conditions
from curation.config import EncoderConfig
from curation.encoder import load
from curation.index.lists import Lists
from curation.index.search import search_lists
from segmenters.groupvit import GroupViT, GroupViTConfig
from segmenters.text import Texts, arrange
from training.loss import contrastive_losses
from training.optimizer import adamw, parameter_groups

PAGE = Path(__file__).parent / "GPU.md"
NEIGHBOURS = 8  # L
PROBES = 16  # lists that each image looks into
ROUNDS = 5


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    models: tuple[str, ...]  # of open_clip; empty: a very small one
    batch: int  # images of a forward pass
    vectors: int
    lists: int
    queries: int
    model: GroupViTConfig
    samples: int  # of a training step
    compiled: bool
    whole: Load


FULL = Sizes(
    ("ViT-B-32", "ViT-B-16"),
    256,
    1_000_000,
    2048,
    16_384,
    GroupViTConfig(),
    256,
    True,
    Load(20, 2000, 120, 256, {}, True),
)
TINY_MODEL = GroupViTConfig(
    image_size=32, patch_size=8, width=16, heads=2, mlp_width=32, depths=(1, 1, 1), groups=(4, 2), assign_widths=(8, 32),
    text_width=16, text_heads=2, text_mlp_width=32, text_layers=1, projection_hidden=24, projection=8,
)  # fmt: skip
TINY = Sizes((), 4, 2_000, 8, 64, TINY_MODEL, 4, False, Load(2, 12, 4, 4, dataclasses.asdict(TINY_MODEL), False))


def seconds_of(work: Callable[[], object], device: str) -> tuple[float, float]:
    """The median seconds of some rounds after one to warm up, and the peak memory of the GPU in GB (0 on a CPU)."""
    gpu = device.startswith("cuda")
    work()
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return float(np.median(times)), torch.cuda.max_memory_allocated(device) / 1e9 if gpu else 0.0


# --- what is measured ---------------------------------------------------------------------------------------------------


def embedding(sizes: Sizes, device: str, folder: Path) -> list[list[str]]:
    """Images a second of encoders on pixels in main memory: the copy, the normalisation, the model, and the way back."""
    precision = choose_precision("auto", device, has_fast_bf16(device))
    rows = []
    for name in sizes.models or ("a very small one",):
        path = folder / name.replace(" ", "-")
        write_model(path, name) if sizes.models else write_clip(path)
        config = EncoderConfig(f"local-dir:{path}", precision=precision, batch_size=sizes.batch, device=device)
        encoder = load(config)
        pixels = torch.randn(sizes.batch, 3, encoder.side, encoder.side)
        seconds, memory = seconds_of(partial(encoder.encode_images, pixels), device)
        rows.append([f"{name} in {precision}", f"{sizes.batch / seconds:.1f}", f"{memory:.1f}"])
    return rows


def search(sizes: Sizes, device: str) -> list[list[str]]:
    """Images a second that look up their neighbours among all: what archives wait for."""
    world = random_world()
    step = 10_000
    parts = [world.samples(min(step, sizes.vectors - row), row).vectors for row in range(0, sizes.vectors, step)]
    vectors = torch.from_numpy(np.concatenate(parts))  # (N, D)
    centres = vectors[:: -(-sizes.vectors // sizes.lists)]  # (C, D): a sample is as good as k-means for the time
    on_device = to_device(centres, device)
    nearest = torch.cat([(to_device(part, device) @ on_device.T).argmax(1).cpu() for part in vectors.split(65_536)])
    order = nearest.argsort(stable=True)
    ends = torch.bincount(nearest, minlength=len(centres)).cumsum(0).tolist()
    bounds = [0, *ends]

    def read(number: int) -> tuple[torch.Tensor, np.ndarray]:
        ids = order[bounds[number] : bounds[number + 1]]
        return vectors[ids], ids.numpy()

    queries = vectors[: sizes.queries]
    probes = (queries @ centres.T).topk(min(PROBES, len(centres)), dim=1).indices.numpy()
    rows = []
    for bf16 in (False, True):
        lists = Lists(len(centres), read)

        def look_up(lists: Lists = lists, bf16: bool = bf16) -> None:
            search_lists(queries.numpy(), probes, lists, NEIGHBOURS, bf16, device)

        seconds, memory = seconds_of(look_up, device)
        name = f"{sizes.vectors:,} vectors, products in {'bf16' if bf16 else 'fp32'}"
        rows.append([name, f"{sizes.queries / seconds:.1f}", f"{memory:.1f}"])
    return rows


def training(sizes: Sizes, device: str) -> list[list[str]]:
    """Samples a second of training steps in bf16: three prompts each, clipping and AdamW; with and without compile."""
    kind = torch.device(device).type
    captions, prompts = made_up_texts(sizes.samples)
    texts = [
        Texts(*(to_device(ids, device) for ids in arrange(some, sizes.model.text_context)))
        for some in (captions, prompts)
    ]
    pixels = to_device(torch.randn(sizes.samples, 3, sizes.model.image_size, sizes.model.image_size), device)
    rows = []
    for compiled in (False, True) if sizes.compiled else (False,):
        model = GroupViT(sizes.model).to(device).train()
        optimizer = adamw(parameter_groups(model, 0.05), 1e-4)
        encode_image = torch.compile(model.encode_image) if compiled else model.encode_image
        encode_texts = torch.compile(model.encode_texts) if compiled else model.encode_texts

        def step(
            model: GroupViT = model,
            optimizer: torch.optim.Optimizer = optimizer,
            encode_image: Callable[..., torch.Tensor] = encode_image,
            encode_texts: Callable[..., list[torch.Tensor]] = encode_texts,
        ) -> None:
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16):
                image = encode_image(pixels)
                of_captions, of_prompts = encode_texts(texts)
            of_prompts = of_prompts.unflatten(0, (len(pixels), -1))  # (B, M, D)
            losses = contrastive_losses(image, of_captions, of_prompts, model.scale, model.scale)
            assert losses.prompts is not None
            (losses.caption + losses.prompts).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()

        seconds, memory = seconds_of(step, device)
        name = f"batches of {sizes.samples}{', compiled' if compiled else ''}"
        rows.append([name, f"{sizes.samples / seconds:.1f}", f"{memory:.1f}"])
    return rows


# --- the page -----------------------------------------------------------------------------------------------------------


def sections(sizes: Sizes, device: str) -> Iterator[str]:
    """Measure everything on ``device``; yields a section as soon as it is measured."""
    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    yield f"# Measurements on {card}"
    yield conditions("torch", "open_clip_torch")
    yield f"Medians of {ROUNDS} rounds; `make gpu`."

    with tempfile.TemporaryDirectory() as folder:
        yield section("Embedding", ["images/s", "peak GB"], embedding(sizes, device, Path(folder)))
        yield section("Search", ["images/s", "peak GB"], search(sizes, device))
        yield section("Training", ["samples/s", "peak GB"], training(sizes, device))
        model = next(path for path in Path(folder).iterdir() if path.is_dir())
        rows = whole(sizes.whole, device, model, Path(folder))
        yield section("From JPEGs to a trained step", ["a second"], rows)


def section(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """A heading and its table."""
    return f"## {title}\n\n{table(['', *columns], rows)}"


def passed_tests(quiet: bool) -> bool:
    """Run the tests marked ``gpu``; ``quiet``: show them only when they fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py", "-k", "not benchmark"]
    root = Path(__file__).parent.parent
    run = subprocess.run(command, cwd=root, stdout=subprocess.PIPE if quiet else None, text=True)
    if run.returncode and quiet:
        print(run.stdout)
    return run.returncode == 0


def main() -> int:
    """Test, measure, write the page; exit code 1 when a test fails."""
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description="What a GPU does with this.")
    parser.add_argument("--tests", action="store_true", help="first run the tests marked gpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the CPU, whether there is a GPU or not")
    parser.add_argument("--output", type=Path, help="page to write (default: benchmarks/GPU.md, on a GPU only)")
    args = parser.parse_args()

    gpu = torch.cuda.is_available() and not args.tiny
    if args.tests and not passed_tests(quiet=not gpu):
        return 1
    output = args.output or (PAGE if gpu else None)
    texts: list[str] = []
    for text in sections(FULL if gpu else TINY, "cuda:0" if gpu else "cpu"):
        texts.append(text)
        if output:  # after each section, so that a failure in a later one costs only that
            output.write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    print("\n\n".join(texts))
    if not output:
        print("PyTorch sees no GPU: the tests and a small benchmark ran on the CPU, and no page was written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
