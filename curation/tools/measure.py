"""``python -m curation.tools.measure OUT``: do archives find what captions omit?

For data whose json sidecars say what is visible (``objects``, ``stuff``), every expansion and ranking is compared with the
truth, in one table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from rich.console import Console

from curation import encoder
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import open_parquet
from curation.base.ragged import Ragged, is_in
from curation.base.terminal import add_remote_option, plain_table, run_command
from curation.concepts import concept_key
from curation.expansion import EXPANSIONS
from curation.index.build import exact_index
from curation.index.open import searchable
from curation.mentions import open_mentions
from curation.ranking import RANKINGS
from curation.run.curator import Curator, read_calibration
from curation.run.indexes import check_retrieved, open_searched
from curation.run.run import Run, open_run, tar_of
from curation.samples import read_sidecars
from curation.vocabulary import read_vocabulary

BLOCK = 4096
CUTS = (1, 2, 3, 5)


class NoTruthError(CocuError):
    """Data whose sidecars do not say what is visible."""


@dataclass(frozen=True)
class LabelledData:
    """A curated data set with its truth: N images."""

    images: np.ndarray  # (N, D) float32, unit rows
    captions: list[str]
    mentioned: Ragged  # N lists of concept ids: what the captions mention
    visible: Ragged  # what the sidecars name; concepts outside the vocabulary have ids of their own


@dataclass(frozen=True)
class Quality:
    """How well archives agree with the truth; shares from 0 to 1."""

    concepts: float  # per archive
    recall: float  # of the visible concepts, mean over images
    recall_top: float  # of the three best concepts and the caption together
    precision: dict[int, float]  # of the k best (or all, if fewer), over images with a non-empty archive
    new_precision: dict[int, float]  # of the k best that the caption does not mention, over images that have k of them


def comparisons() -> list[tuple[str, str]]:
    """Every (expansion, ranking) of the table: each expansion by its own ranking, the first one by all the others too."""
    first = next(iter(EXPANSIONS))
    pairs = []
    for name, method in EXPANSIONS.items():
        pairs.append((name, method.ranking))
        if name == first:
            pairs += [(name, ranking) for ranking in RANKINGS if ranking != method.ranking]
    return pairs


def quality(archives: Ragged, visible: Ragged, mentioned: Ragged) -> Quality:
    """Compare archives, in descending score, with what is visible and what captions mention, for the same N images."""
    images, sizes = len(archives), archives.lengths
    width = int(max(lists.values.max(initial=0) for lists in (archives, visible, mentioned))) + 1
    truth = visible.pairs(width)
    pairs = archives.pairs(width)
    is_right = is_in(archives, visible)
    is_new = ~is_in(archives, mentioned)
    positions = archives.positions
    new = archives.where(is_new)
    new_positions = np.full(len(pairs), len(pairs))  # among the new ones of the archive
    new_positions[is_new] = new.positions

    def recall(concepts: np.ndarray) -> float:
        distinct = np.unique(concepts)
        hits = np.bincount(distinct[np.isin(distinct, truth)] // width, minlength=images)
        return float(np.mean(hits / np.maximum(visible.lengths, 1)))

    def share(chosen: np.ndarray, of: np.ndarray, where: np.ndarray) -> float:
        hits = np.bincount(archives.owners[chosen & is_right], minlength=images)
        return float(np.mean(hits[where] / of[where])) if where.any() else float("nan")

    return Quality(
        concepts=float(sizes.mean()),
        recall=recall(pairs),
        recall_top=recall(np.concatenate([pairs[positions < 3], mentioned.pairs(width)])),
        precision={k: share(positions < k, np.minimum(sizes, k), sizes > 0) for k in CUTS},
        new_precision={k: share(new_positions < k, np.full(images, k), new.lengths >= k) for k in CUTS},
    )


def read_labelled(run: Run, fields: list[str]) -> LabelledData:
    """Embeddings, captions and truth of a finished run. Raises NoTruthError where the sidecars lack the fields."""
    if run.config.embeddings:
        raise NoTruthError("measure: the run was made from imported embeddings, which have no json sidecars")
    tables = []
    for path in run.of_shards("embeddings"):
        with open_parquet(path) as file:
            tables.append(file.read())
    table = pa.concat_tables(tables).combine_chunks()

    with open_parquet(run.vocabulary) as file:
        names = file.read(["concept"])["concept"].to_pylist()
    ids = {concept_key(name): number for number, name in enumerate(names)}
    visible: list[list[int]] = []
    for shard, rows in zip(run.shards, tables, strict=True):
        of_key = {
            key: sorted({ids.setdefault(concept_key(name), len(ids)) for name in names})
            for key, names in _truth(tar_of(run, shard), fields)
        }
        missing = next((key for key in rows["key"].to_pylist() if key not in of_key), None)
        if missing is not None:
            raise NoTruthError(f"{shard.path}: key {missing} has no json sidecar with {' or '.join(fields)}")
        visible += [of_key[key] for key in rows["key"].to_pylist()]

    mentioned = Ragged.from_arrow(table["concepts"].chunk(0))
    images = embedding_matrix(table["embedding"])
    return LabelledData(images, table["caption"].to_pylist(), mentioned, Ragged.from_lists(visible))


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


def curator_by(run: Run, data: LabelledData, expansion: str, ranking: str) -> Curator:
    """The run's curator with another expansion and ranking. Indexes that the run did not make are made in memory."""
    archive = replace(run.config.archive, expansion=expansion, ranking=ranking, clusters=False)
    changed = replace(run, config=replace(run.config, archive=archive))
    retrieves = EXPANSIONS[expansion].retrieves
    index = None
    if retrieves == "image":
        index = open_searched(changed)
    elif retrieves == "text":
        captions = encoder.load(run.config.encoder).encode_texts(data.captions)
        index = searchable(exact_index(captions))
    return Curator(
        changed.config, read_vocabulary(run.vocabulary), open_mentions(run.mentions), read_calibration(run), index
    )


def curate(data: LabelledData, curator: Curator, is_indexed: bool) -> Ragged:
    """The archives of all images, N lists of concept ids; ``is_indexed``: the index holds these images."""
    archives = []
    for start in range(0, len(data.images), BLOCK):
        images = data.images[start : start + BLOCK]
        stop = start + len(images)
        rows = np.arange(start, stop) if is_indexed else np.full(len(images), -1)
        archives.append(curator.curate(images, rows, data.mentioned.slice(start, stop)).concepts)
    return Ragged.concatenate(archives)


def measure(run: Run, fields: list[str]) -> dict[tuple[str, str], Quality]:
    """The quality of every expansion and ranking that :func:`comparisons` names."""
    check_retrieved(run)
    data = read_labelled(run, fields)
    is_indexed = run.config.retrieval.data is None
    results = {}
    for expansion, ranking in comparisons():
        if EXPANSIONS[expansion].retrieves == "text" and not is_indexed:
            continue  # captions of this data are not rows of another run's index
        archives = curate(data, curator_by(run, data, expansion, ranking), is_indexed)
        results[expansion, ranking] = quality(archives, data.visible, data.mentioned)
    return results


def print_table(results: dict[tuple[str, str], Quality], title: str, console: Console) -> None:
    """One row for each expansion and ranking; fits 80 columns."""
    measures = [f"p@{k}" for k in CUTS] + [f"n@{k}" for k in CUTS]
    table = plain_table(
        ["expansion", "ranking", "size", "recall", "top 3", *measures], left=("expansion", "ranking"), title=title
    )
    for (expansion, ranking), result in results.items():
        shares = (result.recall, result.recall_top, *result.precision.values(), *result.new_precision.values())
        table.add_row(expansion, ranking, f"{result.concepts:.1f}", *map(_share, shares))
    console.print(table)
    console.print(
        "size: concepts per archive. recall: mean share of the visible concepts that it\n"
        "holds. top 3: that its three best and the caption hold. p@k: share of the k\n"
        "best (or all, if fewer) that is visible. n@k: the same among concepts that\n"
        "the caption does not mention, over images with at least k of them.",
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
    parser.add_argument("folder", help="output folder of a finished run")
    parser.add_argument("--fields", default="objects,stuff", help="sidecar fields that list visible concepts")
    add_remote_option(parser)
    args = parser.parse_args(arguments)

    def work() -> None:
        run = open_run(args.folder, args.allow_remote)
        results = measure(run, args.fields.split(","))
        print_table(results, f"{run.config.name}: L = {run.config.retrieval.neighbors}", Console())

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
