"""One folder of archives for each way of curating: images are embedded once, and what follows is computed for each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.arms import TRUTH, Arm, ExperimentError, flags
from experiments.quality import read_truth
from experiments.truth import write_truth

BASE = "base"  # curated as the data set's configuration says


def curate(data: str, arms: Sequence[Arm], folder: Path, console: Console) -> list[Arm]:
    """Make the archives that the arms need, in ``folder/<name>``; what is there and still good is kept.

    data: a name or YAML file as ``pipelines.curate`` takes it. Returns the arms that have archives: all of them, but for
    those of the truth where no sidecars tell it. Raises ExperimentError when a curation fails.
    """
    _run(data, folder / BASE, {})
    for name, arm in {arm.archives: arm for arm in arms if arm.archives != BASE}.items():
        variant = folder / name
        if arm.curate == TRUTH and (world := read_truth(folder / BASE)) is None:
            console.print("No json sidecars say what is visible: the arm of the truth is left out.")
            return [arm for arm in arms if arm.curate != TRUTH]
        if not (variant / "manifest.json").exists():
            shutil.rmtree(variant, ignore_errors=True)
            shutil.copytree(folder / BASE, variant)  # its fingerprints tell what of it can stay
        if isinstance(arm.curate, str):
            write_truth(world, folder / BASE, variant)
        else:
            _run(data, variant, arm.curate)
        console.print(f"  {name}")
    return list(arms)


def _run(data: str, output: Path, options: dict[str, object]) -> None:
    command = [sys.executable, "-m", "pipelines.curate", *flags({"data": data, "output": output} | options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    (output.parent / f"{output.name}.log").write_text(done.stdout)
    if done.returncode:
        raise ExperimentError(f"{' '.join(command[1:])} failed: {done.stdout.strip().splitlines()[-1]}")
