"""Random samples of a run: their archives, what was retrieved for them, and their pictures, from the tars."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from curation.archive import read_archive
from curation.archive.thumbnails import read_fields, thumbnail
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError, InputError
from curation.base.parquet import check_columns, open_parquet
from curation.concepts import concept_key
from curation.expansion import EXPANSIONS
from curation.run.captions import caption_column
from curation.run.curator import open_curator
from curation.run.indexes import check_retrieved, first_row, indexed_shards
from curation.run.run import Run, indexed_run, tar_of
from curation.samples import Shard
from curation.tools.report.survey import concept_names

EXAMPLES = 24
LARGE, SMALL = 320, 120  # pixels of thumbnails: of an example, of its neighbours
READ_AT_MOST = 1 << 30  # bytes, of images
SOUGHT = 1 / 50  # share of a local tar that is read when a few of its members are


@dataclass
class Picture:
    """A sample of the run, or of the run whose images are retrieved."""

    shard: Shard
    row: int
    key: str = ""
    caption: str = ""
    captions: list[dict[str, Any]] = field(default_factory=list)  # text and sources, where images may have several
    image: str = ""  # data URI; empty where there is none
    visible: set[tuple[str, ...]] | None = None  # concepts by the data set's own truth, where its sidecars tell
    attribution: str = ""  # whom the sidecar credits


@dataclass
class Example:
    """A sample with its archive and its neighbours."""

    picture: Picture
    concepts: list[dict[str, Any]]  # of the archive, in descending score
    said: set[str]  # what the caption mentions
    neighbours: list[tuple[float, Picture]] = field(default_factory=list)  # with cosines; without the sample itself


def choose(counts: dict[Shard, int], rng: np.random.Generator) -> list[tuple[Shard, int]]:
    """Up to ``EXAMPLES`` random rows of shards with so many rows, as (shard, row), sorted."""
    rows = [(shard, row) for shard, size in counts.items() for row in range(size)]
    if not rows:
        return []
    numbers = rng.choice(len(rows), min(EXAMPLES, len(rows)), replace=False)
    return [rows[number] for number in sorted(numbers)]


def read_examples(run: Run, chosen: list[Picture]) -> list[Example]:
    """Archives, captions and what these mention, of the chosen samples."""
    names = concept_names(run)
    examples = []
    for shard, pictures in by_shard(chosen):
        rows = [picture.row for picture in pictures]
        archives = read_archive(run.of_shard("archives", shard)).take(pa.array(rows)).to_pylist()
        said = rows_of(run.of_shard("embeddings", shard), rows, ["concepts"])
        for picture, archive, mentioned in zip(pictures, archives, said, strict=True):
            picture.key, picture.caption = archive["key"], archive["caption"]
            picture.captions = archive.get("captions", [])
            said_numbers = mentioned["concepts"] or []
            if any(not 0 <= number < len(names) for number in said_numbers):
                raise CocuError(f"{run.of_shard('embeddings', shard)}: names concepts that the vocabulary lacks")
            mentions = {names[number].as_py() for number in said_numbers}
            examples.append(Example(picture, archive["concepts"], mentions))
    return examples


def by_shard(pictures: list[Picture]) -> Iterator[tuple[Shard, list[Picture]]]:
    """The pictures of each shard."""
    groups: dict[Shard, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.shard, []).append(picture)
    yield from groups.items()


def rows_of(path: str, rows: list[int], columns: list[str]) -> list[dict[str, Any]]:
    """Some rows of a Parquet file; only the row groups that hold them are read."""
    by_row: dict[int, dict[str, Any]] = {}
    with open_parquet(path) as file:
        check_columns(file, columns, path)
        start = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            inside = sorted({row for row in rows if start <= row < start + size})
            if inside:
                table = file.read_row_group(group, columns=columns).take([row - start for row in inside])
                by_row |= dict(zip(inside, table.to_pylist(), strict=True))
            start += size
    return [by_row[row] for row in rows]


def add_neighbours(run: Run, examples: list[Example]) -> None:
    """What was retrieved for each example, where anything was."""
    if not EXPANSIONS[run.config.archive.expansion].retrieves or not examples:
        return
    source = check_retrieved(run)
    starts = np.cumsum([0] + [rows for _, rows in indexed_shards(run)])

    images: list[list[float]] = []
    anchors: list[int] = []
    for shard, pictures in by_shard([example.picture for example in examples]):
        rows = [picture.row for picture in pictures]
        images += [row["embedding"] for row in rows_of(run.of_shard("embeddings", shard), rows, ["embedding"])]
        first = first_row(run, shard)
        anchors += [-1 if first is None else first + row for row in rows]

    flat = pa.array(np.asarray(images, np.float16).reshape(-1))
    vectors = embedding_matrix(pa.FixedSizeListArray.from_arrays(flat, len(images[0])))
    ids, cosines = open_curator(run).neighbours(vectors, np.array(anchors))
    for example, anchor, nearest, likeness in zip(examples, anchors, ids, cosines, strict=True):
        for number, cosine in zip(nearest.tolist(), likeness.tolist(), strict=True):
            if number >= 0 and number != anchor:
                shard_number = int(np.searchsorted(starts, number, side="right")) - 1
                picture = Picture(source.shards[shard_number], number - int(starts[shard_number]))
                example.neighbours.append((cosine, picture))

    add_captions(source, [picture for example in examples for _, picture in example.neighbours])


def add_captions(source: Run, chosen: list[Picture]) -> None:
    """Keys and captions of samples of a run; several captions with bars between them."""
    column = caption_column(source.config)
    for shard, pictures in by_shard(chosen):
        path = source.of_shard("embeddings", shard)
        texts = rows_of(path, [picture.row for picture in pictures], ["key", column])
        for picture, row in zip(pictures, texts, strict=True):
            texts_of = [caption["text"] for caption in row[column]] if source.config.captions else [row[column]]
            picture.key, picture.caption = row["key"], " | ".join(texts_of)


def add_images(run: Run, examples: list[Example], gallery: list[Picture], notes: list[str]) -> None:
    """Thumbnails and truth from the tars: of the examples, then of neighbours and galleries while little is read."""
    source = indexed_run(run)
    spent = 0.0
    passed_over = 0
    for owner, side, pictures in (
        (run, LARGE, [example.picture for example in examples]),
        (source, SMALL, [picture for example in examples for _, picture in example.neighbours]),
        (run, SMALL, gallery),
    ):
        if owner.config.embeddings and pictures:
            notes.append("No pictures: the run was made from imported embeddings, which come without images.")
            continue
        for shard, group in sorted(by_shard(pictures), key=lambda item: -len(item[1])):
            try:
                cost = files.version(tar_of(owner, shard))["size"] * (1 if files.is_remote(shard.path) else SOUGHT)
                if spent + cost > READ_AT_MOST and spent:
                    passed_over += len(group)
                    continue
                spent += cost
                show(owner, shard, group, side)
            except InputError as error:  # the run is finished: the page goes without these
                notes.append(str(error))
    if passed_over:
        notes.append(f"{passed_over} pictures are not shown, because they would take too long to read.")


def show(run: Run, shard: Shard, pictures: list[Picture], side: int) -> None:
    """Fill in image and truth of pictures of one shard. Raises InputError for a tar or an image that cannot be read."""
    extensions = run.config.image.lower().split(";")
    by_key = read_fields(tar_of(run, shard), [picture.key for picture in pictures], [*extensions, "json"])
    for picture in pictures:
        fields = by_key.get(picture.key, {})
        image = next((fields[name] for name in extensions if name in fields), None)
        if image is None:
            raise InputError(f"{shard.path}: the image of {picture.key} is gone; has the file changed since the run?")
        picture.image = thumbnail(image, side)
        sidecar = read_sidecar(fields.get("json", b""))
        picture.visible, picture.attribution = truth(sidecar), str(sidecar.get("attribution", ""))


def read_sidecar(content: bytes) -> dict[str, Any]:
    """A json sidecar that holds an object; empty for any other, since the page needs none."""
    try:
        sidecar = json.loads(content or b"{}")
    except ValueError:
        return {}
    return sidecar if isinstance(sidecar, dict) else {}


def truth(sidecar: dict[str, Any]) -> set[tuple[str, ...]] | None:
    """What a sidecar says is visible, as :mod:`curation.tools.measure` reads it; None where it says nothing of it."""
    lists = [sidecar[name] for name in ("objects", "stuff") if isinstance(sidecar.get(name), list)]
    return {concept_key(name) for names in lists for name in names if isinstance(name, str)} if lists else None
