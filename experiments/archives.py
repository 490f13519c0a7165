"""One folder of archives for each way of curating: images are embedded once, and what follows is computed for each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from experiments.arms import BASE, TRUTH, Arm
from experiments.commands import flags, run_module
from experiments.quality import read_truth
from experiments.truth import write_truth


def curate(data: str, arms: Sequence[Arm], folder: Path, console: Console) -> list[Arm]:
    """Make the archives that the arms need, in ``folder/<name>``; what is there and still good is kept.

    data: a name or YAML file as ``pipelines.curate`` takes it. Returns the arms that have archives: all of them, but for
    those of the truth where no sidecars tell it. Raises ExperimentError when a curation fails.
    """
    _curate(data, folder / BASE, {})
    options = {arm.archives: arm.curate for arm in arms if isinstance(arm.curate, dict) and arm.archives != BASE}
    for name, values in options.items():
        _curate(data, _variant(folder, name), values)
        console.print(f"  {name}")

    if not any(arm.curate == TRUTH for arm in arms):
        return list(arms)
    truth = read_truth(folder / BASE)
    if truth is None:
        console.print("No json sidecars say what is visible: the arms of the truth are left out.")
        return [arm for arm in arms if arm.curate != TRUTH]
    write_truth(truth, folder / BASE, _variant(folder, TRUTH))
    console.print(f"  {TRUTH}")
    return list(arms)


def _variant(folder: Path, name: str) -> Path:
    """The folder of a way of curating, which begins as a copy of the base: its fingerprints tell what of it can stay."""
    variant = folder / name
    if not (variant / "manifest.json").exists():
        shutil.rmtree(variant, ignore_errors=True)
        shutil.copytree(folder / BASE, variant)
    return variant


def _curate(data: str, output: Path, options: Mapping[str, object]) -> None:
    log = output.parent / f"{output.name}.log"
    run_module("pipelines.curate", flags({"data": data, "output": output, **options}), log)
