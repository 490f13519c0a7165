"""One training run of an arm: ``python -m training fit`` in a process of its own, taken up again where it was cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from curation import storage
from experiments.arms import Arm, ExperimentError, flags

STARTED = "asked.json"  # what a run was begun with
RESULT = "result.json"  # written last: a run that has it is not run again


@dataclass(frozen=True)
class Setting:
    """What all runs share.

    Attributes:
        recipe: configuration of the trainer.
        benchmark: a packaged benchmark's name or a YAML file.
        data_root: folder of the packaged benchmarks' data.
        archives: folder of the folders of archives.
        runs: folder of the runs, ``runs/<arm>/<seed>``.
        threads: of each run.
        options: more options of the trainer.
    """

    recipe: Path
    benchmark: str
    data_root: str
    archives: Path
    runs: Path
    threads: int
    options: tuple[str, ...] = ()

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where a run's checkpoints, logs and scores are."""
        return self.runs / arm.name / str(seed)

    def command(self, arm: Arm, seed: int) -> list[str]:
        """What trains the arm."""
        folder = self.folder(arm, seed)
        given: dict[str, object] = {
            "config": self.recipe,
            "output": folder,
            "seed_everything": seed,
            "data.archives": self.archives / arm.archives,
            "model.validation.benchmark": self.benchmark,
            "model.validation.data_root": self.data_root,
            "trainer.callbacks+": "experiments.scores.ClassScores",
            **arm.train,
        }
        if (folder / "checkpoints" / "last.ckpt").exists():
            given["ckpt_path"] = "last"
        return [sys.executable, "-m", "training", "fit", *flags(given), *self.options]

    def finished(self, arm: Arm, seed: int) -> bool:
        """Whether the run has come to its end, with these very settings."""
        path = self.folder(arm, seed) / RESULT
        return path.exists() and storage.read_json(str(path))["asked"] == self.asked(arm, seed)

    def asked(self, arm: Arm, seed: int) -> dict[str, object]:
        """All that decides what a run finds, but for the archives' content: the recipe and what differs from it."""
        recipe = self.recipe.read_text(encoding="utf-8")
        return {
            "recipe": recipe,
            "train": arm.train,
            "archives": arm.archives,
            "options": list(self.options),
            "seed": seed,
        }


def run(setting: Setting, arm: Arm, seed: int) -> float:
    """Train one arm with one seed to the end; returns the seconds that this took now. Raises ExperimentError."""
    folder, began = setting.folder(arm, seed), time.monotonic()
    started = folder / STARTED
    if not started.exists() or storage.read_json(str(started)) != setting.asked(arm, seed):
        storage.remove(str(folder))  # of another recipe: nothing of it can stay
        storage.write_json(str(started), setting.asked(arm, seed))
    environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads)}
    with (folder / "log").open("a") as log:
        code = subprocess.run(
            setting.command(arm, seed), stdout=log, stderr=subprocess.STDOUT, env=environment
        ).returncode
    if code:
        last = (folder / "log").read_text().strip().splitlines()[-1]
        raise ExperimentError(f"{folder}: training ended with code {code}: {last} (see {folder / 'log'})")
    seconds = time.monotonic() - began
    storage.write_json(str(folder / RESULT), {"asked": setting.asked(arm, seed), "seconds": round(seconds)})
    return seconds
