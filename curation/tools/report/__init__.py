"""A finished run as one page to look at, ``OUT/report.html``. ``cocu report OUT`` writes it again.

record.py    what the page shows
survey.py    concepts counted over many rows
examples.py  some samples, with archives, neighbours and pictures
rejects.py   what could not be used, and why
galleries.py the concepts that captions leave out most, in pictures
duplicates.py groups of near-identical images
map.py       images in two dimensions
page.py      the page
charts.py    its histogram and tables
"""

from __future__ import annotations

from curation.base import files
from curation.run.run import Run
from curation.tools.report.page import render
from curation.tools.report.record import collect

__all__ = ["page_of", "write"]


def page_of(run: Run, map_by: str | None = None) -> str:
    """The page of a finished run, as HTML; ``map_by``: how to draw a map of its images, if at all. Raises CocuError."""
    return render(run.config, collect(run, map_by))


def write(run: Run, map_by: str | None = None) -> str:
    """Write ``report.html``; returns its path. Raises CocuError."""
    path = run.path("report.html")
    page = page_of(run, map_by)
    with files.atomic_write(path) as stream:
        stream.write(page.encode("utf-8"))
    return path
