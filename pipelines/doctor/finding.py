"""A line of the doctor's answer."""

from __future__ import annotations

from typing import NamedTuple

OK, NOTE, WRONG = "ok", "note", "wrong"
GIB = 1 << 30


class Finding(NamedTuple):
    """What was found about one thing, and whether it keeps a run from working."""

    state: str  # OK, NOTE or WRONG
    what: str
    text: str


def size(count: float) -> str:
    """Bytes for people.

    >>> size(3 << 30), size(200 << 20)
    ('3.0 GiB', '200 MiB')
    """
    return f"{count / GIB:,.1f} GiB" if count >= GIB else f"{count / (1 << 20):,.0f} MiB"
