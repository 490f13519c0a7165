"""What could not be used, by reason, with the pictures of two examples each where there are any."""

from __future__ import annotations

from dataclasses import dataclass, field

from curation.archive.thumbnails import read_fields, thumbnail
from curation.base import files
from curation.base.errors import InputError
from curation.base.markup import text
from curation.run.rejects import RejectGroup, read_rejects
from curation.run.run import Run, tar_of
from curation.samples import Shard

KINDS = 12  # shown on the page
SIDE = 120  # pixels of thumbnails
READ_AT_MOST = 1 << 28  # bytes of tars that are read for them


@dataclass
class RejectsShown:
    """The rejects of a run by reason, and thumbnails of examples by (shard, key), where there are any."""

    groups: list[RejectGroup]
    images: dict[tuple[str, str], str] = field(default_factory=dict)


def read_shown(run: Run, notes: list[str]) -> RejectsShown:
    """The rejects of a run; ``notes``: where to say why pictures are missing."""
    shown = RejectsShown(read_rejects(run))
    if run.config.embeddings:
        return shown

    by_shard: dict[Shard, list[str]] = {}
    for group in shown.groups[:KINDS]:
        for shard, key, _ in group.examples:
            if key:
                by_shard.setdefault(shard, []).append(key)
    spent = 0
    for shard, keys in by_shard.items():
        try:
            path = tar_of(run, shard)
            spent += files.version(path)["size"] if files.is_remote(path) else 0
            if spent > READ_AT_MOST:
                break
            _add_images(run, shard, keys, shown.images)
        except InputError as error:  # the run is finished: the page goes without these
            notes.append(str(error))
    return shown


def _add_images(run: Run, shard: Shard, keys: list[str], images: dict[tuple[str, str], str]) -> None:
    extensions = run.config.image.lower().split(";")
    for key, fields in read_fields(tar_of(run, shard), keys, extensions).items():
        image = next((fields[name] for name in extensions if name in fields), b"")
        try:
            images[shard.name, key] = thumbnail(image, SIDE)
        except InputError:  # often just why it is a reject
            continue


def rejects_section(shown: RejectsShown, counts: dict[str, int]) -> str:
    """The section of the page; empty where everything could be used."""
    if not shown.groups:
        return ""
    share = counts["rejects"] / max(counts["samples"], 1)
    more = len(shown.groups) - KINDS
    rest = f'<p class="quiet">and {more} more reasons, in rejects/</p>' if more > 0 else ""
    return f"""<section aria-labelledby="rejects">
<h2 id="rejects">Rejects</h2>
<p>{counts["rejects"]:,} of {counts["samples"]:,} samples ({share:.2%}) could not be used.</p>
{"".join(_group(group, shown.images) for group in shown.groups[:KINDS])}{rest}
</section>
"""


def _group(group: RejectGroup, images: dict[tuple[str, str], str]) -> str:
    items = "".join(
        f"<li>{_image(images.get((shard.name, key), ''), key)}<p><bdi>{text(key or shard.name, 80)}</bdi></p>"
        f'<p class="cosine">{text(shard.name, 60)}: {text(reason)}</p></li>'
        for shard, key, reason in group.examples
    )
    return f'<h3>{group.count:,} × {text(group.kind)}</h3><ul class="neighbours rejects">{items}</ul>\n'


def _image(image: str, key: str) -> str:
    if not image:
        return '<div class="absent" aria-hidden="true"></div>'
    return f'<img src="{image}" alt="{text(key, 80)}" width="84" loading="lazy">'
