"""A finished run as one page to look at, ``OUT/report.html``. ``python -m curation.tools.report OUT`` writes it again.

record.py    what the page shows
survey.py    concepts counted over many rows
examples.py  some samples, with archives, neighbours and pictures
rejects.py   what could not be used, and why
duplicates.py groups of near-identical images
pictures.py  thumbnails from the tars
page.py      the page
charts.py    its histogram and tables
markup.py    data as HTML
"""

from __future__ import annotations

from curation.base import files
from curation.run.run import Run
from curation.tools.report.page import render
from curation.tools.report.record import collect

__all__ = ["page_of", "write"]


def page_of(run: Run) -> str:
    """The page of a finished run, as HTML. Raises CocuError."""
    return render(run.config, collect(run))


def write(run: Run) -> str:
    """Write ``report.html``; returns its path. Raises CocuError."""
    path = run.path("report.html")
    page = page_of(run)
    with files.atomic_write(path) as stream:
        stream.write(page.encode("utf-8"))
    return path
