"""One training run of an arm: ``cocu train`` in a process of its own, resumed if it was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from curation.base import files
from evaluation.benchmark import AbsentError, read_benchmark
from evaluation.layout import list_images
from evaluation.report import decisive_values
from experiments.arms import BASE, Arm
from experiments.commands import flags, run_module
from experiments.recipes import Recipe, same_settings, with_options

STARTED = "asked.json"  # what a run was begun with
BY_CONTENT = ("benchmark", "content")  # of a request: digests of files
LIMIT = "model.validation.limit"  # option of the trainer
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
        train: options of the trainer that differ from the recipe, for all arms.
    """

    recipe: Recipe
    benchmark: str
    data_root: str
    archives: Path
    runs: Path
    threads: int
    options: tuple[str, ...] = ()
    start: Path | None = None
    train: Mapping[str, object] = field(default_factory=dict)

    @property
    def limit(self) -> int | None:
        """Images that a validation looks at; None for all."""
        options = dict(pairwise(self.options))
        limit = options.get(f"--{LIMIT}", self.train.get(LIMIT))
        if limit is None:
            limit = self.recipe.settings().get("model", {}).get("validation", {}).get("limit")
        return None if limit is None else int(str(limit))

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where a run's checkpoints, logs and scores are."""
        return self.runs / arm.name / str(seed)

    def finished(self, arm: Arm, seed: int) -> bool:
        """Whether the run has come to its end, with exactly these settings."""
        return is_finished(self.folder(arm, seed), self.request(arm, seed))

    def request(self, arm: Arm, seed: int) -> dict[str, Any]:
        """All that decides the outcome of a run, by its content: folders may be moved."""
        request = {
            "benchmark": benchmark_digest(self.benchmark, self.data_root),
            "content": archives_digest(self.archives / arm.archives),
            "recipe": with_options(self.recipe.settings(), self.train),
            "train": arm.train,
            "archives": arm.archives,
            "options": list(self.options),
            "seed": seed,
        }
        if self.start:  # None where it is not learnt yet: then no run from it is finished
            request["start"] = files.file_digest(str(self.start)) if self.start.exists() else None
        return request

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
    options |= {**setting.train, **arm.train}

    arguments = [*recipe_flags(setting.recipe), *flags(options), *setting.options]
    return train(setting.folder(arm, seed), setting.request(arm, seed), "training", arguments, setting.threads)


def learn_start(setting: Setting, recipe: Recipe, folder: Path) -> None:
    """Train what all runs start from by a recipe, unless that is done: by ``experiments.distil_places`` where the recipe
    names a teacher, else by ``experiments.distil``. It is scored on the images that the runs are scored on.

    Raises ExperimentError.
    """
    request = {
        "recipe": recipe.settings(),
        "options": list(setting.options),
        "benchmark": benchmark_digest(setting.benchmark, setting.data_root),
        "content": archives_digest(setting.archives / BASE),
    }
    limit = {LIMIT: setting.limit} if LIMIT in setting.train else {}
    if not is_finished(folder, request | limit):
        options = flags(setting.trainer_options(BASE) | limit)
        module = "experiments.distil_places" if recipe.has_teacher else "experiments.distil"
        train(folder, request | limit, module, [*recipe_flags(recipe), *options, *setting.options], threads=0)


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
    """Whether a run that was recorded with one request answers another.

    Runs of version 0.1 recorded neither benchmark nor content: they are still found finished, as are those whose archives
    have been deleted.
    """
    unknown = [key for key in BY_CONTENT if recorded.get(key) is None or request.get(key) is None]
    left_out = dict.fromkeys([*unknown, "recipe"])
    others_equal = {**recorded, **left_out} == {**request, **left_out}
    return others_equal and same_settings(recorded["recipe"], request["recipe"])


def archives_digest(folder: Path) -> str | None:
    """What the archives of a folder are, whatever it is called; None where there are none."""
    paths = sorted(folder.glob("archives/*.parquet"))
    return files.digest([(path.name, files.file_digest(str(path))) for path in paths]) if paths else None


def benchmark_digest(name: str, data_root: str) -> str | None:
    """What is measured on: the description of a benchmark, and its images and masks by name and size; None without them."""
    try:
        benchmark = read_benchmark(name, data_root)
        images = list_images(benchmark)
    except AbsentError:
        return None
    measured = [(image.name, os.path.getsize(image.image_path), os.path.getsize(image.mask_path)) for image in images]
    values = {key: value for key, value in decisive_values(benchmark).items() if key != "layout"}
    return files.digest(values, list(benchmark.classes), measured)
