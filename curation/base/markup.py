"""Data as HTML: whatever comes from a file passes through here."""

from __future__ import annotations

import html
import unicodedata

LONGEST_TEXT = 240  # characters of a caption


def text(value: str, longest: int = LONGEST_TEXT) -> str:
    """Text from data, safe inside elements and quoted attributes, without control characters, and not too long."""
    clean = "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in ("Cc", "Cs", "Co") else c for c in value)
    return html.escape(clean if len(clean) <= longest else clean[: longest - 1] + "…")


def quoted(caption: str) -> str:
    """A caption; its writing direction stays its own."""
    return f"<bdi>{text(caption)}</bdi>"
