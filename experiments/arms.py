"""The arms of the comparison and of the sweep, and the families that they belong to, read from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curation.base.configuration import build, did_you_mean, errors_naming, read_yaml, require
from experiments.commands import ExperimentError

BASELINE = "caption"  # the arm of a family that its others are compared with: captions alone
COCU = "cluster"  # the arm of the method as published
TRUTH = "truth"  # in place of options of the curation: archives of what the json sidecars say
BASE = "base"  # archives as the data set's configuration says
FAMILIES = "families"  # the key of a file that has several


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


@dataclass(frozen=True)
class Family:
    """Arms that are trained alike, by one recipe from one start.

    Attributes:
        name: of its folder and its figures; empty where a file has no families.
        title: what is trained, in a few words.
        arms: what is compared; ``caption`` is the baseline.
        recipe: configuration of the trainer, relative to the file of the arms; empty for the command line's.
        start: what all its runs start from, likewise: a checkpoint, or a recipe that learns one; None for the recipe's.
        train: options of ``training fit`` that differ from the recipe, for all its arms.
        method: the arm whose comparison with the baseline is told first.
        chosen: the arm on which its recipe was chosen.
    """

    name: str
    title: str
    arms: list[Arm]
    recipe: str = ""
    start: str | None = None
    train: dict[str, object] = field(default_factory=dict)
    method: str = COCU
    chosen: str = BASELINE


def read_families(path: Path) -> list[Family]:
    """The families of a file: a mapping of names below ``families``, or arms alone, which are one family without a name.

    Raises CocuError for unknown keys, suggesting the nearest, and bad values.
    """
    values = read_yaml(path)
    with errors_naming(str(path)):
        if FAMILIES not in values:
            return [Family("", "GroupViT", _arms(values, ""))]
        for key in values:
            require(key == FAMILIES, f"unknown key {key}: a file with {FAMILIES} has nothing beside them")
        require(isinstance(values[FAMILIES], dict), f"{FAMILIES}: expected keys and values")
        return [_family(name, family) for name, family in values[FAMILIES].items()]


def _family(name: str, values: Any) -> Family:
    prefix = f"{FAMILIES}.{name}."
    require(isinstance(values, dict), f"{prefix[:-1]}: expected keys and values, found {values!r}")
    require("name" not in values, f"unknown key {prefix}name: the key of the family is its name")
    require(bool(values.get("recipe")), f"{prefix}recipe: missing")
    require(isinstance(values.get("arms"), dict), f"{prefix}arms: expected keys and values")
    arms = _arms(values["arms"], f"{prefix}arms.")
    return replace(build(Family, {"name": name, **values, "arms": []}, prefix), arms=arms)


def _arms(values: Mapping[str, Any], prefix: str) -> list[Arm]:
    arms = []
    for name, options in values.items():
        require(isinstance(options, dict), f"{prefix}{name}: expected keys and values, found {options!r}")
        require("name" not in options, f"unknown key {prefix}{name}.name: the key of the arm is its name")
        arms.append(build(Arm, {"name": name, **options}, f"{prefix}{name}."))
    return arms


def choose_arms(families: list[Family], names: list[str]) -> list[Family]:
    """The families with the arms of these names only; all arms if no name is given.

    names: of arms, in every family that has one so called; of a family; or both, as in ``dense/caption``. A family that
    keeps no arm is left out. Raises ExperimentError for an unknown name.
    """
    choices = {word for family in families for arm in family.arms for word in _names(family, arm)}
    for name in names:
        if name not in choices:
            raise ExperimentError(f"--only: no arm is called {name}{did_you_mean(name, choices)}")
    if not names:
        return families

    chosen = []
    for family in families:
        arms = [arm for arm in family.arms if not _names(family, arm).isdisjoint(names)]
        if arms:
            chosen.append(replace(family, arms=arms))
    return chosen


def _names(family: Family, arm: Arm) -> set[str]:
    """What ``--only`` may call an arm."""
    return {arm.name, family.name, f"{family.name}/{arm.name}"} if family.name else {arm.name}
