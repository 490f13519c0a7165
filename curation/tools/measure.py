"""``python -m curation.tools.measure OUT``: do archives find what captions omit?

For data whose json sidecars say what is visible (``objects``, ``stuff``), every expansion and ranking is
compared with the truth, in one table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from curation import encoder
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import open_parquet
from curation.base.ragged import row_numbers
from curation.base.terminal import run_command
from curation.concepts import concept_key
from curation.index.build import exact_index
from curation.index.open import searchable
from curation.run.run import Run, open_run
from curation.run.stages.archives import Curator, open_curator, open_searched, read_calibration
from curation.run.stages.work import csr
from curation.samples import read_sidecars

BLOCK = 4096
CUTS = (1, 2, 3, 5)
ARRANGEMENTS = [
    ("caption", "cocu"),
    ("vision", "cocu"),
    ("vision", "similarity"),
    ("vision", "support"),
    ("vision", "calibrated"),
    ("text", "cocu"),
    ("tagging", "similarity"),
]


class NoTruthError(CocuError):
    """Data whose sidecars do not say what is visible."""


class Ragged(NamedTuple):
    """Concept ids of N scenes, as CSR."""

    offsets: np.ndarray  # (N + 1,) int64
    concepts: np.ndarray  # (P,) int


@dataclass(frozen=True)
class World:
    """A curated data set with its truth."""

    images: np.ndarray  # (N, D) float32, unit rows
    captions: list[str]
    said: Ragged  # what the captions mention
    visible: Ragged  # what the sidecars name; concepts outside the vocabulary have ids of their own


@dataclass(frozen=True)
class Quality:
    """How well archives agree with the truth; shares from 0 to 1."""

    concepts: float  # per archive
    recall: float  # of the visible concepts, mean over scenes
    recall_top: float  # of the three best concepts and the caption together
    precision: dict[int, float]  # of the k best (or all, if fewer), over scenes with a non-empty archive
    new_precision: dict[int, float]  # of the k best that the caption does not mention, over scenes that have k of them


def quality(archives: Ragged, visible: Ragged, said: Ragged) -> Quality:
    """Compare archives, in descending score, with what is visible and what captions say, for the same N scenes."""
    width = int(max(found.concepts.max(initial=0) for found in (archives, visible, said))) + 1
    truth, spoken = _pairs(visible, width), _pairs(said, width)
    owner, pairs = row_numbers(archives.offsets), _pairs(archives, width)
    right, new = np.isin(pairs, truth), ~np.isin(pairs, spoken)
    scenes, sizes = len(archives.offsets) - 1, np.diff(archives.offsets)
    position = np.arange(len(pairs)) - np.repeat(archives.offsets[:-1], sizes)
    new_sizes = np.bincount(owner[new], minlength=scenes)
    new_position = np.cumsum(new) - 1 - np.repeat(np.cumsum(new_sizes) - new_sizes, sizes)

    def recall(found: np.ndarray) -> float:
        found = np.unique(found)
        hits = np.bincount(found[np.isin(found, truth)] // width, minlength=scenes)
        return float(np.mean(hits / np.maximum(np.diff(visible.offsets), 1)))

    def share(chosen: np.ndarray, of: np.ndarray, where: np.ndarray) -> float:
        hits = np.bincount(owner[chosen & right], minlength=scenes)
        return float(np.mean(hits[where] / of[where])) if where.any() else float("nan")

    return Quality(
        concepts=float(sizes.mean()),
        recall=recall(pairs),
        recall_top=recall(np.concatenate([pairs[position < 3], spoken])),
        precision={k: share(position < k, np.minimum(sizes, k), sizes > 0) for k in CUTS},
        new_precision={k: share(new & (new_position < k), np.full(scenes, k), new_sizes >= k) for k in CUTS},
    )


def _pairs(found: Ragged, width: int) -> np.ndarray:
    pairs: np.ndarray = row_numbers(found.offsets) * width + found.concepts
    return pairs


def read_world(run: Run, fields: list[str]) -> World:
    """Embeddings, captions and truth of a finished run. Raises NoTruthError where the sidecars lack the fields."""
    if run.config.embeddings:
        raise NoTruthError("measure: the run was made from imported embeddings, which have no json sidecars")
    tables = []
    for shard in run.shards:
        with open_parquet(run.of_shard("embeddings", shard)) as file:
            tables.append(file.read())
    table = pa.concat_tables(tables).combine_chunks()
    with open_parquet(run.vocabulary) as file:
        known = {concept_key(name): number for number, name in enumerate(file.read(["concept"])["concept"].to_pylist())}
    truth: list[set[int]] = []
    for shard, rows in zip(run.shards, tables, strict=True):
        named = {
            key: {known.setdefault(concept_key(name), len(known)) for name in names}
            for key, names in _truth(shard.path, fields)
        }
        missing = next((key for key in rows["key"].to_pylist() if key not in named), None)
        if missing is not None:
            raise NoTruthError(f"{shard.path}: key {missing} has no json sidecar with {' or '.join(fields)}")
        truth += [named[key] for key in rows["key"].to_pylist()]
    offsets = np.concatenate([[0], np.cumsum([len(names) for names in truth])])
    visible = Ragged(offsets, np.array([number for names in truth for number in sorted(names)], np.int64))
    said = Ragged(*csr(table["concepts"].chunk(0)))
    return World(embedding_matrix(table["embedding"]), table["caption"].to_pylist(), said, visible)


def _truth(path: str, fields: list[str]) -> Iterator[tuple[str, list[str]]]:
    for key, content in read_sidecars(path):
        try:
            sidecar = json.loads(content)
        except ValueError as error:
            raise CocuError(f"{path}: key {key}: the json sidecar is not JSON ({error})") from None
        if not isinstance(sidecar, dict):
            raise CocuError(f"{path}: key {key}: the json sidecar is not an object")
        if any(field in sidecar for field in fields):
            yield key, [name for field in fields for name in sidecar.get(field, [])]


def arrange(world: World, curator: Curator, expansion: str, method: str) -> Curator:
    """The run's curator with another expansion and ranking. Indexes that the run did not make are made in memory."""
    run, config = curator.run, curator.run.config
    changed = replace(config, archive=replace(config.archive, expansion=expansion, ranking=method, clusters=False))
    searched = None
    if expansion == "vision":
        searched = open_searched(Run(changed, run.folder))
    elif expansion == "text":
        captions = encoder.load(config.encoder).encode_texts(world.captions)
        searched = searchable(exact_index(captions))
    return replace(curator, run=Run(changed, run.folder), calibration=read_calibration(run), index=searched)


def curate_world(world: World, curator: Curator, held: bool) -> Ragged:
    """The archives of all scenes; ``held``: the index holds the scenes themselves."""
    lengths, found = [np.zeros(1, np.int64)], []
    for start in range(0, len(world.images), BLOCK):
        images = world.images[start : start + BLOCK]
        offsets = world.said.offsets[start : start + len(images) + 1]
        own = offsets - offsets[0], world.said.concepts[offsets[0] : offsets[-1]]
        anchors = np.arange(start, start + len(images)) if held else np.full(len(images), -1)
        archives = curator.curate(images, anchors, *own)
        lengths.append(np.diff(archives["offsets"]))
        found.append(archives["concepts"])
    return Ragged(np.cumsum(np.concatenate(lengths)), np.concatenate(found))


def measure(run: Run, fields: list[str]) -> dict[tuple[str, str], Quality]:
    """The quality of every arrangement of expansion and ranking."""
    world = read_world(run, fields)
    curator = open_curator(run)
    held = run.config.retrieval.data is None
    results = {}
    for expansion, method in ARRANGEMENTS:
        if expansion == "text" and not held:
            continue  # captions of this data are not rows of another run's index
        archives = curate_world(world, arrange(world, curator, expansion, method), held)
        results[expansion, method] = quality(archives, world.visible, world.said)
    return results


def print_table(results: dict[tuple[str, str], Quality], title: str, console: Console) -> None:
    """One row an arrangement; fits 80 columns."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("expansion", "ranking"):
        table.add_column(column, no_wrap=True)
    measures = [f"p@{k}" for k in CUTS] + [f"n@{k}" for k in CUTS]
    for column in ("size", "recall", "top 3", *measures):
        table.add_column(column, justify="right", no_wrap=True)
    for (expansion, method), found in results.items():
        shares = (found.recall, found.recall_top, *found.precision.values(), *found.new_precision.values())
        table.add_row(expansion, method, f"{found.concepts:.1f}", *map(_share, shares))
    console.print(table)
    console.print(
        "size: concepts per archive. recall: mean share of the visible concepts that it\n"
        "holds. top 3: that its three best and the caption hold. p@k: share of the k\n"
        "best (or all, if fewer) that is visible. n@k: the same among concepts that\n"
        "the caption does not mention, over scenes with at least k of them.",
        highlight=False,
        soft_wrap=True,
    )


def _share(value: float) -> str:
    return "-" if np.isnan(value) else "1" if value == 1 else f"{value:.3f}".lstrip("0")


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.tools.measure",
        description="Compare archives, by every expansion and ranking, with what json sidecars say is visible.",
    )
    parser.add_argument("folder", help="output folder of a finished curation")
    parser.add_argument("--fields", default="objects,stuff", help="sidecar fields that list visible concepts")
    args = parser.parse_args(arguments)

    def work() -> None:
        run = open_run(args.folder)
        results = measure(run, args.fields.split(","))
        print_table(results, f"{run.config.name}: L = {run.config.retrieval.neighbors}", Console())

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
