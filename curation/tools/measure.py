"""``cocu measure OUT``: do archives find what captions omit?

Every expansion and ranking is compared with what is visible, in one table: for data whose json sidecars say it
(``objects``, ``stuff``), or by a file that has concepts or captions by key. A second table leaves out the most frequent
concepts, which are right so often that naming them always looks like understanding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console

from curation.base import files
from curation.base.errors import listed
from curation.base.parquet import open_parquet
from curation.base.ragged import Ragged
from curation.base.terminal import plain_table, printable
from curation.expansion import EXPANSIONS
from curation.index.build import exact_index
from curation.index.open import searchable
from curation.mentions import open_mentions
from curation.ranking import RANKINGS
from curation.run.captions import caption_column
from curation.run.curator import Curator, read_calibration
from curation.run.indexes import check_retrieved, open_representatives, open_searched
from curation.run.run import Run
from curation.run.texts import caption_part, embed_captions, gives_captions
from curation.tools.commands.measure import main
from curation.tools.quality import CUTS, LabelledData, Quality, quality, without
from curation.tools.truth import read_labelled, read_labelled_by
from curation.vocabulary import read_vocabulary

BLOCK = 4096

Pair = tuple[str, str]  # an expansion and a ranking


def comparisons() -> list[tuple[str, str]]:
    """Every (expansion, ranking) of the table: each expansion by its own ranking, the first one by all the others too."""
    first = next(iter(EXPANSIONS))
    pairs = []
    for name, method in EXPANSIONS.items():
        pairs.append((name, method.ranking))
        if name == first:
            pairs += [(name, ranking) for ranking in RANKINGS if ranking != method.ranking]
    return pairs


def curator_by(run: Run, expansion: str, ranking: str) -> Curator:
    """The run's curator with another expansion and ranking. Indexes that the run did not make are made in memory."""
    archive = replace(run.config.archive, expansion=expansion, ranking=ranking, clusters=False)
    changed = replace(run, config=replace(run.config, archive=archive))
    retrieves = EXPANSIONS[expansion].retrieves
    index = None
    if retrieves == "image":
        index = open_searched(changed)
    elif retrieves == "text":
        index = searchable(exact_index(_caption_embeddings(changed)))
    return Curator(
        changed.config,
        read_vocabulary(run.vocabulary),
        open_mentions(run.mentions),
        read_calibration(run),
        index,
        representatives=open_representatives(run),
    )


def _caption_embeddings(run: Run) -> np.ndarray:
    """Embeddings (N, D) of all captions of a run, in its order: the encoder's, or those that came with an import."""
    parts = []
    for shard in run.shards:
        with open_parquet(run.of_shard("embeddings", shard)) as file:
            table = file.read(["key", caption_column(run.config)])
        parts.append(embed_captions(run, shard, table))
    return np.concatenate(parts)


def curate(data: LabelledData, curator: Curator, is_indexed: bool) -> Ragged:
    """The archives of all images, N lists of concept ids; ``is_indexed``: the index holds these images."""
    archives = []
    for start in range(0, len(data.images), BLOCK):
        images = data.images[start : start + BLOCK]
        stop = start + len(images)
        rows = data.rows[start:stop] if is_indexed else np.full(len(images), -1)
        archives.append(curator.curate(images, rows, data.mentioned.slice(start, stop)).concepts)
    return Ragged.concatenate(archives)


def curate_all(run: Run, data: LabelledData) -> dict[Pair, Ragged]:
    """The archives by every expansion and ranking that :func:`comparisons` names and this run can make."""
    check_retrieved(run)
    is_indexed = run.config.retrieval.data is None
    archives = {}
    for expansion, ranking in comparisons():
        if EXPANSIONS[expansion].retrieves == "text" and not _can_embed_captions(run):
            continue
        archives[expansion, ranking] = curate(data, curator_by(run, expansion, ranking), is_indexed)
    return archives


def _can_embed_captions(run: Run) -> bool:
    """Whether captions can be retrieved: where those of the data are the rows of the index, and something embeds them."""
    if run.config.retrieval.data is not None:
        return False
    if gives_captions(run.config) and run.config.captions:
        return False  # the import has embeddings of one caption an image
    return not gives_captions(run.config) or all(files.exists(caption_part(run, shard)) for shard in run.shards)


def measure(archives: dict[Pair, Ragged], data: LabelledData, left_out: Sequence[int] = ()) -> dict[Pair, Quality]:
    """The quality of archives, with standard errors; ``left_out``: concepts that count neither as found nor as missed."""
    ignored = np.asarray(left_out, np.int64)

    def counted(lists: Ragged) -> Ragged:
        of_truth = lists if data.judged is None else lists.where(np.isin(lists.values, data.judged))
        return without(of_truth, ignored)

    visible, mentioned = counted(data.visible), counted(data.mentioned)
    return {pair: quality(counted(concepts), visible, mentioned) for pair, concepts in archives.items()}


def most_frequent(run: Run, count: int) -> np.ndarray:
    """The ids of the concepts that most captions mention, the most frequent first; ties by id."""
    return np.argsort(-read_vocabulary(run.vocabulary).counts, kind="stable")[:count]


# --- printing -----------------------------------------------------------------------------------------------------------


def print_table(results: dict[Pair, Quality], title: str, console: Console) -> None:
    """One row for each expansion and ranking, and one with its standard errors; fits 80 columns."""
    measures = [f"p@{k}" for k in CUTS] + [f"n@{k}" for k in CUTS]
    table = plain_table(
        ["expansion", "ranking", "size", "recall", "top 3", *measures], left=("expansion", "ranking"), title=title
    )
    for (expansion, ranking), result in results.items():
        table.add_row(expansion, ranking, f"{result.concepts:.1f}", *map(_share, _shares(result)))
        if result.error:
            table.add_row("", " ±", "", *map(_share, _shares(result.error)), style="dim")
    console.print(table)


def print_legend(console: Console) -> None:
    """What the columns of the tables mean."""
    console.print(
        "size: concepts per archive. recall: mean share of the visible concepts that it\n"
        "holds. top 3: that its three best and the caption hold. p@k: share of the k\n"
        "best (or all, if fewer) that is visible. n@k: the same among concepts that\n"
        "the caption does not mention, over images with at least k of them.\n"
        "±: standard errors, by bootstrap over images.",
        highlight=False,
        soft_wrap=True,
    )


def _shares(result: Quality) -> tuple[float, ...]:
    return result.recall, result.recall_top, *result.precision.values(), *result.new_precision.values()


def _share(value: float) -> str:
    return "-" if np.isnan(value) else "1" if value == 1 else f"{value:.3f}".lstrip("0")


def report(run: Run, args: argparse.Namespace, console: Console) -> None:
    """Measure a run and print the tables."""
    data = read_labelled_by(run, args.truth) if args.truth else read_labelled(run, args.fields.split(","))
    archives = curate_all(run, data)
    title = f"{run.config.name}: L = {run.config.retrieval.neighbors}, {len(data.images):,} images"
    print_table(measure(archives, data), title, console)

    names = read_vocabulary(run.vocabulary).concepts
    if 0 < args.without < len(names):
        frequent = most_frequent(run, args.without)
        title = f"without the {len(frequent)} most frequent: {listed([printable(names[row]) for row in frequent], 10)}"
        print_table(measure(archives, data, frequent.tolist()), title, console)
    elif args.without > 0:
        console.print(
            f"Not without the {args.without} most frequent concepts: there are {len(names)}.", highlight=False
        )
    print_legend(console)


if __name__ == "__main__":
    sys.exit(main())
