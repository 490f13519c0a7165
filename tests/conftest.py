"""Fixtures that are made once a session: a tiny CLIP, a tiny world, its archives, a tiny GroupViT."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before torch and numpy read it. Models are tiny: threads of several test processes would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings
from quick_runs import inspect_once, modules_unscanned, sync_nothing
from tiny_world import COLOURS, GROUNDS, ROWS, SHARDS, jpeg, make_tiny_clip, scene, write_tar, write_world

from curation.archive import ConceptArchive
from curation.base.embeddings import normalise

settings.register_profile("without clocks", deadline=None)  # a busy machine is no failure
settings.load_profile("without clocks")


@pytest.fixture(scope="session", autouse=True)
def quick_runs() -> Iterator[None]:
    """Runs in this process wait for nothing that no test looks at."""
    with pytest.MonkeyPatch.context() as patch, modules_unscanned():
        sync_nothing(patch)
        if "pipelines.runners" in sys.modules:  # else no test that was chosen needs Beam, which takes a second
            inspect_once(patch)
        yield


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a very small CLIP."""
    return make_tiny_clip(tmp_path_factory.mktemp("tiny-clip"))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_clip: Path) -> Path:
    """A YAML file of a data set of three shards with a given vocabulary; three of its samples are unusable."""
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(7)
    for shard in range(SHARDS):
        members = [member for row in range(ROWS) for member in scene(rng, f"{shard:02d}{row:04d}")]
        if shard == 1:
            members += [("bad0.jpg", b"not a jpeg"), ("bad0.txt", b"an apple"), ("bad1.txt", b"an apple")]
            members += [("bad2.jpg", jpeg()), ("bad2.txt", b" \n")]
        write_tar(folder / f"{shard:05d}.tar", members)
    (folder / "concepts.txt").write_text("\n".join([*COLOURS, *GROUNDS]) + "\n")
    write_world(folder / "world.yaml", tiny_clip)
    return folder / "world.yaml"


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run over the world, made by the real command in this process. Not to be changed."""
    from pipelines.curate import main

    folder = tmp_path_factory.mktemp("finished") / "out"
    assert main(["--data", str(world), "--output", str(folder), "--runner", "inprocess"]) == 0
    return folder


@pytest.fixture(scope="session")
def rows(finished: Path) -> list[dict[str, Any]]:
    """Every archive of that run, as plain Parquet says."""
    import pyarrow.parquet as pq

    names = [f"{shard:05d}" for shard in range(SHARDS)]
    return [row for name in names for row in pq.read_table(finished / "archives" / f"{name}.parquet").to_pylist()]


@pytest.fixture(scope="session")
def archive(finished: Path) -> ConceptArchive:
    """The archives of that run, opened."""
    return ConceptArchive.open(finished)


@pytest.fixture(scope="session")
def tiny_training(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of training: a tiny model on the tiny world, 3 epochs of 9 steps of 8 samples.

    Runs are compared to the last digit, so all use one thread: sums in another order round otherwise, and a group that is
    drawn otherwise makes that large.
    """
    import torch
    from training_runs import write_config

    torch.set_num_threads(1)
    return write_config(finished, tmp_path_factory.mktemp("training") / "tiny.yaml")


@pytest.fixture(scope="session")
def huggingface(tmp_path_factory: pytest.TempPathFactory):
    """A very small Hugging Face GroupViT with weights large enough for its groups to differ: (model, its folder)."""
    import torch
    from transformers import GroupViTConfig, GroupViTModel

    torch.set_num_threads(1)  # tiny models: threads of several test processes would only wait for each other
    image = {"image_size": 64, "patch_size": 16, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 40}
    image |= {
        "num_hidden_layers": 4,
        "depths": [2, 1, 1],
        "num_group_tokens": [6, 4, 0],
        "num_output_groups": [6, 4, 4],
    }
    text = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 1}
    config = GroupViTConfig(text_config=text, vision_config=image, projection_dim=12, projection_intermediate_dim=20)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = GroupViTModel(config).eval()
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.ndim == 0 or not value.is_floating_point():
                continue
            noise = torch.randn_like(value)
            if name.endswith("running_var"):
                value.data = 0.5 + noise.abs()
            elif value.ndim == 1:
                value.data += 0.2 * noise
            else:
                value.data = noise * (1.5 * value[0].numel() ** -0.5 if value.shape[0] > 1 else 1.0)
    folder = tmp_path_factory.mktemp("groupvit-hf")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="session")
def groupvit(huggingface):
    """Our GroupViT with the weights of ``huggingface``."""
    from segmenters.checkpoint import load

    return load(huggingface[1]).model


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory that is not the folder of the file."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture(scope="session")
def vectors() -> np.ndarray:
    """240 random unit vectors of 8 dimensions."""
    return normalise(np.random.default_rng(5).normal(size=(240, 8)))
