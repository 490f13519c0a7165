"""One training run of an arm: ``python -m training fit`` in a process of its own, resumed if it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curation.base import files
from experiments.arms import BASE, Arm
from experiments.commands import flags, run_module
from experiments.recipes import Recipe, same_settings

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

    recipe: Recipe
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

    def finished(self, arm: Arm, seed: int) -> bool:
        """Whether the run has come to its end, with exactly these settings."""
        return is_finished(self.folder(arm, seed), self.request(arm, seed))

    def request(self, arm: Arm, seed: int) -> dict[str, Any]:
        """All that decides the outcome of a run, but for the content of the archives."""
        request = {
            "recipe": self.recipe.settings(),
            "train": arm.train,
            "archives": arm.archives,
            "options": list(self.options),
            "seed": seed,
        }
        return request | ({"start": files.file_digest(str(self.start))} if self.start else {})

    def trainer_options(self, archives: str) -> dict[str, object]:
        """Options of the trainer besides the recipe."""
        return {
            "data.archives": self.archives / archives,
            "model.validation.benchmark": self.benchmark,
            "model.validation.data_root": self.data_root,
            "trainer.callbacks+": "experiments.scores.ClassScores",
        }


def run(setting: Setting, arm: Arm, seed: int) -> float:
    """Train one arm with one seed to the end; returns the seconds that this took now. Raises ExperimentError."""
    options = setting.trainer_options(arm.archives) | {"seed_everything": seed}
    if setting.start:
        options["model.start"] = setting.start
    options |= arm.train

    arguments = [*recipe_flags(setting.recipe), *flags(options), *setting.options]
    return train(setting.folder(arm, seed), setting.request(arm, seed), "training", arguments, setting.threads)


def learn_start(setting: Setting, recipe: Recipe, folder: Path) -> None:
    """Train what all runs start from, as ``experiments.distil`` does by a recipe, unless that is done.

    Raises ExperimentError.
    """
    request = {"recipe": recipe.settings(), "options": list(setting.options)}
    if not is_finished(folder, request):
        arguments = [*recipe_flags(recipe), *flags(setting.trainer_options(BASE)), *setting.options]
        train(folder, request, "experiments.distil", arguments, threads=0)


def recipe_flags(recipe: Recipe) -> list[str]:
    """The files of a recipe as the trainer takes them: ``--config`` for each."""
    return [word for path in recipe.files for word in ("--config", str(path))]


def train(folder: Path, request: Mapping[str, Any], module: str, arguments: Sequence[str], threads: int) -> float:
    """Run ``python -m module fit`` to the end, on so many threads (0: all); returns the seconds. Raises ExperimentError."""
    started = folder / STARTED
    if not started.exists() or not same_request(files.read_json(str(started)), request):
        files.remove(str(folder))  # of another recipe: nothing of it can stay
        files.write_json(str(started), request)

    resume = ["--ckpt_path", "last"] if last_checkpoint(folder).exists() else []
    began = time.monotonic()
    run_module(module, ["fit", *arguments, "--output", str(folder), *resume], folder / "log", threads)
    seconds = time.monotonic() - began
    files.write_json(str(folder / RESULT), {"asked": request, "seconds": round(seconds)})
    return seconds


def last_checkpoint(folder: Path) -> Path:
    """The checkpoint at the end of a run."""
    return folder / "checkpoints" / "last.ckpt"


def is_finished(folder: Path, request: Mapping[str, Any]) -> bool:
    """Whether a run with this request has come to its end."""
    path = folder / RESULT
    return path.exists() and same_request(files.read_json(str(path))["asked"], request)


def same_request(recorded: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
    """Whether a run that was recorded with one request answers another."""
    others_equal = {**recorded, "recipe": None} == {**request, "recipe": None}
    return others_equal and same_settings(recorded["recipe"], request["recipe"])
