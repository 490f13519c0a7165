"""Archives as FiftyOne imports them: type FiftyOneImageClassificationDataset, with every concept as a label.

https://docs.voxel51.com/user_guide/import_datasets.html: ``data/<id>.<field>``, and ``labels.json`` with ``classes`` and,
by id, a list of ``{"label", "confidence", "attributes"}``. Captions have no place in it: ``captions.json`` has them, by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from curation.base import files
from curation.tools.export.images import copy_images

if TYPE_CHECKING:
    from curation.tools.export.export import Export


class Labelled(NamedTuple):
    """A picture by its id, the path below data/ without its ending."""

    name: str
    key: str
    caption: str
    labels: list[dict[str, Any]]


def write_shard(export: Export, name: str) -> list[Labelled]:
    """Copy the images of a shard; returns their labels."""
    rows: list[dict[str, Any]] = export.archive.table(name).to_pylist()
    folder = files.join(export.folder, "data", name)
    copied = copy_images(export.archive, name, [row["key"] for row in rows], folder)
    return [_labelled(f"{name}/{number:08d}", rows[number]) for number, _, _ in copied]


def _labelled(name: str, row: dict[str, Any]) -> Labelled:
    labels = []
    for entry in row["concepts"]:
        attributes = {key: value for key, value in entry.items() if key not in ("concept", "score")}
        labels.append({"label": entry["concept"], "confidence": entry["score"], "attributes": attributes})
    return Labelled(name, row["key"], row["caption"], labels)


def finish(export: Export, shards: Iterator[list[Labelled]]) -> int:
    """Both files of JSON, a line for each picture; returns the number of pictures."""
    samples = 0
    labels = files.join(export.folder, "labels.json")
    captions = files.join(export.folder, "captions.json")
    with files.atomic_write(captions) as texts, files.atomic_write(labels) as stream:
        stream.write(b'{"classes": ' + _json(export.archive.vocabulary) + b', "labels": {')
        texts.write(b"{")
        for shard in shards:
            for picture in shard:
                comma = b",\n" if samples else b"\n"
                stream.write(comma + _json(picture.name) + b": " + _json(picture.labels))
                texts.write(
                    comma + _json(picture.name) + b": " + _json({"key": picture.key, "caption": picture.caption})
                )
                samples += 1
        stream.write(b"\n}}\n")
        texts.write(b"\n}\n")
    return samples


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
