"""The arms of the comparison and of the sweep, read from a YAML file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from curation.base.configuration import build, did_you_mean, errors_naming, read_yaml, require
from experiments.commands import ExperimentError

BASELINE = "caption"  # the arm that others are compared with
COCU = "cluster"  # the arm of the method
TRUTH = "truth"  # in place of options of the curation: archives of what the json sidecars say
BASE = "base"  # archives as the data set's configuration says


@dataclass(frozen=True)
class Arm:
    """One way of curating and training.

    Attributes:
        name: of its folder and of its line in a figure.
        title: what it is, in a few words.
        curate: options of ``pipelines.curate`` that differ from the data set's configuration, or ``truth``.
        train: options of ``training fit`` that differ from the recipe.
        seeds: how many runs.
        group: ``arm``, or the setting of the sweep that it varies.
    """

    name: str
    title: str
    curate: dict[str, object] | str = field(default_factory=dict)
    train: dict[str, object] = field(default_factory=dict)
    seeds: int = 1
    group: str = "arm"

    def __post_init__(self) -> None:
        """Check every value."""
        if isinstance(self.curate, str) and self.curate != TRUTH:
            raise ExperimentError(f"arm {self.name}: curate: {self.curate!r} is neither a mapping nor {TRUTH}")
        if self.seeds < 1:
            raise ExperimentError(f"arm {self.name}: seeds: {self.seeds} must be at least 1")

    @property
    def archives(self) -> str:
        """The name of the folder of its archives: arms that are curated alike share one.

        >>> Arm("sure-32", "from 32 neighbours", curate={"retrieval.neighbors": 32}).archives
        'neighbors=32'
        """
        if isinstance(self.curate, str):
            return self.curate
        return "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in sorted(self.curate.items())) or BASE


def read_arms(path: Path) -> list[Arm]:
    """The arms of a file: a mapping of names. Raises CocuError for unknown keys, suggesting the nearest, and bad values."""
    arms = []
    for name, values in read_yaml(path).items():
        with errors_naming(str(path)):
            require(isinstance(values, dict), f"{name}: expected keys and values, found {values!r}")
            require("name" not in values, f"unknown key {name}.name: the key of the arm is its name")
            arms.append(build(Arm, {"name": name, **values}, f"{name}."))
    return arms


def choose_arms(arms: list[Arm], names: list[str]) -> list[Arm]:
    """The arms of these names; all of them if no name is given. Raises ExperimentError for an unknown name."""
    by_name = {arm.name: arm for arm in arms}
    for name in names:
        if name not in by_name:
            raise ExperimentError(f"--only: no arm is called {name}{did_you_mean(name, by_name)}")
    return [by_name[name] for name in names] or arms
