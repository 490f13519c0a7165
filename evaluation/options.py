"""Values of options that several commands of evaluation have. Light to import: no torch."""

from __future__ import annotations

import argparse

AUTO = "auto"  # in place of a number: a threshold that is chosen by the images


def threshold(text: str) -> float | str:
    """A number from 0 to 1, or auto."""
    if text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number from 0 to 1 nor {AUTO}")
    return value
