"""A campaign of kills: runs are killed at random moments and started again until one comes to its end.

    python tests/kills.py --kills 50

Each kill hits, by chance, the driver, one worker process, or the whole process group, with SIGKILL, at a random moment
after the work began. Afterwards the archives must equal those of an undisturbed run, no finished shard may have been
computed again, and nothing temporary may be left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tiny_world import COLOURS, GROUNDS, make_tiny_clip, scene, write_tar, write_world

from curation.config import load
from curation.run.forecast import forecast
from curation.run.run import Run, plan_run

TARGETS = ("driver", "worker", "group")
WATCHED = {"embed": "rejects", "archive": "archives"}  # stage -> folder that only this stage writes


@dataclass
class Tally:
    """What a campaign saw."""

    kills: int = 0
    runs: int = 0  # that came to their end
    kept: int = 0  # shards that were finished before a kill and not touched after it
    targets: dict[str, int] = field(default_factory=dict)


def make_world(folder: Path, shards: int = 6, rows: int = 120) -> Path:
    """A world that takes some seconds to curate."""
    rng = np.random.default_rng(3)
    for shard in range(shards):
        members = [member for row in range(rows) for member in scene(rng, f"{shard:02d}{row:04d}")]
        write_tar(folder / f"{shard:05d}.tar", members)
    (folder / "concepts.txt").write_text("\n".join([*COLOURS, *GROUNDS]) + "\n")
    clip = make_tiny_clip(folder / "clip")
    return write_world(folder / "world.yaml", clip, shards=f"{{00000..{shards - 1:05d}}}.tar")


def start(data: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(output), "--workers", "2"]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def group_of(leader: int) -> list[int]:
    """The other processes of a process group."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != leader:
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[2]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def kill_within(process: subprocess.Popen, output: Path, seconds: float, rng: random.Random) -> str:
    """Kill one target at a random moment of the work; its name, or nothing when the run was faster."""
    while not (output / ".progress").exists() and process.poll() is None:
        time.sleep(0.02)
    try:
        process.wait(rng.random() * seconds)
        return ""
    except subprocess.TimeoutExpired:
        pass
    workers = group_of(process.pid)
    target = rng.choice(TARGETS if workers else ("driver", "group"))
    if target == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(process.pid if target == "driver" else rng.choice(workers), signal.SIGKILL)
    process.wait(60)  # a run that lost a worker ends by itself
    deadline = time.monotonic() + 20
    while group_of(process.pid):  # workers end by themselves when the driver is gone
        assert time.monotonic() < deadline, "a worker outlives its run"
        time.sleep(0.05)
    return target


def finished_shards(outputs: Run) -> dict[Path, int]:
    """Files of shards that are finished in a watched stage, with the time of their writing."""
    kept = [step for step in forecast(outputs) if step.kept and step.stage in WATCHED]
    paths = [Path(outputs.folder) / WATCHED[step.stage] / f"{step.part}.parquet" for step in kept]
    return {path: path.stat().st_mtime_ns for path in paths}


def archives(output: Path) -> dict[str, object]:
    return {path.name: pq.read_table(path) for path in sorted((output / "archives").glob("*.parquet"))}


def campaign(folder: Path, kills: int, seed: int) -> Tally:
    """Kill runs until ``kills`` are reached. Raises AssertionError at the first thing that is not as it should be."""
    rng = random.Random(seed)
    data = make_world(folder / "data")
    process = start(data, folder / "undisturbed")
    while not (folder / "undisturbed" / ".progress").exists():
        time.sleep(0.02)
    began = time.monotonic()
    assert process.wait(300) == 0
    seconds, expected = time.monotonic() - began, archives(folder / "undisturbed")
    tally = Tally()
    while tally.kills < kills:
        output = folder / "out"
        shutil.rmtree(output, ignore_errors=True)
        outputs = plan_run(load(str(data)), str(output))
        protected: dict[Path, int] = {}
        for attempt in range(5):
            process = start(data, output)
            if attempt == 4 or tally.kills >= kills:  # let it come to its end
                process.wait(300)
            else:
                target = kill_within(process, output, seconds, rng)
                if target:
                    tally.kills += 1
                    tally.targets[target] = tally.targets.get(target, 0) + 1
            for path, written in protected.items():
                assert path.stat().st_mtime_ns == written, f"{path} was finished and is computed again"
            tally.kept += len(protected)
            if (output / "manifest.json").exists():
                break
            protected = finished_shards(outputs)
        assert process.returncode == 0 or (output / "manifest.json").exists()
        assert archives(output) == expected, "archives differ from those of an undisturbed run"
        left = [path for path in output.rglob(".*") if path.name != ".lock"]
        if process.returncode == 0:
            assert not left, f"left behind: {left}"
        tally.runs += 1
        print(json.dumps(tally.__dict__), flush=True)
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = campaign(Path(temporary), given.kills, given.seed)
    print(f"{result.kills} kills ({result.targets}), {result.runs} runs finished with equal archives,")
    print(f"{result.kept} times a finished shard was found and kept, none was computed again.")
