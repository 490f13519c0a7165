"""The settings that a run was begun with, and what becomes of others when it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lightning import Callback

from curation.base.errors import CocuError

SECTIONS = ("seed_everything", "model", "data", "trainer")
SILENT = (  # nothing of the outcome follows from them
    "model.start", "model.seed", "data.seed", "data.allow_remote", "trainer.callbacks", "trainer.logger", "trainer.plugins",
    "trainer.profiler", "trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary",
)  # fmt: skip
FIXED = (  # those of the data that cannot change are known better to the data module: see ArchiveDataModule.load_state_dict
    "model.sizes", "model.groups", "model.tune", "model.learn_scale", "trainer.accumulate_grad_batches",
    "trainer.limit_train_batches", "trainer.overfit_batches",
)  # fmt: skip
FREE = ("model.sizes.drop_path",)
OTHERWISE = (
    "or begin another run: --resume no, or another --output (--model.start takes the weights of a GroupViT along)"
)


class Change(NamedTuple):
    """A setting that is another one now."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """For people."""
        return f"{self.key}: {shown(self.before)} -> {shown(self.now)}"


class RunSettings(Callback):
    """Puts the settings into checkpoints."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)

    def state_dict(self) -> dict[str, Any]:
        """Goes into checkpoints."""
        return {"settings": self._settings}


def recorded(checkpoint: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings in a checkpoint; None for one of version 0.1, which has none."""
    state = checkpoint.get("callbacks", {}).get(RunSettings.__qualname__)
    return state["settings"] if state else None


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run, of a whole configuration, by dotted key.

    >>> flat({"output": "x", "model": {"optimizer": {"rate": 0.1}, "start": "y"}})
    {'model.optimizer.rate': 0.1}
    """
    values = dict(_pairs("", {name: config[name] for name in SECTIONS if name in config}))
    return {key: value for key, value in values.items() if not _below(key, SILENT)}


def _pairs(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _pairs(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _below(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs, in the order of ``now``. Settings that only one of the two versions of the program knows do not."""
    return [Change(key, before[key], value) for key, value in now.items() if key in before and before[key] != value]


def refuse_fixed(changed: list[Change], path: str) -> None:
    """Raises CocuError where something changed that a run cannot go on with."""
    fixed = [change for change in changed if is_fixed(change)]
    if fixed:
        names = "; ".join(map(str, fixed))
        raise CocuError(f"{path}: this run cannot go on with other values: {names}; set them as they were, {OTHERWISE}")


def is_fixed(change: Change) -> bool:
    """Whether a run cannot go on with it. A model without prompts has a parameter less."""
    if change.key == "model.prompt_weight":
        return bool(change.before) != bool(change.now)
    return _below(change.key, FIXED) and not _below(change.key, FREE)


def shown(value: Any) -> str:
    """A value for people: as YAML writes it.

    >>> shown(None), shown(True), shown(0.1)
    ('null', 'true', '0.1')
    """
    return (
        {None: "null", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else str(value)
    )
