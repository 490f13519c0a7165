"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("curation", "segmenters", "evaluation", "training", "pipelines", "experiments", "cocu")


def modules_with_examples() -> list[str]:
    paths = [
        path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if ">>> " in path.read_text()
    ]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_of_docstrings_run_as_written(name):
    result = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")), verbose=False)
    assert result.attempted > 0
    assert result.failed == 0
