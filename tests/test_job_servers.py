"""Flink and Spark, run: job servers, clusters on this machine, killed workers. Needs what ``make engines`` fetches."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clusters import flink_cluster, kill, missing, spark_cluster, wait_for
from kills import make_world

ROOT = Path(__file__).parent.parent
SHARDS = 8
CLUSTERS = {"flink": flink_cluster, "spark": spark_cluster}
MASTER = {"flink": "--flink_master", "spark": "--spark_master_url"}

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The configuration of a world of eight shards that takes some seconds to curate."""
    return make_world(tmp_path_factory.mktemp("data"), shards=SHARDS, rows=100)


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory) -> dict:
    """The tables of a run in one process."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    run = curate(data, folder, "inprocess")
    assert run.wait() == 0
    return tables(folder)


@pytest.fixture(params=["flink", "spark"])
def engine(request) -> str:
    """An engine that can run here."""
    if reason := missing(request.param):
        pytest.skip(reason)
    return request.param


def tables(folder: Path) -> dict:
    return {
        f"{kind}/{path.name}": pq.read_table(path)
        for kind in ("archives", "embeddings")
        for path in sorted((folder / kind).glob("*"))
    }


def curate(data: Path, folder: Path, runner: str, *options: str) -> subprocess.Popen:
    """The command, as a user starts it. Its output is in a file, so that it never waits for a reader."""
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "wb") as stream:
        return subprocess.Popen(
            [*command, "--runner", runner, *options],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            env=os.environ | {"COLUMNS": "200"},
        )


def output_of(folder: Path) -> str:
    return Path(f"{folder}.log").read_text()


def shares(output: str) -> dict[str, str]:
    """How the shards of every stage were spread over worker processes, from the table at the end: "2 × 4"."""
    rows = re.findall(r"│ ([a-z ]+?) +│ +\d+ │ +\d+ │ +(\d+ × [\d-]+) │", output)
    return dict(rows)


def left_over(folder: Path) -> list[str]:
    """Processes that work in a folder."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if str(folder) in line and "pytest" not in line]


@pytest.mark.parametrize("workers", ["PROCESS", "LOOPBACK"])
def test_an_engine_inside_the_job_server(engine, workers, data, expected, tmp_path):
    out = tmp_path / "out"
    options = [] if workers == "PROCESS" else [f"--environment_type={workers}"]
    run = curate(data, out, engine, "--workers", "2", *options)
    run.wait(300)
    assert run.returncode == 0, output_of(out)
    assert tables(out) == expected
    per_shard = ("embed", "visualness", "concepts", "archive")
    spread = {stage: share for stage, share in shares(output_of(out)).items() if stage in per_shard}
    assert spread == dict.fromkeys(per_shard, "2 × 4" if workers == "PROCESS" else "1 × 8")
    assert not (out / ".engine").exists()
    assert not left_over(out)


def test_a_cluster_with_worker_processes(engine, data, expected, tmp_path):
    out = tmp_path / "out"
    with CLUSTERS[engine](tmp_path / "cluster") as cluster:
        run = curate(data, out, engine, f"{MASTER[engine]}={cluster.master}")
        run.wait(400)
    assert run.returncode == 0, output_of(out)
    assert tables(out) == expected
    print(shares(output_of(out)))
    assert not left_over(out)


def test_a_cluster_that_loses_a_machine(engine, data, expected, tmp_path):
    out = tmp_path / "out"
    with CLUSTERS[engine](tmp_path / "cluster") as cluster:
        run = curate(data, out, engine, f"{MASTER[engine]}={cluster.master}")
        wait_for(lambda: any((out / "rejects").glob("0*.parquet")) or run.poll() is not None, 120)
        kill(cluster.machines[0])
        done = {path: path.stat().st_ino for path in (out / "rejects").glob("0*.parquet")}  # only embed writes them
        assert 0 < len(done) < SHARDS
        run.wait(500)
    assert run.returncode == 0, output_of(out)
    assert tables(out) == expected
    assert {path: path.stat().st_ino for path in done} == done  # not computed twice
    assert not left_over(out)
