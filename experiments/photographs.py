"""``python -m experiments.photographs FOLDER``: what archives hold on photographs, as a page of figures and tables.

FOLDER has ``flickr8k_1000_clip_retrieval/`` (image embeddings and one caption each, as clip-retrieval writes them),
``clip_vitb32_text_names.npz`` (``names`` and their text embeddings ``emb``) and ``flickr8k_1000_keys_captions.json`` (five
captions of each image, the truth). Only numbers and names of concepts go onto the page: no photograph and no caption.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from rich.console import Console

from curation.archive.sampling import Sampler, seeds
from curation.base.markdown import table
from curation.base.parquet import write_table
from curation.base.ragged import Ragged, is_in
from curation.base.terminal import run_command
from curation.run.curator import Archives
from curation.run.run import Run, open_run
from curation.tools.commands.measure import FREQUENT
from curation.tools.measure import Pair, curate_all, curator_by, measure, most_frequent
from curation.tools.quality import LabelledData, Quality, by_image, means
from curation.tools.truth import read_labelled, read_labelled_by
from curation.vocabulary import read_vocabulary
from experiments.commands import run_module
from experiments.rankings import FINDINGS, ranking_table

IMAGES, NAMES = "flickr8k_1000_clip_retrieval", "clip_vitb32_text_names.npz"
TRUTH = "flickr8k_1000_keys_captions.json"
MIN_COUNT = 2  # captions
NEIGHBOURS = (4, 8, 16, 32)
LEAST_SUPPORT = (1, 2, 3, 4)
TEMPERATURES = (0.02, 0.05, 0.1, 0.3, 1.0, 3.0)
EPOCHS = 10
# An independent run's recall, precision at 1 and 3, and precision of new concepts at 1 and 3.
INDEPENDENT = {
    ("caption", "cocu"): (0.553, 1, 1),
    ("vision", "cocu"): (0.740, 0.702, 0.506, 0.231, 0.165),
    ("vision", "similarity"): (0.740, 0.650, 0.474, 0.208, 0.152),
    ("vision", "support"): (0.740, 0.798, 0.500, 0.244, 0.154),
    ("vision", "calibrated"): (0.740, 0.662, 0.485, 0.232, 0.157),
    ("tagging", "similarity"): (0.410, 0.319, 0.220, 0.114, 0.081),
}


# --- the run --------------------------------------------------------------------------------------------------------------


def curate(folder: Path, output: Path) -> Run:
    """Curate the photographs into ``output/archives`` without an encoder: both kinds of embeddings are given."""
    output.mkdir(parents=True, exist_ok=True)
    with np.load(folder / NAMES) as arrays:
        names, embeddings = arrays["names"].tolist(), arrays["emb"].astype(np.float32)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
    write_table(str(output / "names.parquet"), pa.table({"concept": names, "embedding": vectors}), {})
    settings = {
        "name": "photographs",
        "embeddings": str((folder / IMAGES).resolve()),
        "vocabulary": {"source": "names.parquet", "min_count": MIN_COUNT},
        "retrieval": {"neighbors": 8},
    }
    (output / "photographs.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    options = [
        "--data",
        str(output / "photographs.yaml"),
        "--output",
        str(output / "archives"),
        "--runner",
        "inprocess",
    ]
    run_module("pipelines.curate", options, output / "curate.log")
    return open_run(str(output / "archives"))


def with_neighbours(run: Run, count: int) -> Run:
    """The same run with another L."""
    return replace(run, config=replace(run.config, retrieval=replace(run.config.retrieval, neighbors=count)))


def archives_of(run: Run, data: LabelledData, ranking: str = "cocu", clusters: bool = False) -> Archives:
    """The archives of all images by vision-driven expansion."""
    curator = curator_by(run, "vision", ranking)
    config = replace(curator.config, archive=replace(curator.config.archive, clusters=clusters))
    return replace(curator, config=config).curate(data.images, data.rows, data.mentioned)


# --- the tables -----------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """A number as tables have it; a dash where there is none."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}".lstrip("0") if 0 < value < 1 else f"{value:.{digits}f}"


def measured(value: float, error: float) -> str:
    """A share and its standard error."""
    return "-" if np.isnan(value) else number(value) + (f" ± {number(error)}" if error > 0 else "")


def quality_table(results: dict[Pair, Quality]) -> str:
    """One line an arm."""
    header = ["expansion", "ranking", "concepts", "recall", "recall of top 3 + caption"]
    rows = []
    for (expansion, ranking), result in results.items():
        error = result.error or result
        cells = [(result.recall, error.recall), (result.recall_top, error.recall_top)]
        cells += [(result.precision[k], error.precision[k]) for k in (1, 3)]
        cells += [(result.new_precision[k], error.new_precision[k]) for k in (1, 3)]
        rows.append([expansion, ranking, f"{result.concepts:.1f}", *(measured(*cell) for cell in cells)])
    return table([*header, "precision at 1", "at 3", "of new ones, at 1", "at 3"], rows)


def agreement_table(archives: dict[Pair, Ragged], data: LabelledData) -> str:
    """Our figures beside those of the independent run, as it counts: recall 0 for an image with nothing to find."""
    rows = []
    for pair, theirs in INDEPENDENT.items():
        values = by_image(archives[pair], data.visible, data.mentioned)
        result = Quality.of(means(values))
        recall = float(np.nan_to_num(values[:, 1]).mean())
        ours = [recall, *(result.precision[k] for k in (1, 3)), *(result.new_precision[k] for k in (1, 3))]
        rows.append([*pair, " / ".join(map(number, ours[: len(theirs)])), " / ".join(map(number, theirs))])
    return table(["expansion", "ranking", "here: recall, p@1, p@3, n@1, n@3", "independent run"], rows)


def neighbour_rows(run: Run, data: LabelledData) -> Iterator[list[str]]:
    """Archives of every L, all of them and without the most frequent concepts."""
    frequent = most_frequent(run, FREQUENT).tolist()
    for count in NEIGHBOURS:
        for ranking in ("cocu", "supported"):
            archives = {("vision", ranking): archives_of(with_neighbours(run, count), data, ranking).concepts}
            (every,), (rest,) = measure(archives, data).values(), measure(archives, data, frequent).values()
            cells = [str(count), ranking, f"{every.concepts:.1f}", number(every.recall)]
            for result in (every, rest):
                error = result.error or result
                cells += [measured(result.new_precision[k], error.new_precision[k]) for k in (1, 3)]
            yield cells


def support_rows(run: Run, data: LabelledData) -> Iterator[list[str]]:
    """What is left of archives by how many captions mention a concept: shares of all entries, not means over images."""
    for count in (8, 16):
        archives = archives_of(with_neighbours(run, count), data)
        for least in LEAST_SUPPORT:
            kept = archives.concepts.where(archives.support >= least)
            right, new = is_in(kept, data.visible), ~is_in(kept, data.mentioned)
            recall = np.nanmean(by_image(kept, data.visible, data.mentioned)[:, 1])
            share = len(kept.values) / len(archives.concepts.values)
            cells = [share, recall, right.mean(), right[new].mean()]
            yield [str(count), str(least), f"{len(kept.values) / len(kept):.1f}", *map(number, map(float, cells))]


def temperature_rows(run: Run, data: LabelledData, keys: list[str]) -> Iterator[list[str]]:
    """What training would draw from the archives over some epochs, M = 3 at a time."""
    archives = archives_of(run, data, clusters=True)
    right, new = is_in(archives.concepts, data.visible), ~is_in(archives.concepts, data.mentioned)
    scores = archives.concepts.with_values(archives.score)
    for kind, temperature in (*(("cluster", one) for one in TEMPERATURES), ("top", 1.0)):
        sampler = Sampler(kind=kind, temperature=temperature)
        drawn = [sampler.draw(seeds(keys, 0, epoch), scores, archives.cluster) for epoch in range(EPOCHS)]
        entries = np.concatenate(drawn).reshape(-1)
        entries = entries[entries >= 0]
        cells = [right[entries].mean(), new[entries].mean(), right[entries[new[entries]]].mean()]
        distinct = len(np.unique(entries)) / len(keys)
        tau = "-" if kind == "top" else str(temperature)
        yield [kind, tau, *map(number, map(float, cells)), f"{distinct:.1f}"]


# --- the page -------------------------------------------------------------------------------------------------------------


def page(run: Run, data: LabelledData, keys: list[str], drawn: Run | None, command: str) -> str:
    """The page as Markdown."""
    archives = curate_all(run, data)
    frequent = most_frequent(run, FREQUENT)
    names = read_vocabulary(run.vocabulary).concepts
    said, seen = data.mentioned.lengths.mean(), data.visible.lengths.mean()
    empty = int((data.visible.lengths == 0).sum())
    parts = [
        "# What archives hold on photographs",
        f"Written by `{command}`. Numbers only: the photographs and captions are not part of this project.",
        f"{len(data.images):,} photographs of Flickr8k as embeddings of OpenAI's CLIP ViT-B/32, with one caption each; "
        f"{len(names)} concepts: those of 1,584 names of four data sets that {MIN_COUNT} captions or more mention, with "
        "text embeddings of the same model. No encoder was run. The truth is what any of five captions of a photograph "
        f"mentions: {said:.2f} concepts are said by the one, {seen:.2f} by the five. People leave out much that is "
        "visible, so that precision is a lower bound. ± is a standard error, by bootstrap over photographs.",
        "## Every expansion and ranking",
        f"L = {run.config.retrieval.neighbors}. Text-driven expansion is missing: nobody gave embeddings of the captions.",
        quality_table(measure(archives, data)),
        "Retrieval finds much more than tagging once the vocabulary is open and the encoder is a real one: the opposite of "
        "the drawn worlds, whose small CLIPs were trained on just their vocabulary.",
        f"Without the {FREQUENT} most frequent concepts ({', '.join(names[row] for row in frequent)}), which can be named "
        "for any photograph with some success:",
        quality_table(measure(archives, data, frequent.tolist())),
        "## An independent run",
        "An implementation of its own, by another hand, on the same files. Recall is counted as it does it: an image of "
        f"which the truth names nothing ({empty} of them) counts as 0, where all other tables leave it out.",
        agreement_table(archives, data),
        "## Neighbours",
        "Vision-driven expansion. Recall is of all concepts.",
        table(
            ["L", "ranking", "concepts", "recall", "new ones, at 1", "at 3", f"without {FREQUENT}: at 1", "at 3"],
            neighbour_rows(run, data),
        ),
        "## Support",
        "Archives that keep only concepts that at least so many retrieved captions mention (the photograph's own "
        "included). Precision here is of all entries of all archives. The archive has the column `support`, so that "
        "training code can filter by it.",
        table(
            ["L", "least support", "concepts", "share of entries", "recall", "precision", "of new ones"],
            support_rows(run, data),
        ),
        "## Temperature",
        f"What training draws from archives of L = {run.config.retrieval.neighbors} in {EPOCHS} epochs, three concepts at "
        "a time: how much of it is visible, how much is new (not in the caption), how much of the new is visible, and how "
        "many different concepts a photograph gets. Scores lie close together, so that τ = 1 is nearly a uniform draw.",
        table(
            ["sampler", "τ", "visible", "new", "of new ones visible", "different concepts"],
            temperature_rows(run, data, keys),
        ),
        *ranking_table("photographs", run, data),
    ]
    if drawn is not None:
        parts += ranking_table("drawn", drawn, read_labelled(drawn, ["objects", "stuff"]))
        parts += FINDINGS
    return "\n\n".join(parts) + "\n"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.photographs",
        description="Measure archives of photographs, and write the page of it.",
    )
    parser.add_argument("folder", type=Path, help=f"folder with {IMAGES}/, {NAMES} and {TRUTH}")
    parser.add_argument("--drawn", type=Path, help="output folder of a finished run whose json sidecars have the truth")
    parser.add_argument("--output", type=Path, default=Path("artifacts/photographs"), help="where the archives go")
    parser.add_argument("--page", type=Path, default=Path("docs/photographs.md"), help="the page")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)

    def work() -> None:
        run = curate(args.folder, args.output)
        data = read_labelled_by(run, str(args.folder / TRUTH))
        drawn = open_run(str(args.drawn)) if args.drawn else None
        keys = [str(row) for row in data.rows]
        text = page(run, data, keys, drawn, f"python -m experiments.photographs {shlex.join(words)}")
        args.page.parent.mkdir(parents=True, exist_ok=True)
        args.page.write_text(text, encoding="utf-8")
        Console(highlight=False, soft_wrap=True).print(f"Written: {args.page}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
