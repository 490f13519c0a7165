"""Groups of images that are nearly the same, where a run has looked for them: its archives then have ``duplicate_of``."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from curation.base.markup import text
from curation.base.parquet import open_parquet
from curation.run.run import Run
from curation.samples import Shard
from curation.tools.report.examples import Picture

COLUMN = "duplicate_of"  # {shard, key} of the image that stands for all of them; null for that one
GROUPS, MEMBERS = 8, 6


@dataclass
class DuplicateGroup:
    """Some images that are nearly the same, the one that stands for them first, as far as it lies in the shards that were
    read."""

    size: int
    pictures: list[Picture]


def find_duplicates(run: Run, shards: list[Shard]) -> list[DuplicateGroup]:
    """The largest groups in these shards; none where archives have no such column. No pictures yet."""
    by_name = {shard.name: shard for shard in shards}
    members: dict[tuple[str, str], list[Picture]] = defaultdict(list)
    firsts: dict[tuple[str, str], Picture] = {}
    for name, shard in by_name.items():
        with open_parquet(run.of_shard("archives", shard)) as file:
            if file.schema_arrow.get_field_index(COLUMN) < 0:
                return []
            rows = file.read(["key", COLUMN]).to_pylist()
        for number, row in enumerate(rows):
            original = row[COLUMN]
            if original:
                members[original["shard"], original["key"]].append(Picture(shard, number))
            else:
                firsts[name, row["key"]] = Picture(shard, number)

    groups = []
    for original, copies in sorted(members.items(), key=lambda item: (-len(item[1]), item[0]))[:GROUPS]:
        first = [firsts[original]] if original in firsts else []
        groups.append(DuplicateGroup(1 + len(copies), (first + copies)[:MEMBERS]))
    return groups


def duplicates_section(groups: list[DuplicateGroup]) -> str:
    """The section of the page; empty where there are none, or nobody looked for them."""
    if not groups:
        return ""
    return f"""<section aria-labelledby="duplicates">
<h2 id="duplicates">Duplicates</h2>
<p>Images that are nearly the same count once. The largest groups in the shards that the examples come from:</p>
<div class="galleries">
{"".join(map(_group, groups))}</div>
</section>
"""


def _group(group: DuplicateGroup) -> str:
    items = "".join(map(_item, group.pictures))
    return f'<div><h3>{group.size:,} images</h3><ul class="neighbours gallery">{items}</ul></div>\n'


def _item(picture: Picture) -> str:
    caption = text(picture.caption)
    image = f'<img src="{picture.image}" alt="{caption}" width="84" loading="lazy">' if picture.image else ""
    return f"<li>{image}<p><bdi>{caption}</bdi></p></li>"
