"""One run by several processes, each with a range of the shards: what Ray and Slurm users start."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curation.base.errors import CocuError
from curation.config import load
from curation.run.inputs import request
from curation.run.lock import hold
from curation.run.part import part_of
from curation.run.run import Run, plan_run
from curation.run.sharing import share
from pipelines.curate import main

ROOT = Path(__file__).parent.parent


def tables(folder: Path) -> dict:
    return {
        f"{kind}/{path.name}": pq.read_table(path)
        for kind in ("archives", "embeddings")
        for path in sorted((folder / kind).glob("*"))
    }


def start(data: Path, folder: Path, shards: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(folder)]
    command += ["--only-shards", shards, "--runner", "inprocess", *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, seconds: float = 120) -> None:
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.fixture
def run(world, tmp_path) -> Run:
    return plan_run(load(str(world)), str(tmp_path / "out"))


def test_two_processes_fill_one_folder(world, finished, tmp_path):
    out = tmp_path / "out"
    processes = [start(world, out, "0:2"), start(world, out, "2:")]
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert tables(out) == tables(finished)
    assert sum("Pictures and numbers" in output for output in outputs) == 1  # one of them wrote manifest and report
    ours, theirs = (json.loads((folder / "manifest.json").read_text()) for folder in (out, finished))
    assert ours["counts"] == theirs["counts"]
    assert ours["shards"] == theirs["shards"]
    hidden = [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert hidden == []
    # Every shard was computed by the process that it belongs to, and each of the other stages by one of the two.
    (table,) = {
        output[output.index("This run") :].split("Pictures")[0].split("Finished")[0].strip() for output in outputs
    }
    assert re.search(r"embed +│ +3 │ +0 │ +2 × 1-2 │", table)
    assert re.search(r"candidates +│ +1 │ +0 │ +1 × 1 │", table)


def test_a_process_that_was_killed_is_started_again(world, finished, tmp_path):
    out = tmp_path / "out"
    waiting, victim = start(world, out, "0:1"), start(world, out, "1:3")
    wait_for(lambda: any((out / "embeddings").glob("0000[12].parquet")) or victim.poll() is not None)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    embedded = {path.name for path in (out / "embeddings").glob("0*.parquet")}  # written after the rejects
    done = {path: path.stat().st_ino for path in (out / "rejects").glob("0*.parquet") if path.name in embedded}
    again = start(world, out, "1:3")
    outputs = [process.communicate(timeout=240)[0] for process in (waiting, again)]
    assert waiting.returncode == again.returncode == 0, outputs
    assert tables(out) == tables(finished)
    assert {path: path.stat().st_ino for path in done} == done  # not computed twice


def test_a_process_that_is_left_alone_says_so_and_can_be_started_again(world, finished, tmp_path, capfd):
    out = tmp_path / "out"
    options = ["--data", str(world), "--output", str(out), "--runner", "inprocess", "--patience", "0"]
    assert main([*options, "--only-shards", "0:1"]) == 1
    message = " ".join(capfd.readouterr().err.split())
    assert "stage embed: 2 of 3 shards are missing (00001, 00002)" in message
    assert "start their processes, and then this command again" in message
    assert not (out / "manifest.json").exists()
    assert main([*options, "--only-shards", "1:3"]) == 1  # candidates, visualness of its own, and then it waits
    assert "stage visualness: 1 of 3 shards are missing (00000)" in " ".join(capfd.readouterr().err.split())
    codes = [main([*options, "--only-shards", shards]) for _ in range(3) for shards in ("0:1", "1:3")]
    assert codes[-1] == 0
    assert tables(out) == tables(finished)
    assert main([*options, "--only-shards", "0:1"]) == 0
    assert "already finished" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(("shards", "first"), [("0:2", 0), (":2", 0), ("1:", 1), ("1:3", 1), (":", 0), ("2:9", 2)])
def test_ranges(shards, first, run):
    part = part_of(run, shards, 1.0)
    assert part.shards == run.shards[first : first + len(part.shards)]
    assert part.shards[-1].index == (1 if shards.endswith("2") else 2)


@pytest.mark.parametrize("shards", ["2:2", "2:1", "3:4", "3:", "1", "a:b", "-1:2", ""])
def test_ranges_that_are_none(shards, run):
    with pytest.raises(CocuError, match="only-shards: "):
        part_of(run, shards, 1.0)


def test_a_folder_is_shared_by_processes_of_the_same_run_only(run, world, tmp_path):
    calls = []
    both = {"first": lambda: calls.append("first"), "last": lambda: calls.append("last")}
    asked = request(run)
    with share(run, asked, **both):
        with share(run, asked, **both), pytest.raises(CocuError, match="is curating into it; wait for it"), hold(run):
            pass
        with pytest.raises(CocuError, match="another configuration"), share(run, "another", **both):
            pass
        assert calls == ["first"]
        Path(run.manifest).write_text("{}")
    assert calls == ["first", "last"]
    assert os.listdir(run.folder) == ["manifest.json"]
    os.remove(run.manifest)
    holder = rf"process {os.getpid()} on .* is curating into it"
    with hold(run), pytest.raises(CocuError, match=holder), share(run, asked, **both):
        pass


def test_engines_that_spread_shards_themselves_take_no_range(world, tmp_path, capfd):
    options = ["--data", str(world), "--output", str(tmp_path), "--runner", "flink", "--only-shards", "0:1"]
    assert main(options) == 1
    assert "only-shards: runner flink spreads the shards" in " ".join(capfd.readouterr().err.split())
