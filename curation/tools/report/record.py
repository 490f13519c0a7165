"""All that the page of a run shows, read from its files: some shards' concept lists, and 24 samples with neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from curation.base import files
from curation.run.run import Run
from curation.tools.report.duplicates import DuplicatesShown, read_groups
from curation.tools.report.examples import (
    Example,
    Picture,
    add_captions,
    add_images,
    add_neighbours,
    choose,
    read_examples,
)
from curation.tools.report.galleries import Gallery, choose_galleries
from curation.tools.report.map import EmbeddingMap, draw_map
from curation.tools.report.rejects import RejectsShown, read_shown
from curation.tools.report.survey import Candidate, Survey, count_concepts, random_shards, read_candidates

SEED = 0
EXAMPLE_SHARDS = 6  # that the examples come from


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    manifest: dict[str, Any]
    survey: Survey
    candidates: list[Candidate]
    rejects: RejectsShown
    duplicates: DuplicatesShown
    examples: list[Example]
    galleries: list[Gallery]
    map: EmbeddingMap | None
    notes: list[str]  # why something that one would expect is not shown


def collect(run: Run, map_by: str | None = None) -> Report:
    """Read what the page shows of a finished run; ``map_by``: how to draw a map of its images, one of METHODS.

    Raises CocuError when the run's files are missing or damaged.
    """
    rng = np.random.default_rng(SEED)
    counts = random_shards(run, rng, EXAMPLE_SHARDS)
    read = list(counts)[:EXAMPLE_SHARDS]
    chosen = [Picture(shard, row) for shard, row in choose({shard: counts[shard] for shard in read}, rng)]
    notes: list[str] = []
    examples = read_examples(run, chosen)
    add_neighbours(run, examples)
    galleries = choose_galleries(run, read)
    shown = [picture for gallery in galleries for picture in gallery.pictures]
    add_captions(run, shown)
    add_images(run, examples, shown, notes)
    return Report(
        files.read_json(run.manifest),
        count_concepts(run, list(counts)),
        read_candidates(run),
        read_shown(run, notes),
        read_groups(run, notes),
        examples,
        galleries,
        draw_map(run, read, map_by, rng) if map_by else None,
        notes,
    )
