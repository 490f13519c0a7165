"""What is written of a comparison, from the runs that are finished: tables, figures, pictures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.archive import ConceptArchive
from curation.base.versions import conditions
from evaluation.benchmark import Benchmark
from experiments import figures, omission, summary
from experiments.arms import BASE, BASELINE, COCU, TRUTH
from experiments.commands import ExperimentError
from experiments.comparison import Comparison, Start
from experiments.findings import best_arm
from experiments.page import Page, StartSummary, write_page
from experiments.pictures import write_pictures
from experiments.quality import quality_table, read_truth
from experiments.runs import Setting, last_checkpoint
from experiments.scores import read_curve
from experiments.summary import ArmRuns
from segmenters.checkpoint import load


def write_report(comparison: Comparison, folder: Path, command: str) -> Path:
    """Write all that there is to say into ``folder``; returns the path of the page.

    Raises ExperimentError when no run is finished.
    """
    setting = comparison.setting
    benchmark = comparison.benchmark
    arms = finished_runs(comparison)
    if not arms:
        raise ExperimentError(f"{setting.runs}: no run of these arms is finished; leave --page-only out")
    compared = [runs for runs in arms if runs.arm.group == "arm"]
    swept = [runs for runs in arms if runs.arm.group != "arm"]
    middle = next((runs for runs in compared if runs.arm.name == COCU), None)

    truth_known = (setting.archives / TRUTH).exists()
    shares = omission.omitted_shares(setting.archives / (TRUTH if truth_known else BASE), benchmark.classes)
    group = omission.groups(shares)
    lines = summary.final_table(arms, group)
    quality = archive_quality(setting.archives)
    write_tables(folder, arms, group, benchmark, shares, quality)
    draw_figures(folder, compared, group, lines)
    if swept and middle:
        figures.draw_sweep(swept, middle, folder / "sweep.png")

    finished = {runs.arm.name for runs in arms}
    page = Page(
        data=Path(comparison.data).name,
        benchmark=Path(setting.benchmark).name,
        images=len(ConceptArchive.open(str(setting.archives / BASE))),
        command=command,
        conditions=conditions("torch", "lightning", "faiss-cpu"),
        recipe=setting.recipe.text(),
        start=summarise_start(comparison.start) if comparison.start else None,
        arms=compared,
        sweep=swept if middle else [],
        lines=lines,
        quality=quality,
        members=[int((group == number).sum()) for number in range(len(omission.NAMES))],
        truth_known=truth_known,
        pictures=draw_pictures(setting, benchmark, compared, [BASELINE, COCU, best_arm(compared, lines)]),
        left_out=[arm.name for arm in comparison.arms if arm.name not in finished],
    )
    return write_page(page, folder)


def finished_runs(comparison: Comparison) -> list[ArmRuns]:
    """The arms with at least one finished run, each with the curves of those that are finished."""
    setting = comparison.setting
    arms = []
    for arm in comparison.arms:
        seeds = [seed for seed in comparison.seeds(arm) if setting.finished(arm, seed)]
        if seeds:
            arms.append(ArmRuns(arm, [read_curve(setting.folder(arm, seed)) for seed in seeds]))
    return arms


def archive_quality(archives: Path) -> list[dict[str, Any]]:
    """How well each folder of archives agrees with the truth; empty where no sidecars tell it."""
    truth = read_truth(archives / BASE)
    if truth is None:
        return []
    folders = [path for path in sorted(archives.iterdir()) if (path / "manifest.json").exists()]
    return quality_table(folders, truth)


def write_tables(
    folder: Path,
    arms: Sequence[ArmRuns],
    group: np.ndarray,
    benchmark: Benchmark,
    shares: np.ndarray,
    quality: Sequence[dict[str, Any]],
) -> None:
    """The numbers behind page and figures."""
    summary.write_csv(folder / "curves.csv", summary.curve_table(arms, group))
    summary.write_csv(folder / "results.csv", summary.final_table(arms, group))
    summary.write_csv(folder / "classes.csv", summary.class_table(arms, benchmark.classes, shares))
    if quality:
        summary.write_csv(folder / "archives.csv", quality)


def draw_figures(folder: Path, arms: Sequence[ArmRuns], group: np.ndarray, lines: Sequence[dict[str, Any]]) -> None:
    """Curves, losses and final scores of the arms that are compared."""
    names = {runs.arm.name for runs in arms}
    figures.draw_curves(arms, group, folder / "curves.png")
    figures.draw_losses(arms, folder / "losses.png")
    figures.draw_groups([line for line in lines if line["arm"] in names], folder / "omission.png")


def summarise_start(start: Start) -> StartSummary:
    """What all runs start from: as it was named, its recipe where it was learnt, and its last scores."""
    if start.recipe is None:
        return StartSummary(str(start.path), None, None)
    return StartSummary(str(start.path), start.recipe.text(), read_curve(start.folder))


def draw_pictures(
    setting: Setting, benchmark: Benchmark, arms: Sequence[ArmRuns], names: Sequence[str | None]
) -> list[str]:
    """Some images with what the arms of these names see, if at least two have run; returns the files."""
    shown = [runs.arm for runs in arms if runs.arm.name in names]
    if len(shown) < 2:
        return []
    models = {arm.name: load(last_checkpoint(setting.folder(arm, 0))).model.eval() for arm in shown}
    folder = setting.runs.parent / setting.runs.name.replace("runs", "pictures")
    return write_pictures(benchmark, models, folder)
