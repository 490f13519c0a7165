"""One training run of an arm: ``python -m training fit`` in a process of its own, taken up again where it was cut off."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curation.base import files
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
        start: checkpoint whose weights every run starts from; None for random ones.
    """

    recipe: Path
    benchmark: str
    data_root: str
    archives: Path
    runs: Path
    threads: int
    options: tuple[str, ...] = ()
    start: Path | None = None

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where a run's checkpoints, logs and scores are."""
        return self.runs / arm.name / str(seed)

    def given(self, recipe: Path, archives: str) -> dict[str, object]:
        """Options of a training run."""
        return {
            "config": recipe,
            "data.archives": self.archives / archives,
            "model.validation.benchmark": self.benchmark,
            "model.validation.data_root": self.data_root,
            "trainer.callbacks+": "experiments.scores.ClassScores",
        }

    def finished(self, arm: Arm, seed: int) -> bool:
        """Whether the run has come to its end, with these very settings."""
        return ended(self.folder(arm, seed), self.asked(arm, seed))

    def asked(self, arm: Arm, seed: int) -> dict[str, object]:
        """All that decides what a run finds, but for the archives' content: the recipe and what differs from it."""
        recipe = self.recipe.read_text(encoding="utf-8")
        asked: dict[str, object] = {
            "recipe": recipe,
            "train": arm.train,
            "archives": arm.archives,
            "options": list(self.options),
            "seed": seed,
        }
        return asked | ({"start": files.file_digest(str(self.start))} if self.start else {})


def run(setting: Setting, arm: Arm, seed: int) -> float:
    """Train one arm with one seed to the end; returns the seconds that this took now. Raises ExperimentError."""
    given = setting.given(setting.recipe, arm.archives) | {"seed_everything": seed}
    given |= {"model.start": setting.start} if setting.start else {}
    asked = setting.asked(arm, seed)
    return train(setting.folder(arm, seed), asked, "training", given | arm.train, setting.options, setting.threads)


def learn_start(setting: Setting, recipe: Path, folder: Path, archives: str) -> None:
    """Train what all runs start from as ``experiments.distil`` does by a recipe, unless that is done. Raises
    ExperimentError."""
    asked: dict[str, object] = {"recipe": recipe.read_text(encoding="utf-8"), "options": list(setting.options)}
    if not ended(folder, asked):
        train(folder, asked, "experiments.distil", setting.given(recipe, archives), setting.options, 0)


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint at the end of a run."""
    return folder / "checkpoints" / "last.ckpt"


def ended(folder: Path, asked: dict[str, object]) -> bool:
    """Whether a run with these settings has come to its end."""
    path = folder / RESULT
    return path.exists() and files.read_json(str(path))["asked"] == asked


def train(
    folder: Path, asked: dict[str, object], module: str, given: dict[str, object], options: Sequence[str], threads: int
) -> float:
    """Run ``python -m module fit`` to the end, on so many threads (0: all); returns the seconds. Raises ExperimentError."""
    started, began = folder / STARTED, time.monotonic()
    if not started.exists() or files.read_json(str(started)) != asked:
        files.remove(str(folder))  # of another recipe: nothing of it can stay
        files.write_json(str(started), asked)
    given = given | {"output": folder}
    if last_checkpoint(folder).exists():
        given["ckpt_path"] = "last"
    command = [sys.executable, "-m", module, "fit", *flags(given), *options]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with (folder / "log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        last = (folder / "log").read_text().strip().splitlines()[-1]
        raise ExperimentError(f"{folder}: training ended with code {code}: {last} (see {folder / 'log'})")
    seconds = time.monotonic() - began
    files.write_json(str(folder / RESULT), {"asked": asked, "seconds": round(seconds)})
    return seconds
