"""Pictures of the concepts that captions leave out most: those whose archives are surest of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive import read_archive
from curation.archive.entries import entries
from curation.base.markup import quoted, text
from curation.base.parquet import read_columns
from curation.base.ragged import Ragged, is_in
from curation.run.run import Run
from curation.samples import Shard
from curation.tools.report.examples import Picture
from curation.tools.report.survey import concept_names

CONCEPTS, EACH = 12, 6
FEWEST = 3  # archives of which a gallery is made


@dataclass
class Gallery:
    """A concept, and archives that hold it though their captions leave it out, the best scores first."""

    concept: str
    omitted: int  # such archives, in the shards that were read
    scores: list[float]
    pictures: list[Picture]


def choose_galleries(run: Run, shards: list[Shard]) -> list[Gallery]:
    """The concepts that the captions of these shards leave out most, with their surest archives; no pictures yet."""
    names = concept_names(run)
    concepts, scores, numbers, rows = [], [], [], []  # of every entry that a caption omits
    for number, shard in enumerate(shards):
        lists, structs = entries(read_archive(run.of_shard("archives", shard)))
        column = structs.field("concept")
        ids = pc.index_in(column.dictionary, value_set=names).fill_null(-1).to_numpy(zero_copy_only=False)
        held = lists.with_values(ids[column.indices.to_numpy()].astype(np.int64))
        said = read_columns(run.of_shard("embeddings", shard), {"concepts": pa.list_(pa.int32())})["concepts"]
        omitted = np.flatnonzero(~is_in(held, Ragged.from_arrow(said.combine_chunks())) & (held.values >= 0))
        concepts.append(held.values[omitted])
        scores.append(structs.field("score").to_numpy()[omitted])
        numbers.append(np.full(len(omitted), number))
        rows.append(held.owners[omitted])
    if not concepts:
        return []

    concept, score, holder, row = map(np.concatenate, (concepts, scores, numbers, rows))
    counts = np.bincount(concept, minlength=len(names))
    galleries = []
    for most in np.argsort(-counts, kind="stable")[:CONCEPTS]:
        if counts[most] < FEWEST:
            break
        of_concept = np.flatnonzero(concept == most)
        best = of_concept[np.argsort(-score[of_concept], kind="stable")[:EACH]]
        pictures = [Picture(shards[holder[at]], int(row[at])) for at in best]
        galleries.append(Gallery(names[int(most)].as_py(), int(counts[most]), score[best].tolist(), pictures))
    return galleries


def galleries_section(galleries: list[Gallery]) -> str:
    """The section of the page; empty where captions leave nothing out."""
    if not galleries:
        return ""
    return f"""<section aria-labelledby="galleries">
<h2 id="galleries">What captions leave out most</h2>
<p>Of each concept the archives with the highest scores whose captions do not mention it, in the shards that the examples
come from. They are candidates, not labels.</p>
<div class="galleries">
{"".join(map(_gallery, galleries))}</div>
</section>
"""


def _gallery(gallery: Gallery) -> str:
    items = "".join(map(_item, gallery.pictures, gallery.scores))
    return (
        f'<div><h3>{text(gallery.concept, 60)} <span class="quiet">{gallery.omitted:,} archives</span></h3>'
        f'<ul class="neighbours gallery">{items}</ul></div>\n'
    )


def _item(picture: Picture, score: float) -> str:
    """A picture; a caption where there is none."""
    if not picture.image:
        return f'<li class="words"><p>{quoted(picture.caption)}</p><p class="cosine">{score:.2f}</p></li>'
    caption = text(picture.caption)
    return (
        f'<li title="{caption}"><img src="{picture.image}" alt="{caption}" width="84" loading="lazy">'
        f'<p class="cosine">{score:.2f}</p></li>'
    )
