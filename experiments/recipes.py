"""Recipes: configurations of the trainer, in YAML files of which the later ones are laid over the earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from curation.base.configuration import overlay, read_yaml

HERE = Path(__file__).resolve().parent
SIZES = HERE.parent / "training" / "configs" / "sizes" / "demo.yaml"
BENEATH = (SIZES, HERE / "shared.yaml")
LAYERS = {  # what the recipes of this folder are laid over, so that nothing stands in two of them
    "recipe.yaml": BENEATH,
    "recipe_started.yaml": (*BENEATH, HERE / "recipe.yaml"),
    "distil.yaml": (*BENEATH, HERE / "recipe_started.yaml"),
    "distil_places.yaml": (SIZES,),
    "distil_places_untrained.yaml": (SIZES,),
}


@dataclass(frozen=True)
class Recipe:
    """A configuration of the trainer.

    Attributes:
        files: YAML files, the later ones laid over the earlier ones, as the trainer reads several ``--config``.
    """

    files: tuple[Path, ...]

    def settings(self) -> dict[str, Any]:
        """What the files amount to. Raises CocuError for one that cannot be read."""
        values: dict[str, Any] = {}
        for path in self.files:
            values = overlay(values, read_yaml(path))
        return values

    @property
    def has_teacher(self) -> bool:
        """Whether it is one of a start that learns of places, from a teacher, not of windows."""
        return "teacher" in self.settings().get("model", {})

    def text(self) -> str:
        """The recipe as YAML: a single file as it stands, with its comments; otherwise what the files amount to."""
        if len(self.files) == 1:
            return self.files[0].read_text(encoding="utf-8")
        return yaml.safe_dump(self.settings(), sort_keys=False, default_flow_style=None, width=120, allow_unicode=True)


def read_recipe(*paths: Path) -> Recipe:
    """The recipe that a user names: files, one over another; those of this folder come with all that lies beneath them.

    >>> [file.name for file in read_recipe(HERE / "recipe.yaml").files]
    ['demo.yaml', 'shared.yaml', 'recipe.yaml']
    """
    files: list[Path] = []
    for path in paths:
        files += LAYERS.get(path.name, ()) if path.resolve().parent == HERE else ()
        files.append(path)
    return Recipe(tuple(files))


def with_options(settings: dict[str, Any], options: Mapping[str, object]) -> dict[str, Any]:
    """Settings with options of the command line laid over them.

    >>> with_options({"trainer": {"max_epochs": 6, "devices": 1}}, {"trainer.max_epochs": 1})
    {'trainer': {'max_epochs': 1, 'devices': 1}}
    """
    for key, value in options.items():
        nested: Any = value
        for name in reversed(key.split(".")):
            nested = {name: nested}
        settings = overlay(settings, nested)
    return settings


def same_settings(recorded: str | dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether the settings in the record of a run are these.

    Runs of version 0.1 recorded the text of one file, in which ``model.sizes`` was called ``model.model``: they are still
    found finished.

    >>> same_settings("model: {model: {width: 8}}  # a small one", {"model": {"sizes": {"width": 8}}})
    True
    """
    values = yaml.safe_load(recorded) if isinstance(recorded, str) else recorded
    return _with_sizes(values) == _with_sizes(settings)


def _with_sizes(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with ``model.model`` under its present name."""
    model = settings.get("model")
    if not isinstance(model, dict) or "model" not in model:
        return settings
    return settings | {"model": {("sizes" if key == "model" else key): value for key, value in model.items()}}
