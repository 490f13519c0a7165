"""What is written of a comparison, from the runs that are finished: tables, figures, pictures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curation.archive import ConceptArchive
from curation.base.versions import conditions
from evaluation.benchmark import Benchmark
from experiments import figures, omission, summary, untrained
from experiments.arms import BASE, BASELINE, TRUTH
from experiments.commands import ExperimentError
from experiments.comparison import Comparison, FamilyRuns, Start
from experiments.findings import best_arm
from experiments.page import Page, Section, StartSummary, write_page
from experiments.pictures import write_pictures
from experiments.quality import quality_table, read_truth
from experiments.recipes import HERE
from experiments.runs import last_checkpoint
from experiments.scores import read_curve
from experiments.summary import ArmRuns
from experiments.untrained import Reading
from segmenters.opening import open_segmenter

MOST_LINES = 6  # of a figure


def write_report(comparison: Comparison, folder: Path, command: str) -> Path:
    """Write all that there is to say into ``folder``; returns the path of the page.

    Raises ExperimentError when no run is finished.
    """
    benchmark, archives = comparison.benchmark, comparison.archives
    parts = [(part, finished_runs(part)) for part in comparison.families]
    if not any(arms for _, arms in parts):
        raise ExperimentError(f"{comparison.folder}: no run of these arms is finished; leave --page-only out")

    truth_known = (archives / TRUTH).exists()
    shares = omission.omitted_shares(archives / (TRUTH if truth_known else BASE), benchmark.classes)
    group = omission.groups(shares)
    readings = untrained.read(comparison.folder)
    sections = [write_section(part, arms, group, readings, benchmark, folder) for part, arms in parts if arms]
    quality = archive_quality(archives)
    write_tables(folder, sections, group, benchmark, shares, quality)

    page = Page(
        data=Path(comparison.data).name,
        benchmark=Path(comparison.name).name,
        images=len(ConceptArchive.open(str(archives / BASE))),
        limit=comparison.families[0].setting.limit,
        command=command,
        conditions=conditions("torch", "lightning", "faiss-cpu"),
        sections=sections,
        untrained=untrained.best(readings),
        quality=quality,
        members=[int((group == number).sum()) for number in range(len(omission.NAMES))],
        truth_known=truth_known,
        left_out=[name for part, arms in parts for name in left_out(part, arms)],
    )
    return write_page(page, folder)


# --- a family -------------------------------------------------------------------------------------------------------------


def finished_runs(part: FamilyRuns) -> list[ArmRuns]:
    """The arms with at least one finished run, each with the curves of those that are finished."""
    arms = []
    for arm in part.family.arms:
        seeds = [seed for seed in part.seeds(arm) if part.setting.finished(arm, seed)]
        if seeds:
            arms.append(ArmRuns(arm, [read_curve(part.setting.folder(arm, seed)) for seed in seeds]))
    return arms


def left_out(part: FamilyRuns, arms: Sequence[ArmRuns]) -> list[str]:
    """The arms of a family of which no run is finished."""
    finished = {runs.arm.name for runs in arms}
    names = [arm.name for arm in part.family.arms if arm.name not in finished]
    return [f"{part.family.name}/{name}".lstrip("/") for name in names]


def write_section(
    part: FamilyRuns,
    arms: Sequence[ArmRuns],
    group: np.ndarray,
    readings: Sequence[Reading],
    benchmark: Benchmark,
    folder: Path,
) -> Section:
    """Draw a family's figures into ``folder``, and what the page says of it."""
    compared = [runs for runs in arms if runs.arm.group == "arm"]
    swept = [runs for runs in arms if runs.arm.group != "arm"]
    middle = next((runs for runs in compared if runs.arm.name == part.family.method), None)
    lines = summary.final_table(arms, group)
    start = summarise_start(part.start) if part.start else None

    references = [summary.reference(f"untrained, {r.name}", r.pixel_accuracy, r.iou, group) for r in readings]
    if start and start.curve:
        references.append(summary.reference("start", start.curve.pixel_accuracy[-1], start.curve.iou[-1], group))
    if swept and middle:
        figures.draw_sweep(swept, middle, folder / "sweep.png")
    return Section(
        family=part.family,
        recipe=part.setting.recipe.text(),
        start=start,
        arms=compared,
        sweep=swept if middle else [],
        lines=lines,
        references=references,
        figures=draw_figures(folder, part.family.name, drawn_arms(compared, part.family.method), group, readings),
        pictures=draw_pictures(part, benchmark, compared, [BASELINE, part.family.method, best_arm(compared, lines)]),
    )


def drawn_arms(arms: Sequence[ArmRuns], method: str) -> list[ArmRuns]:
    """The arms that figures show, few enough to tell their lines apart: captions, the method, those with several seeds and
    the truth."""
    chosen = [
        runs for runs in arms if runs.arm.name in (BASELINE, method) or len(runs.curves) > 1 or runs.arm.curate == TRUTH
    ]
    return (chosen or list(arms))[:MOST_LINES]


def draw_figures(
    folder: Path, family: str, arms: Sequence[ArmRuns], group: np.ndarray, readings: Sequence[Reading]
) -> list[tuple[str, str]]:
    """Curves, final scores, and losses where there are any: title and file of each."""
    end = f"-{family}.png" if family else ".png"
    reading = untrained.best(readings)
    figures.draw_curves(arms, group, folder / f"curves{end}", reading)
    figures.draw_groups(summary.final_table(arms, group), folder / f"omission{end}")
    drawn = [
        ("mIoU against steps", f"curves{end}"),
        ("final mIoU by how often captions omit a class", f"omission{end}"),
    ]
    if any(np.isfinite(curve.losses).any() for runs in arms for curve in runs.curves):
        figures.draw_losses(arms, folder / f"losses{end}")
        drawn.append(("losses against steps", f"losses{end}"))
    return drawn


def summarise_start(start: Start) -> StartSummary:
    """What all runs start from: as it was named, its recipe where it was learnt, and its last scores."""
    path = start.path.resolve()
    name = str(path.relative_to(HERE.parent)) if path.is_relative_to(HERE) else str(start.path)
    return StartSummary(name, start.recipe, read_curve(start.folder) if start.recipe else None)


def draw_pictures(
    part: FamilyRuns, benchmark: Benchmark, arms: Sequence[ArmRuns], names: Sequence[str | None]
) -> list[str]:
    """Some images with what the arms of these names see, if at least two have run and are there; returns the files."""
    checkpoints = {runs.arm.name: last_checkpoint(part.setting.folder(runs.arm, 0)) for runs in arms}
    shown = [name for name, path in checkpoints.items() if name in names and path.exists()]
    if len(shown) < 2:
        return []
    models = {name: open_segmenter(checkpoints[name]).model.eval() for name in shown}
    runs = part.setting.runs
    parents = runs.parent if part.family.name else runs
    folder = parents.parent / parents.name.replace("runs", "pictures") / part.family.name
    return write_pictures(benchmark, models, folder)


# --- numbers --------------------------------------------------------------------------------------------------------------


def archive_quality(archives: Path) -> list[dict[str, Any]]:
    """How well each folder of archives agrees with the truth; empty where no sidecars tell it."""
    truth = read_truth(archives / BASE)
    if truth is None:
        return []
    folders = [path for path in sorted(archives.iterdir()) if (path / "manifest.json").exists()]
    return quality_table(folders, truth)


def write_tables(
    folder: Path,
    sections: Sequence[Section],
    group: np.ndarray,
    benchmark: Benchmark,
    shares: np.ndarray,
    quality: Sequence[dict[str, Any]],
) -> None:
    """The numbers behind page and figures; with several families, each line or column says whose it is."""
    curves, results, references = [], [], []
    classes = [{"class": name, "omitted": share} for name, share in zip(benchmark.classes, shares, strict=True)]
    for section in sections:
        name = section.family.name
        whose = {"family": name} if name else {}
        arms = [*section.arms, *section.sweep]
        curves += [whose | line for line in summary.curve_table(arms, group)]
        results += [whose | line for line in section.lines]
        references += [whose | line for line in section.references]
        for line, more in zip(classes, summary.class_table(arms), strict=True):
            line |= {f"{name}/{arm}".lstrip("/"): value for arm, value in more.items()}

    summary.write_csv(folder / "curves.csv", curves)
    summary.write_csv(folder / "results.csv", results)
    summary.write_csv(folder / "classes.csv", classes)
    if references:
        summary.write_csv(folder / "references.csv", references)
    if quality:
        summary.write_csv(folder / "archives.csv", quality)
