"""Groups of near-identical images: how many there are, and pictures of the largest."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from curation.base.errors import InputError
from curation.base.markup import text
from curation.run.indexes import has_duplicates, indexed_shards
from curation.run.run import Run
from curation.tools.copies import Groups
from curation.tools.report.examples import Picture, by_shard, rows_of, show

LARGEST, EACH = 6, 7  # groups, and images of each, on the page
SIDE = 120  # pixels of thumbnails


@dataclass
class DuplicatesShown:
    """The groups of a run, in numbers, and pictures of the largest; no groups where all images count."""

    groups: int = 0
    duplicates: int = 0
    largest: list[tuple[int, list[Picture]]] = field(default_factory=list)  # size, and the first images


def read_groups(run: Run, notes: list[str]) -> DuplicatesShown:
    """The groups of a run; ``notes``: where to say why pictures are missing."""
    if not has_duplicates(run):
        return DuplicatesShown()
    groups = Groups(run)
    starts = np.cumsum([0] + [rows for _, rows in indexed_shards(run)])
    shown = DuplicatesShown(len(groups), groups.duplicates)
    for number in range(min(LARGEST, len(groups))):
        rows = groups.rows(number)
        shards = np.searchsorted(starts, rows[:EACH], side="right") - 1
        places = zip(shards.tolist(), rows[:EACH], strict=True)
        shown.largest.append((len(rows), [Picture(run.shards[at], row - int(starts[at])) for at, row in places]))

    for shard, pictures in by_shard([picture for _, group in shown.largest for picture in group]):
        rows = [picture.row for picture in pictures]
        for picture, row in zip(
            pictures, rows_of(run.of_shard("embeddings", shard), rows, ["key", "caption"]), strict=True
        ):
            picture.key, picture.caption = row["key"], row["caption"]
        if run.config.embeddings:
            continue
        try:
            show(run, shard, pictures, SIDE)
        except InputError as error:  # the run is finished: the page goes without these
            notes.append(str(error))
    return shown


def duplicates_section(shown: DuplicatesShown, rows: int) -> str:
    """The section of the page; empty where there are no groups."""
    if not shown.groups:
        return ""
    share = shown.duplicates / max(rows, 1)
    return f"""<section aria-labelledby="duplicates">
<h2 id="duplicates">Duplicates</h2>
<p>{shown.duplicates:,} of {rows:,} images ({share:.2%}) are near-identical to another one, in {shown.groups:,} groups. \
Each group counts once.</p>
{"".join(_group(size, pictures) for size, pictures in shown.largest)}</section>
"""


def _group(size: int, pictures: list[Picture]) -> str:
    items = "".join(
        f"<li>{_image(picture)}<p><bdi>{text(picture.key, 80)}</bdi></p>"
        f'<p class="cosine">{text(picture.caption, 80)}</p></li>'
        for picture in pictures
    )
    return f'<h3>{size:,} images</h3><ul class="neighbours rejects">{items}</ul>\n'


def _image(picture: Picture) -> str:
    if not picture.image:
        return '<div class="absent" aria-hidden="true"></div>'
    return f'<img src="{picture.image}" alt="{text(picture.caption)}" width="84" loading="lazy">'
