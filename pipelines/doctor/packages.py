"""Versions of packages, and the extras that are installed."""

from __future__ import annotations

from collections.abc import Iterator

from curation.base.extras import EXTRAS, INSTALL, missing_modules
from curation.base.versions import versions
from pipelines.doctor.finding import NOTE, OK, Finding

PACKAGES = ("cocu", "torch", "open_clip_torch", "apache-beam", "faiss-cpu", "faiss-gpu", "spacy", "pyarrow", "numpy")


def package_findings() -> Iterator[Finding]:
    """Versions, then a line for each extra: there, or how it is installed."""
    found = versions(PACKAGES)
    yield Finding(OK, "versions", ", ".join(f"{name} {version}" for name, version in found.items()))
    for name, extra in EXTRAS.items():
        missing = missing_modules(name)
        text = (
            f"not installed, for {extra.needed_by}: {INSTALL[name]}" if missing else f"installed, for {extra.needed_by}"
        )
        yield Finding(NOTE if missing else OK, f"extra {name}", text)
