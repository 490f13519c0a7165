"""Flink and Spark, run: job servers, clusters on this machine, killed workers. Needs what ``make engines`` fetches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from clusters import flink_cluster, kill, listens, missing, spark_cluster, wait_for
from kills import WATCHED, make_world
from tiny_world import write_world

from pipelines.engines.job_server import free_port

ROOT = Path(__file__).parent.parent
SHARDS = 8
PER_SHARD = ("embed", "visualness", "concepts", "archive")
LONGEST = 900  # seconds that a run may take; a quiet machine needs less than one minute
ENDING = 20  # seconds
DONE = {"embed": "embeddings", "archive": "archives"}  # stage -> folder of the files that it writes last
CLUSTERS = {"flink": flink_cluster, "spark": spark_cluster}
MASTER = {"flink": "--flink_master", "spark": "--spark_master_url"}

HOLDING = """
import os, time
really_replace = os.replace
def is_held(folder):
    return any(name.startswith("0") for name in os.listdir(folder)) and os.path.exists({hold!r})
def replace(source, target):
    while os.path.dirname(target) == {folder!r} and is_held({folder!r}):
        time.sleep(0.05)
    really_replace(source, target)
os.replace = replace
"""

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The configuration of a world of eight shards that takes some seconds to curate."""
    return make_world(tmp_path_factory.mktemp("data"), shards=SHARDS, rows=100)


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory) -> dict:
    """The tables of a run in one process."""
    folder = tmp_path_factory.mktemp("expected") / "out"
    run_to_its_end(data, folder, "inprocess")
    return tables(folder)


def unless_missing(engine: str):
    """An engine as a parameter; skipped, before anything is made for its tests, where it cannot run."""
    reason = missing(engine)
    return pytest.param(engine, marks=pytest.mark.skipif(bool(reason), reason=reason))


@pytest.fixture(params=[unless_missing("flink"), unless_missing("spark")])
def engine(request) -> str:
    """An engine that can run here."""
    return request.param


def tables(folder: Path) -> dict:
    return {
        f"{kind}/{path.name}": pq.read_table(path)
        for kind in ("archives", "embeddings")
        for path in sorted((folder / kind).glob("*"))
    }


def hold(folder: Path, stage: str) -> Path:
    """Prepare a run whose stage finishes a shard, and keeps the others just before their end.

    They go on when the file that is returned is removed. :func:`curate` sees it: in the Python of every process that it
    starts a file appears later.
    """
    modules = Path(f"{folder}.held")
    modules.mkdir(parents=True)
    code = HOLDING.format(hold=str(modules / "hold"), folder=str(folder / DONE[stage]))
    (modules / "sitecustomize.py").write_text(code)
    (modules / "hold").touch()
    return modules / "hold"


@contextmanager
def curate(data: Path, folder: Path, runner: str, *options: str) -> Iterator[subprocess.Popen]:
    """The command, as a user starts it, while the block lasts. Its output is in a file: it never waits for a reader."""
    search = os.pathsep.join([f"{folder}.held", *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.log", "wb") as stream:
        process = subprocess.Popen(
            [*command, "--runner", runner, *options],
            cwd=ROOT,
            stdout=stream,
            stderr=stream,
            env=os.environ | {"COLUMNS": "200", "PYTHONPATH": search},
            # A shell lets what runs in its background ignore Ctrl-C, and all that is started there.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run_to_its_end(data: Path, folder: Path, runner: str, *options: str) -> None:
    with curate(data, folder, runner, *options) as run:
        run.wait(LONGEST)
    assert run.returncode == 0, output_of(folder)


def output_of(folder: Path) -> str:
    return Path(f"{folder}.log").read_text()


def shares(output: str) -> dict[str, str]:
    """How the shards of every stage were spread over worker processes, from the table at the end: "2 × 4"."""
    rows = re.findall(r"│ ([a-z ]+?) +│ +\d+ │ +\d+ │ +(\d+ × [\d-]+) │", output)
    return dict(rows)


def left_over(folder: Path) -> list[str]:
    """Processes that work in a folder: the command, its job server, and workers, which the folder's script started."""
    lines = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in lines.splitlines() if str(folder) in line]


def assert_nothing_is_left(folder: Path) -> None:
    """Workers see within a moment that their run has ended."""
    with suppress(AssertionError):
        wait_for(lambda: not left_over(folder), ENDING)
    assert left_over(folder) == []


@pytest.mark.parametrize("workers", ["PROCESS", "LOOPBACK"])
def test_an_engine_inside_the_job_server(engine, workers, data, expected, tmp_path):
    out = tmp_path / "out"
    options = [] if workers == "PROCESS" else [f"--environment_type={workers}"]
    run_to_its_end(data, out, engine, "--workers", "2", *options)
    assert tables(out) == expected
    spread = {stage: share for stage, share in shares(output_of(out)).items() if stage in PER_SHARD}
    assert spread == dict.fromkeys(PER_SHARD, "2 × 4" if workers == "PROCESS" else "1 × 8")
    assert not (out / ".engine").exists()
    assert_nothing_is_left(out)


def test_a_cluster_with_worker_processes(engine, data, expected, tmp_path):
    """Two machines with two slots each: every slot gets shards of every stage."""
    out = tmp_path / "out"
    with CLUSTERS[engine](tmp_path / "cluster", slots=2) as cluster:
        run_to_its_end(data, out, engine, f"{MASTER[engine]}={cluster.master}")
        assert_nothing_is_left(out)
    assert tables(out) == expected
    spread = {stage: share for stage, share in shares(output_of(out)).items() if stage in PER_SHARD}
    print(spread)
    if engine == "flink":
        assert spread == dict.fromkeys(PER_SHARD, "4 × 2")
    else:  # the slot that is free takes the next shard
        assert set(spread) == set(PER_SHARD)
        assert all(re.fullmatch(r"4 × [12](-[2-5])?", share) for share in spread.values()), spread


@pytest.mark.parametrize("workers", ["EXTERNAL", "LOOPBACK"])
def test_a_cluster_with_workers_of_beam(engine, workers, data, expected, tmp_path):
    """Beam's worker pool, which every machine has to run, and threads of the command: both for one machine of a cluster."""
    out, port = tmp_path / "out", free_port()
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    options = [f"--environment_type={workers}"]
    if engine == "spark":  # executors that share a pool would confuse their workers
        options += ["--job_server_jvm_properties=-Dspark.executor.cores=2", "--sdk_worker_parallelism=2"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with ExitStack() as stack:
        cluster = stack.enter_context(CLUSTERS[engine](tmp_path / "cluster", machines=1, slots=2))
        if workers == "EXTERNAL":
            options += [f"--environment_config=localhost:{port}"]
            stack.enter_context(program(pool, env=os.environ | {"PATH": path}))
            wait_for(lambda: listens(port))
        run_to_its_end(data, out, engine, f"{MASTER[engine]}={cluster.master}", *options)
    assert tables(out) == expected
    assert shares(output_of(out))["embed"] == ("2 × 4" if workers == "EXTERNAL" else "1 × 8")


@contextmanager
def program(command: list[str], **more) -> Iterator[subprocess.Popen]:
    """A program, and all that it starts, while the block lasts."""
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more
    )
    try:
        yield process
    finally:
        kill(process)


@pytest.mark.parametrize("stage", WATCHED)
def test_a_cluster_that_loses_a_machine(engine, stage, data, expected, tmp_path):
    out = tmp_path / "out"
    holding = hold(out, stage)
    with ExitStack() as stack:
        cluster = stack.enter_context(CLUSTERS[engine](tmp_path / "cluster"))
        run = stack.enter_context(curate(data, out, engine, f"{MASTER[engine]}={cluster.master}"))
        wait_for(lambda: finished(out, stage) or run.poll() is not None)
        kill(cluster.workers[0])
        done = {name: finished(out, name) for name in WATCHED}
        assert 0 < len(done[stage]) < SHARDS, output_of(out)
        holding.unlink()
        run.wait(LONGEST)
        assert run.returncode == 0, output_of(out)
        assert_nothing_is_left(out)
    assert tables(out) == expected
    for name, files in done.items():
        kept = files.items() & finished(out, name).items()
        print(f"{name}: {len(files)} of {SHARDS} were finished before the kill, {len(kept)} of them are the same files")
        assert len(kept) == len(files)  # what was finished was not computed again


def finished(folder: Path, stage: str) -> dict[str, tuple[int, int]]:
    """The shards that a stage has finished: inode and time of a file of each that only that stage writes.

    A shard whose rejects are there is not embedded yet: its embeddings follow, a moment later or never.
    """
    names = sorted(path.name for path in (folder / DONE[stage]).glob("0*.parquet"))
    stats = [(folder / WATCHED[stage] / name).stat() for name in names]
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in zip(names, stats, strict=True)}


def test_ctrl_c_ends_the_job_and_the_same_command_resumes(engine, data, expected, tmp_path):
    out = tmp_path / "out"
    holding = hold(out, "embed")
    with ExitStack() as stack:
        cluster = stack.enter_context(CLUSTERS[engine](tmp_path / "cluster"))
        run = stack.enter_context(curate(data, out, engine, f"{MASTER[engine]}={cluster.master}"))
        wait_for(lambda: finished(out, "embed") or run.poll() is not None)
        run.send_signal(signal.SIGINT)
        run.wait(LONGEST)
        assert run.returncode == 130, output_of(out)
        assert "interrupted; run the same command again to resume" in output_of(out)
        assert_nothing_is_left(out)  # no worker goes on
        done = finished(out, "embed")
        assert 0 < len(done) < SHARDS, output_of(out)
        holding.unlink()
        run_to_its_end(data, out, engine, f"{MASTER[engine]}={cluster.master}")
    assert tables(out) == expected
    assert done.items() <= finished(out, "embed").items()


def test_a_command_that_was_killed_does_not_disturb_the_next(engine, data, expected, tmp_path):
    """On Flink its job goes on, and would hold the slots; on Spark the job server is a part of it."""
    out = tmp_path / "out"
    holding = hold(out, "embed")
    with ExitStack() as stack:
        cluster = stack.enter_context(CLUSTERS[engine](tmp_path / "cluster"))
        with curate(data, out, engine, f"{MASTER[engine]}={cluster.master}") as run:
            wait_for(lambda: finished(out, "embed") or run.poll() is not None)
            run.kill()
            run.wait()
        done = finished(out, "embed")
        assert 0 < len(done) < SHARDS, output_of(out)
        holding.unlink()
        run_to_its_end(data, out, engine, f"{MASTER[engine]}={cluster.master}")
        assert_nothing_is_left(out)
    assert tables(out) == expected
    assert done.items() <= finished(out, "embed").items()


def test_an_error_in_a_worker_is_one_line(engine, tiny_clip, tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "concepts.txt").write_text("apple\n")
    world = write_world(tmp_path / "broken.yaml", tiny_clip, shards=["broken.tar"])
    out = tmp_path / "out"
    with curate(world, out, engine, "--workers", "1") as run:
        run.wait(LONGEST)
    assert run.returncode == 1
    (line,) = output_of(out).splitlines()[2:]
    assert re.search(r"^error: .*broken\.tar: ", line)


def test_an_option_that_nobody_knows(engine, data, tmp_path):
    out = tmp_path / "out"
    with curate(data, out, engine, "--load_balance_bundle") as run:
        run.wait(LONGEST)
    assert run.returncode == 1
    assert "error: unknown option --load_balance_bundle" in output_of(out)
    assert_nothing_is_left(out)
