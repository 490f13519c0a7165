"""Images and titles as open_clip's trainer reads them: a csv with what captions omit added to them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curation.base import files
from curation.tools.export.images import copy_images

if TYPE_CHECKING:
    from curation.tools.export.export import Export

Line = tuple[str, ...]
COLUMNS = ("filepath", "title", "key", "file")  # of csv; the first two are open_clip's
# What pandas reads as a missing value rather than as text.
MISSING = {
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}


def write_shard(export: Export, name: str) -> list[Line]:
    """Copy the images of a shard; returns its lines."""
    rows: list[dict[str, Any]] = export.archive.table(name).to_pylist()
    lines: list[Line] = []
    folder = files.join(export.folder, "images", name)
    for number, path, field in copy_images(export.archive, name, [row["key"] for row in rows], folder):
        row = rows[number]
        captions = [caption["text"] for caption in row["captions"]] if "captions" in row else [row["caption"]]
        titles = [_title(enriched(row | {"caption": caption}, export.text)) for caption in captions]
        lines += [(path, title, row["key"], f"{row['key']}.{field}") for title in titles]
    return lines


def finish(export: Export, shards: Iterator[list[Line]]) -> int:
    """``train.csv``; returns the number of samples."""
    samples = 0
    with files.atomic_write(files.join(export.folder, "train.csv")) as stream:
        stream.write(_lines([COLUMNS]))
        for lines in shards:
            stream.write(_lines(lines))
            samples += len({line[0] for line in lines})
    return samples


def enriched(row: dict[str, Any], text: str) -> str:
    """``text`` with {caption} and {concepts} of an archive filled in; the caption alone where it has no concepts."""
    concepts = ", ".join(entry["concept"] for entry in row["concepts"])
    filled = text.replace("{concepts}", concepts).replace("{caption}", row["caption"])
    return filled if concepts else str(row["caption"])


def _title(text: str) -> str:
    """The text as pandas, by which open_clip reads it, keeps it: a space makes NA and null text; tokenizers strip it."""
    return text + " " if text in MISSING else text


def _lines(lines: list[tuple[str, ...]]) -> bytes:
    """Tab-separated lines. A field with a line break of any kind is quoted: readers take a lone CR for one too."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\r\n")  # Python quotes what is in its line ending
    for line in lines:
        writer.writerow(line)
        out.seek(out.tell() - 2)
        out.write("\n")
        out.truncate()
    return out.getvalue().encode()
