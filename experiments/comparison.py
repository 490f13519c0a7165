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
from experiments import untrained
from experiments.archives import curate
from experiments.arms import BASELINE, TRUTH, Arm, Family, choose_arms, read_families
from experiments.commands import ExperimentError
from experiments.recipes import HERE, Recipe, read_recipe
from experiments.runs import Setting, last_checkpoint, learn_start, run
from experiments.scores import read_curve

QUICK = ("--trainer.max_steps", "150", "--trainer.check_val_every_n_epoch", "null",
         "--trainer.val_check_interval", "50", "--model.validation.limit", "100")  # fmt: skip


@dataclass(frozen=True)
class Start:
    """What all runs of a family start from.

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
class FamilyRuns:
    """A family and how its arms are run.

    Attributes:
        family: with the arms that are compared.
        setting: what all its runs share.
        start: what they start from; None for random weights, or what the recipe says.
        most_seeds: runs of an arm, at most; None: as many as the arm says.
    """

    family: Family
    setting: Setting
    start: Start | None
    most_seeds: int | None

    def seeds(self, arm: Arm) -> range:
        """The seeds of an arm's runs."""
        return range(arm.seeds if self.most_seeds is None else min(arm.seeds, self.most_seeds))


@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Attributes:
        data: name of a packaged data set, or a YAML file.
        name: of the benchmark that the runs are evaluated on: a packaged one's, or a YAML file.
        benchmark: the same, read.
        folder: of archives and runs.
        families: what is compared.
    """

    data: str
    name: str
    benchmark: Benchmark
    folder: Path
    families: list[FamilyRuns]

    @property
    def archives(self) -> Path:
        """The folder of the folders of archives, which all families share."""
        return self.folder / "archives"

    def runs(self) -> list[tuple[FamilyRuns, Arm, int]]:
        """Every run: the first seed of all arms before the second of any."""
        most = max((arm.seeds for part in self.families for arm in part.family.arms), default=0)
        return [
            (part, arm, seed)
            for seed in range(most)
            for part in self.families
            for arm in part.family.arms
            if seed in part.seeds(arm)
        ]


# --- what the command line asks for ---------------------------------------------------------------------------------------


def plan(args: argparse.Namespace) -> Comparison:
    """The comparison that the command line asks for. Raises CocuError for files that are wrong or absent."""
    path = args.arms or arms_of(args)
    families = read_families(path)
    if args.quick and not args.only:
        families = [replace(family, arms=_quick_arms(family)) for family in families]
    families = choose_arms(families, args.only)
    for family in families:
        if family.name and (args.recipe or args.start):
            raise ExperimentError(f"{path}: its families name their recipes and starts; leave --recipe and --start out")

    name = Path(args.data).stem + ("-quick" if args.quick else "")
    output = args.output or Path("artifacts") / "experiments" / name
    parts = [_family_runs(family, args, path.parent, output) for family in families]
    return Comparison(args.data, args.benchmark, read_benchmark(args.benchmark, args.data_root), output, parts)


def arms_of(args: argparse.Namespace) -> Path:
    """The packaged file of arms for the data; those of arms.yaml where there is none, or a recipe or start is named."""
    own = HERE / f"arms_{Path(args.data).stem}.yaml"
    return own if own.exists() and not (args.recipe or args.start) else HERE / "arms.yaml"


def _quick_arms(family: Family) -> list[Arm]:
    return [arm for arm in family.arms if arm.name in (BASELINE, family.method, TRUTH)]


def _family_runs(family: Family, args: argparse.Namespace, beside: Path, output: Path) -> FamilyRuns:
    """How a family's arms are run; ``beside``: the folder that its recipe and start are relative to."""
    named = args.start or (beside / family.start if family.start else None)
    start = None
    if named:
        learnt = named.suffix in (".yaml", ".yml")
        start = Start(named, read_recipe(named) if learnt else None, output / "start" / family.name)

    recipe = [beside / family.recipe] if family.recipe else args.recipe
    setting = Setting(
        recipe=read_recipe(*(recipe or [HERE / ("recipe_started.yaml" if start else "recipe.yaml")])),
        benchmark=args.benchmark,
        data_root=args.data_root,
        archives=output / "archives",
        runs=output
        / ("runs-started" if args.start else "runs")
        / family.name,  # beside each other: they share archives
        threads=max(1, torch.get_num_threads() // args.jobs),
        options=QUICK if args.quick else (),
        start=start.checkpoint if start else None,
        train=family.train,
    )
    return FamilyRuns(family, setting, start, 1 if args.quick else args.seeds)


# --- carrying it out ------------------------------------------------------------------------------------------------------


def carry_out(comparison: Comparison, jobs: int, console: Console) -> Comparison:
    """Curate, read the encoder untrained, learn what runs start from, and train what is not finished; returns the
    comparison that was possible: without the arms of the truth where no sidecars tell it.

    Raises ExperimentError for the first step that fails.
    """
    arms = [arm for part in comparison.families for arm in part.family.arms]
    console.print(f"Curating in {comparison.archives}: {', '.join(dict.fromkeys(arm.archives for arm in arms))}")
    possible = curate(comparison.data, arms, comparison.archives, console)
    comparison = replace(comparison, families=[_keep(part, possible) for part in comparison.families])

    settings = [part.setting for part in comparison.families]
    for reading in untrained.measure(settings, comparison.benchmark, comparison.folder, console):
        console.print(f"{reading.name}, untrained: mIoU {reading.miou:.2f}")

    for start, setting in ((part.start, part.setting) for part in comparison.families):
        if start and start.recipe:
            console.print(f"What all runs start from: {start.folder}, by {start.path}")
            learn_start(setting, start.recipe, start.folder)
    train_all(comparison.runs(), jobs, console)
    return comparison


def _keep(part: FamilyRuns, possible: Sequence[Arm]) -> FamilyRuns:
    return replace(part, family=replace(part.family, arms=[arm for arm in part.family.arms if arm in possible]))


def train_all(runs: Sequence[tuple[FamilyRuns, Arm, int]], jobs: int, console: Console) -> None:
    """Train what is not finished, ``jobs`` runs side by side. Raises ExperimentError for the first that fails."""
    unfinished = [(part, arm, seed) for part, arm, seed in runs if not part.setting.finished(arm, seed)]
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("", total=len(runs), completed=len(runs) - len(unfinished))

        def train_one(part: FamilyRuns, arm: Arm, seed: int) -> None:
            seconds = run(part.setting, arm, seed)
            score = read_curve(part.setting.folder(arm, seed)).miou[-1]
            name = f"{part.family.name}/{arm.name}".lstrip("/")
            bar.console.print(f"{name}, seed {seed}: mIoU {score:.2f} after {seconds / 60:.1f} minutes")
            bar.advance(task)

        futures = [pool.submit(train_one, part, arm, seed) for part, arm, seed in unfinished]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
