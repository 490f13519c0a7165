"""Small configurations in files, and the lines with which they are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from curation import config
from curation.base.errors import CocuError

SMALL = "name: pets\nshards: a.tar\n"


def write_config(folder: Path, text: str | bytes) -> str:
    """Write a YAML file in a folder of its own, ``conf`` of ``folder``; returns its path."""
    (folder / "conf").mkdir(exist_ok=True)
    path = folder / "conf" / "pets.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def refused(path: str, overrides: Mapping[str, str] | None = None) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(CocuError) as raised:
        config.load(path, overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message
