"""Every engine gives the same archives, value for value: Dask with a killed worker, the portable runner, remote storage."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clusters import listens, wait_for
from tiny_world import write_world

from curation.base.errors import CocuError
from pipelines import dask
from pipelines.curate import check_beam_arguments, main
from pipelines.engines.job_server import free_port

ROOT = Path(__file__).parent.parent


def tables(folder: Path) -> dict[str, pa.Table]:
    return {
        path.name: pq.read_table(path)
        for kind in ("archives", "embeddings")
        for path in sorted((folder / kind).glob("*"))
    }


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen]:
    """A program that runs while the block lasts."""
    running = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def curate(world: Path, folder: Path, runner: str, *options: str) -> subprocess.Popen:
    command = ["-m", "pipelines.curate", "--data", str(world), "--output", str(folder), "--runner", runner, *options]
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_dask_with_a_scheduler_and_two_workers_one_of_them_killed(world, finished, tmp_path):
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    worker = ("-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    worker += ("--local-directory", str(tmp_path / "dask"))
    scheduler = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
    with process(*scheduler), process(*worker) as victim, process(*worker):
        wait_for(lambda: listens(port))
        from distributed import Client

        with Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        run = curate(world, tmp_path / "out", "dask", f"--dask_client_address={address}")
        wait_for(lambda: any((tmp_path / "out" / "embeddings").glob("*.parquet")) or run.poll() is not None)
        victim.send_signal(signal.SIGKILL)
        assert not (tmp_path / "out" / "manifest.json").exists()  # it was killed in the middle
        output = run.communicate(timeout=120)[0]
    assert run.returncode == 0, output
    assert tables(tmp_path / "out") == tables(finished)


def test_dask_starts_a_cluster_of_its_own(world, finished, tmp_path, capfd):
    run = curate(world, tmp_path / "out", "dask", "--workers", "2")
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 0, output
    assert "WARNING" not in output
    assert tables(tmp_path / "out") == tables(finished)
    assert main(["--data", str(world), "--output", str(tmp_path / "out"), "--runner", "dask"]) == 0
    assert "already finished" in " ".join(capfd.readouterr().out.split())


def test_an_error_in_a_dask_worker_is_one_line(world, tiny_clip, tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"no tar at all" * 100)
    path = write_world(tmp_path / "broken.yaml", tiny_clip, shards=["broken.tar"])
    (tmp_path / "concepts.txt").write_text("apple\n")
    run = curate(path, tmp_path / "out", "dask", "--workers", "1")
    output = run.communicate(timeout=120)[0]
    assert run.returncode == 1
    (line,) = output.splitlines()[2:]
    assert re.search(r"^error: .*broken\.tar: ", line)
    assert "Traceback" not in output


def test_dask_options_keep_what_is_given():
    with dask.options(["--dask_client_address=tcp://x:1", "--dask_npartitions", "7"], 2, 5) as options:
        assert options == ["--dask_client_address=tcp://x:1", "--dask_npartitions", "7"]
    with dask.options(["--dask_scheduler_file", "file.json"], 2, 5) as options:
        assert options == ["--dask_npartitions=5", "--dask_scheduler_file", "file.json"]


def test_dask_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(CocuError, match=r"pip install 'cocu\[dask\]'"), dask.options([], 1, 1):
        pass


def test_portable_runner_with_a_job_server(world, finished, tmp_path):
    port = free_port()
    server = ("-m", "apache_beam.runners.portability.local_job_service_main", "--port", str(port))
    with process(*server, "--staging_dir", str(tmp_path / "staging")):
        wait_for(lambda: listens(port))
        run = curate(world, tmp_path / "out", "portable", f"--job_endpoint=localhost:{port}")
        output = run.communicate(timeout=120)[0]
    assert run.returncode == 0, output
    assert tables(tmp_path / "out") == tables(finished)


def test_shards_and_outputs_of_any_file_system(world, finished, tiny_clip, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in sorted(world.parent.glob("*.tar")):
        memory.put_file(str(path), f"/cocu-engines/{path.name}")
    path = write_world(
        world.parent / f"{tmp_path.name}.yaml", tiny_clip, shards="memory://cocu-engines/{00000..00002}.tar"
    )
    options = ["--data", str(path), "--output", "memory://cocu-engines/out", "--runner", "inprocess"]
    try:
        assert main(options) == 0
        assert memory.exists("/cocu-engines/out/manifest.json")
        for path in sorted((finished / "archives").glob("*")):
            with memory.open(f"/cocu-engines/out/archives/{path.name}") as stream:
                assert pq.read_table(stream) == pq.read_table(path)
        assert main(options) == 0  # found finished
        left = [name for name in memory.find("/cocu-engines/out") if ".partial-" in name or ".lock" in name]
        assert left == []
    finally:
        memory.rm("/cocu-engines", recursive=True)


def test_beam_knows_every_option_that_the_docs_name_for_clusters():
    text = (ROOT / "docs" / "scaling.md").read_text()
    section = text[text.index("## How to start") : text.index("## How large")]
    options = re.findall(r"--[a-z]+_[a-z_]+", section)
    assert {"--dask_client_address", "--flink_master", "--spark_master_url", "--resource_hint"} <= set(options)
    check_beam_arguments(options, "dask")
    with pytest.raises(CocuError, match="unknown option --flink_mister"):
        check_beam_arguments(["--flink_mister=x"], "FlinkRunner")


def test_the_docs_ask_dataflow_for_what_beam_can_read():
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.transforms.resources import resource_hints_from_options

    text = (ROOT / "docs" / "scaling.md").read_text()
    section = text[text.index("**Dataflow**") : text.index("## How large")]
    arguments = [argument.replace("'", "") for argument in re.findall(r"--\w+=(?:'[^']+'|[^\s`]+)", section)]
    options = PipelineOptions(arguments)
    values = options.get_all_options(drop_default=True)
    assert values.items() >= {"machine_type": "n1-highmem-16", "disk_size_gb": 200, "num_workers": 8}.items()
    assert set(resource_hints_from_options(options)) == {
        "beam:resources:accelerator:v1",
        "beam:resources:min_ram_bytes:v1",
    }
    check_beam_arguments(arguments, "DataflowRunner")
