"""The arms of the comparison and of the sweep, read from a YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from curation.base.configuration import did_you_mean, read_yaml
from curation.base.errors import CocuError

TRUTH = "truth"  # in place of options of the curation: archives of what the json sidecars say


class ExperimentError(CocuError):
    """Something that the user can mend. The message is one line."""


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
    curate: dict[str, Any] | str = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
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
        """The name of the folder of its archives: arms that are curated alike share one."""
        if isinstance(self.curate, str):
            return self.curate
        return "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in sorted(self.curate.items())) or "base"


def read_arms(path: Path) -> list[Arm]:
    """The arms of a file: a mapping of names. Raises ExperimentError for an unknown key, suggesting the nearest."""
    values = read_yaml(path)
    known = {item.name for item in fields(Arm)} - {"name"}
    arms = []
    for name, given in values.items():
        for key in given:
            if key not in known:
                raise ExperimentError(f"{path}: unknown key {name}.{key}{did_you_mean(key, known)}")
        if "title" not in given:
            raise ExperimentError(f"{path}: {name}.title: missing; say in a few words what the arm is")
        arms.append(Arm(name, **given))
    return arms


def chosen(arms: list[Arm], names: list[str]) -> list[Arm]:
    """The arms of these names, all of them for none. Raises ExperimentError for a name that there is not."""
    by_name = {arm.name: arm for arm in arms}
    for name in names:
        if name not in by_name:
            raise ExperimentError(f"--only: no arm is called {name}{did_you_mean(name, by_name)}")
    return [by_name[name] for name in names] or arms


def flags(options: Mapping[str, object]) -> list[str]:
    """Options as a command line takes them: ``--key value`` for each."""
    return [
        part
        for key, value in options.items()
        for part in (f"--{key}", str(value).lower() if isinstance(value, bool) else str(value))
    ]
