"""Runs of curation as tests make and read them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_world import SHARDS

from pipelines.curate import main

NAMES = [f"{shard:05d}" for shard in range(SHARDS)]


def curate(data: Path, output: Path, *options: str, runner: str = "inprocess") -> int:
    return main(["--data", str(data), "--output", str(output), "--runner", runner, *options])


def tables(folder: Path, kind: str) -> dict[str, pa.Table]:
    return {path.stem: pq.read_table(path) for path in sorted((folder / kind).glob("*.parquet"))}


def archived(folder: Path) -> dict[str, list[dict]]:
    return {row["key"]: row["concepts"] for table in tables(folder, "archives").values() for row in table.to_pylist()}


def copy(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))
