"""``cocu show OUT [KEY...]``: print archives readably."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.archive import read_archive
from curation.archive.keys import read_keys
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import read_columns, row_count
from curation.base.terminal import printable
from curation.run.captions import block_captions, caption_column
from curation.run.curator import Curator, open_curator
from curation.run.indexes import check_retrieved, first_row
from curation.run.run import Run
from curation.samples import Shard
from curation.tools.commands.show import main

COLOURS = ("cyan", "magenta", "yellow", "green", "blue", "red")
BAR = 24  # characters of the longest bar


def plain(value: str) -> str:
    """Text from data for a console of rich's: neither control characters nor markup."""
    return escape(printable(value))


def find(run: Run, keys: list[str], count: int) -> list[tuple[Shard, int]]:
    """Shard and row of every key, in the order asked for; of the first ``count`` samples when no key is given.

    A key of several shards gives all of them. Raises CocuError for a key that no shard holds.
    """
    by_key: dict[str, list[tuple[Shard, int]]] = {key: [] for key in keys}
    first: list[tuple[Shard, int]] = []
    for shard in run.shards:
        if not keys and len(first) == count:
            break
        column = read_keys(run.of_shard("archives", shard))
        rows = pc.index_in(column, value_set=pa.array(keys, pa.string())).to_numpy(zero_copy_only=False)
        for row in np.flatnonzero(~np.isnan(rows)):
            by_key[column[row].as_py()].append((shard, int(row)))
        first += [(shard, row) for row in range(min(count - len(first), len(column)))]

    missing = [key for key, matches in by_key.items() if not matches]
    if missing:
        raise CocuError(f"{run.folder}: no sample has the key {missing[0]}; rejected samples are in rejects/")
    return [match for key in keys for match in by_key[key]] if keys else first


def show(run: Run, keys: list[str], count: int, console: Console) -> None:
    """Print caption, neighbours' captions, and concepts with scores and clusters."""
    source = check_retrieved(run)
    curator = open_curator(run)
    for shard, row in find(run, keys, count):
        sample = read_archive(run.of_shard("archives", shard)).slice(row, 1).to_pylist()[0]
        console.rule(f"[bold]{plain(sample['key'])}[/]  [dim]{plain(shard.name)}, row {row}", align="left")
        print_captions(sample, console)
        if curator.method.retrieves:
            print_neighbours(run, source, curator, shard, row, console)
        console.print(concept_table(sample["concepts"]))


def print_captions(sample: dict[str, Any], console: Console) -> None:
    """Print the caption of a sample; of several, each with the fields that have it."""
    if "captions" not in sample:
        console.print(f"caption     {plain(sample['caption'])}", highlight=False)
        return
    title = "captions"
    for caption in sample["captions"]:
        names = plain(", ".join(caption["sources"]))
        console.print(f"{title:<11} {plain(caption['text'])}  [dim]{names}[/]", highlight=False, soft_wrap=True)
        title = ""


def print_neighbours(run: Run, source: Run, curator: Curator, shard: Shard, row: int, console: Console) -> None:
    """Print the captions that were retrieved for a sample from ``source``, with cosines."""
    column = read_columns(run.of_shard("embeddings", shard), {"embedding": None})["embedding"]
    image = embedding_matrix(column.slice(row, 1))
    first = first_row(run, shard)
    anchor = -1 if first is None else first + row
    ids, cosines = curator.neighbours(image, np.array([anchor]))
    title = "neighbours"
    for neighbour, cosine in zip(ids[0], cosines[0], strict=True):
        if neighbour >= 0:
            caption = ("(itself) " if neighbour == anchor else "") + caption_of(source, int(neighbour))
            console.print(f"{title:<11} [dim]{cosine:.3f}[/]  {plain(caption)}", highlight=False, soft_wrap=True)
            title = ""


def caption_of(source: Run, row: int) -> str:
    """The caption of a row of the index, which holds the images of ``source``; several with bars between them."""
    for path in source.of_shards("embeddings"):
        rows = row_count(path)
        if row < rows:
            table = read_columns(path, {caption_column(source.config): None}).slice(row, 1)
            return " | ".join(block_captions(table, source.config).texts)
        row -= rows
    raise CocuError(f"{source.folder}: the index has more rows than the shards; run cocu curate again")


def concept_table(concepts: list[dict[str, Any]]) -> Table:
    """The concepts of one archive, as bars coloured by cluster."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    sources = ["sources"] if concepts and "sources" in concepts[0] else []
    for column in ("concept", "", "score", "global", "local", "cluster", "support", *sources):
        table.add_column(column, justify="left" if column in ("concept", "", "sources") else "right")
    largest = max((concept["score"] for concept in concepts), default=1) or 1
    for concept in concepts:
        colour = COLOURS[concept["cluster"] % len(COLOURS)]
        bar = "█" * max(0, round(BAR * concept["score"] / largest)) if largest > 0 else ""
        values = [f"{concept[name]:.3f}" for name in ("score", "global", "local")]
        table.add_row(
            f"[{colour}]{plain(concept['concept'])}",
            f"[{colour}]{bar}",
            *values,
            str(concept["cluster"]),
            str(concept["support"]),
            *(plain(", ".join(concept[name])) for name in sources),
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
