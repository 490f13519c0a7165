"""``python -m experiments``: curate, train and evaluate every arm, and write the page that compares them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.results import conditions
from curation.archive import ConceptArchive
from curation.base.terminal import run_command
from evaluation.benchmark import Benchmark, read_benchmark
from experiments import figures, omission, pictures, report, summary
from experiments.archives import BASE, curate
from experiments.arms import TRUTH, Arm, ExperimentError, chosen, read_arms
from experiments.quality import quality_table, read_truth
from experiments.scores import read_curve
from experiments.training import Setting, last_checkpoint, learn_start, run
from segmenters.checkpoint import load

HERE = Path(__file__).parent
PAGE = Path("docs/experiments")
QUICK_ARMS = (summary.BASELINE, report.COCU, TRUTH)
QUICK = ("--trainer.max_steps", "150", "--trainer.check_val_every_n_epoch", "null",
         "--trainer.val_check_interval", "50", "--model.validation.limit", "100")  # fmt: skip

EPILOG = """\
examples:
  python -m experiments --data worlds/scenes.yaml --benchmark worlds/val_seen.yaml
  python -m experiments --data worlds/scenes.yaml --benchmark worlds/val_seen.yaml --only caption cluster --jobs 2
  python -m experiments --data worlds/scenes.yaml --benchmark worlds/val_seen.yaml --start experiments/distil.yaml
  python -m experiments --data cc12m --benchmark voc --data-root data --recipe training/configs/groupvit_cc12m.yaml

A run that was cut off goes on from its last checkpoint when the same command is given again; finished runs are kept.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__.split(": ", 1)[1] if __doc__ else None,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--data", default="demo", help="name of a packaged data set, or a YAML file (default: demo)")
    made.add_argument("--benchmark", default="demo", help="a packaged benchmark, or a YAML file (default: demo)")
    made.add_argument(
        "--data-root", default="artifacts", help="folder of a packaged benchmark's data (default: artifacts)"
    )
    made.add_argument(
        "--recipe",
        type=Path,
        help="configuration of the trainer (default: experiments/recipe.yaml; recipe_started.yaml with --start)",
    )
    made.add_argument(
        "--start", type=Path, metavar="CHECKPOINT|YAML",
        help="what all runs start from: a checkpoint, or a configuration of experiments.distil that makes one (default: "
        "random weights)",
    )  # fmt: skip
    made.add_argument("--arms", type=Path, default=HERE / "arms.yaml", help="what is compared")
    made.add_argument("--only", nargs="+", default=[], metavar="ARM", help="these arms only (default: all)")
    made.add_argument("--seeds", type=int, help="at most so many runs of an arm")
    made.add_argument("--output", type=Path, help="archives and runs (default: artifacts/experiments/DATA)")
    made.add_argument(
        "--report",
        type=Path,
        help="the page (default: docs/experiments; in started/ with --start, in quick/ with --quick)",
    )
    made.add_argument(
        "--jobs", type=int, default=1, help="runs side by side, which share the processor cores (default: 1)"
    )
    made.add_argument(
        "--quick", action="store_true", help="three arms, one seed, 150 steps: minutes, to see that it works"
    )
    made.add_argument("--page-only", action="store_true", help="write the page from the runs that are finished")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)

    def work() -> None:
        path = compare(args, console, arguments if arguments is not None else sys.argv[1:])
        console.print(f"Written: {path}")

    return run_command(work, "interrupted; give the same command again to resume")


def compare(given: argparse.Namespace, console: Console, arguments: Sequence[str]) -> Path:
    """Curate, train, and write the page; returns its path. Raises what :func:`main` reports."""
    given.recipe = given.recipe or HERE / ("recipe_started.yaml" if given.start else "recipe.yaml")
    known = read_arms(given.arms)
    arms = chosen(known, given.only or (list(QUICK_ARMS) if given.quick else []))
    benchmark = read_benchmark(given.benchmark, given.data_root)
    output = given.output or Path("artifacts") / "experiments" / (
        Path(given.data).stem + ("-quick" if given.quick else "")
    )
    threads = max(1, torch.get_num_threads() // given.jobs)
    runs = output / ("runs-started" if given.start else "runs")  # beside each other: they share archives only
    learnt = given.start is not None and given.start.suffix in (".yaml", ".yml")
    setting = Setting(
        given.recipe, given.benchmark, given.data_root, output / "archives", runs, threads,
        QUICK if given.quick else (), last_checkpoint(output / "start") if learnt else given.start,
    )  # fmt: skip
    most = 1 if given.quick else given.seeds
    planned = [
        (arm, seed) for seed in range(max(arm.seeds for arm in arms)) for arm in arms if seed < seeds_of(arm, most)
    ]
    if not given.page_only:
        console.print(f"Curating in {setting.archives}: {', '.join(dict.fromkeys(arm.archives for arm in arms))}")
        arms = curate(given.data, arms, setting.archives, console)
        if learnt:
            console.print(f"What all runs start from: {output / 'start'}, by {given.start}")
            learn_start(setting, given.start, output / "start", BASE)
        train(setting, [(arm, seed) for arm, seed in planned if arm in arms], given.jobs, console)
    return write(given, setting, arms, planned, benchmark, arguments)


def seeds_of(arm: Arm, most: int | None) -> int:
    """How many runs of an arm."""
    return arm.seeds if most is None else min(arm.seeds, most)


def train(setting: Setting, planned: Sequence[tuple[Arm, int]], jobs: int, console: Console) -> None:
    """Train what is not finished, ``jobs`` runs side by side. Raises ExperimentError for the first that fails."""
    left = [(arm, seed) for arm, seed in planned if not setting.finished(arm, seed)]
    columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task("", total=len(planned), completed=len(planned) - len(left))

        def one(planned_run: tuple[Arm, int]) -> None:
            arm, seed = planned_run
            seconds = run(setting, arm, seed)
            score = read_curve(setting.folder(arm, seed)).miou[-1]
            bar.console.print(f"{arm.name}, seed {seed}: mIoU {score:.2f} after {seconds / 60:.1f} minutes")
            bar.advance(task)

        waiting = [pool.submit(one, item) for item in left]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write(
    given: argparse.Namespace, setting: Setting, arms: Sequence[Arm], planned: Sequence[tuple[Arm, int]],
    benchmark: Benchmark, arguments: Sequence[str],
) -> Path:  # fmt: skip
    """Tables, figures, pictures and the page, from the runs that are finished."""
    folder: Path = given.report or PAGE / ("started" if given.start else "") / ("quick" if given.quick else "")
    ended = [(arm, seed) for arm, seed in planned if setting.finished(arm, seed)]
    found = [
        summary.Runs(arm, [read_curve(setting.folder(arm, seed)) for other, seed in ended if other is arm])
        for arm in arms
        if any(other is arm for other, _ in ended)
    ]
    if not found:
        raise ExperimentError(f"{setting.runs}: no run of these arms is finished; leave --page-only out")
    truth = setting.archives / TRUTH
    known = truth.exists()
    shares = omission.omitted_shares(truth if known else setting.archives / BASE, benchmark.classes)
    group = omission.groups(shares)
    compared, swept = ([runs for runs in found if (runs.arm.group == "arm") is wanted] for wanted in (True, False))
    lines = summary.final_table(found, group)
    summary.write_csv(folder / "curves.csv", summary.curve_table(found, group))
    summary.write_csv(folder / "results.csv", lines)
    summary.write_csv(folder / "classes.csv", summary.class_table(found, benchmark.classes, shares))
    world = read_truth(setting.archives / BASE)
    folders = [path for path in sorted(setting.archives.iterdir()) if (path / "manifest.json").exists()]
    quality = quality_table(folders, world) if world else []
    if quality:
        summary.write_csv(folder / "archives.csv", quality)
    figures.draw_curves(compared, group, folder / "curves.png")
    figures.draw_losses(compared, folder / "losses.png")
    figures.draw_groups(
        [line for line in lines if line["arm"] in {runs.arm.name for runs in compared}], folder / "omission.png"
    )
    middle = next((runs for runs in compared if runs.arm.name == report.COCU), None)
    if swept and middle:
        figures.draw_sweep(swept, middle, folder / "sweep.png")
    page = report.Page(
        data=Path(given.data).name,
        benchmark=Path(given.benchmark).name,
        images=len(ConceptArchive.open(str(setting.archives / BASE))),
        command=f"python -m experiments {shlex.join(item for item in arguments if item != '--page-only')}".strip(),
        conditions=conditions("torch", "lightning", "faiss-cpu"),
        recipe=given.recipe.read_text(encoding="utf-8"),
        start=describe_start(given.start, setting.start),
        arms=compared,
        sweep=swept if middle else [],
        lines=lines,
        quality=quality,
        members=[int((group == number).sum()) for number in range(len(omission.NAMES))],
        known=known,
        pictures=[],
        left_out=[arm for arm in arms if not any(other is arm for other, _ in ended)],
    )
    shown = [summary.BASELINE, report.COCU, report.best_arm(page)]
    return report.write_page(page._replace(pictures=draw_pictures(setting, benchmark, compared, shown)), folder)


def describe_start(given: Path | None, checkpoint: Path | None) -> report.Start | None:
    """What all runs start from, for the page: as it was given, its recipe where it was learnt, and its last scores."""
    if given is None or checkpoint is None:
        return None
    if given == checkpoint:
        return report.Start(str(given), None, None)
    return report.Start(str(given), given.read_text(encoding="utf-8"), read_curve(checkpoint.parent.parent))


def draw_pictures(
    setting: Setting, benchmark: Benchmark, found: Sequence[summary.Runs], shown: Sequence[str | None]
) -> list[str]:
    """Some images with what the arms ``shown`` see, if two at least have run; returns the files."""
    arms = [runs.arm for runs in found if runs.arm.name in shown]
    if len(arms) < 2:
        return []
    models = {arm.name: load(last_checkpoint(setting.folder(arm, 0))).model.eval() for arm in arms}
    folder, paths = setting.runs.parent / setting.runs.name.replace("runs", "pictures"), []
    folder.mkdir(parents=True, exist_ok=True)
    for number, choice in enumerate(pictures.choose(benchmark)):
        paths.append(str(folder / f"{number + 1}.png"))
        pictures.draw(benchmark, choice, models).save(paths[-1])
    return paths


if __name__ == "__main__":
    sys.exit(main())
