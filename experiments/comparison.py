"""The comparison of arms: what is run, with which seeds, and running it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evaluation.benchmark import Benchmark, read_benchmark
from experiments.archives import curate
from experiments.arms import BASELINE, COCU, TRUTH, Arm, choose_arms, read_arms
from experiments.recipes import HERE, Recipe, read_recipe
from experiments.runs import Setting, last_checkpoint, learn_start, run
from experiments.scores import read_curve

QUICK_ARMS = [BASELINE, COCU, TRUTH]
QUICK = ("--trainer.max_steps", "150", "--trainer.check_val_every_n_epoch", "null",
         "--trainer.val_check_interval", "50", "--model.validation.limit", "100")  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What all runs start from.

    Attributes:
        path: as it was named: a checkpoint, or the YAML file of a recipe.
        recipe: how it is learnt for this comparison; None for a checkpoint that is there.
        folder: of the run that learns it.
    """

    path: Path
    recipe: Recipe | None
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """The weights."""
        return last_checkpoint(self.folder) if self.recipe else self.path


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        data: name of a packaged data set, or a YAML file.
        benchmark: what the runs are evaluated on.
        setting: what all runs share.
        arms: what is compared.
        most_seeds: runs of an arm, at most; None: as many as the arm says.
        start: what all runs start from; None for random weights.
    """

    data: str
    benchmark: Benchmark
    setting: Setting
    arms: list[Arm]
    most_seeds: int | None
    start: Start | None

    def seeds(self, arm: Arm) -> range:
        """The seeds of an arm's runs."""
        return range(arm.seeds if self.most_seeds is None else min(arm.seeds, self.most_seeds))

    def runs(self) -> list[tuple[Arm, int]]:
        """Arm and seed of every run: the first seed of all arms before the second of any."""
        most = max(arm.seeds for arm in self.arms)
        return [(arm, seed) for seed in range(most) for arm in self.arms if seed in self.seeds(arm)]


def plan(args: argparse.Namespace) -> Comparison:
    """The comparison that the command line asks for. Raises CocuError for files that are wrong or absent."""
    arms = choose_arms(read_arms(args.arms), args.only or (QUICK_ARMS if args.quick else []))
    name = Path(args.data).stem + ("-quick" if args.quick else "")
    output = args.output or Path("artifacts") / "experiments" / name
    start = None
    if args.start:
        learnt = args.start.suffix in (".yaml", ".yml")
        start = Start(args.start, read_recipe(args.start) if learnt else None, output / "start")

    setting = Setting(
        recipe=read_recipe(*(args.recipe or [HERE / ("recipe_started.yaml" if start else "recipe.yaml")])),
        benchmark=args.benchmark,
        data_root=args.data_root,
        archives=output / "archives",
        runs=output / ("runs-started" if start else "runs"),  # beside each other: they share archives only
        threads=max(1, torch.get_num_threads() // args.jobs),
        options=QUICK if args.quick else (),
        start=start.checkpoint if start else None,
    )
    benchmark = read_benchmark(args.benchmark, args.data_root)
    return Comparison(args.data, benchmark, setting, arms, 1 if args.quick else args.seeds, start)


def carry_out(comparison: Comparison, jobs: int, console: Console) -> Comparison:
    """Curate, learn what all runs start from, and train what is not finished; returns the comparison that was possible:
    without the arms of the truth where no sidecars tell it. Raises ExperimentError for the first step that fails."""
    setting = comparison.setting
    names = dict.fromkeys(arm.archives for arm in comparison.arms)
    console.print(f"Curating in {setting.archives}: {', '.join(names)}")
    arms = curate(comparison.data, comparison.arms, setting.archives, console)

    start = comparison.start
    if start and start.recipe:
        console.print(f"What all runs start from: {start.folder}, by {start.path}")
        learn_start(setting, start.recipe, start.folder)

    comparison = replace(comparison, arms=arms)
    train_all(setting, comparison.runs(), jobs, console)
    return comparison


def train_all(setting: Setting, runs: Sequence[tuple[Arm, int]], jobs: int, console: Console) -> None:
    """Train what is not finished, ``jobs`` runs side by side. Raises ExperimentError for the first that fails."""
    unfinished = [(arm, seed) for arm, seed in runs if not setting.finished(arm, seed)]
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("", total=len(runs), completed=len(runs) - len(unfinished))

        def train_one(arm: Arm, seed: int) -> None:
            seconds = run(setting, arm, seed)
            score = read_curve(setting.folder(arm, seed)).miou[-1]
            bar.console.print(f"{arm.name}, seed {seed}: mIoU {score:.2f} after {seconds / 60:.1f} minutes")
            bar.advance(task)

        futures = [pool.submit(train_one, arm, seed) for arm, seed in unfinished]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
