"""A finished run as one page to look at, ``OUT/report.html``. ``python -m curation.report OUT`` writes it again.

Only what is shown is read: some shards' concept lists, 24 samples with their neighbours, and these samples' images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from curation import storage
from curation.outputs import Outputs
from curation.report.examples import Example, Picture, add_images, add_neighbours, choose, read_examples
from curation.report.survey import Candidate, Survey, count_concepts, random_shards, read_candidates

SEED = 0
EXAMPLE_SHARDS = 6  # that the examples come from


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    manifest: dict[str, Any]
    survey: Survey
    candidates: list[Candidate]
    examples: list[Example]
    notes: list[str]  # why something that one would expect is not shown


def collect(outputs: Outputs) -> Report:
    """Read what the page shows of a finished run. Raises CurationError when the run's files are missing or damaged."""
    rng = np.random.default_rng(SEED)
    counts = random_shards(outputs, rng, EXAMPLE_SHARDS)
    chosen = [Picture(shard, row) for shard, row in choose(dict(list(counts.items())[:EXAMPLE_SHARDS]), rng)]
    notes: list[str] = []
    examples = read_examples(outputs, chosen)
    add_neighbours(outputs, examples)
    add_images(outputs, examples, notes)
    return Report(
        storage.read_json(outputs.manifest),
        count_concepts(outputs, list(counts)),
        read_candidates(outputs),
        examples,
        notes,
    )


def page_of(outputs: Outputs) -> str:
    """The page of a finished run, as HTML. Raises CurationError."""
    from curation.report.page import render

    return render(outputs.config, collect(outputs))


def write(outputs: Outputs) -> str:
    """Write ``report.html``; returns its path. Raises CurationError."""
    path, page = outputs.path("report.html"), page_of(outputs)
    with storage.atomic_write(path) as stream:
        stream.write(page.encode("utf-8"))
    return path
