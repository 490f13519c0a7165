"""Copies planted in the demo world: are they found, and are archives as right as without?

``python -m experiments.duplicates FOLDER`` writes a page.

Three in ten pictures get a copy, as the web makes them: encoded again, resized, cropped or with a border, under the same
caption.
"""

from __future__ import annotations

import argparse
import io
import shlex
import sys
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageOps
from rich.console import Console

from curation.archive.members import read_members
from curation.base import images
from curation.base.errors import CocuError
from curation.base.markdown import table
from curation.base.parquet import read_columns
from curation.base.ragged import Ragged
from curation.base.terminal import run_command
from curation.index.duplicates import chosen_rows
from curation.run.indexes import read_duplicates
from curation.run.run import Run, open_run
from curation.thumbnails import SAME, SIDE, similarity
from curation.tools.quality import Quality, quality
from curation.tools.truth import read_labelled
from curation.vocabulary import read_vocabulary
from experiments.captioners import ENCODER
from pipelines import curate
from pipelines.demo.world import WorldConfig, ensure_world

KINDS = ("encoded again", "resized", "cropped", "bordered")
SHARE = 0.3  # of the pictures, that get a copy
SEED = 5
THRESHOLDS = (0.8, 0.84, 0.86, SAME, 0.9, 0.92, 0.95)
COSINES = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
MARK = "copy-"  # how keys of copies begin


def copy_of(picture: Image.Image, kind: str, rng: np.random.Generator) -> bytes:
    """A copy of a picture, as a JPEG of quality 35 to 90.

    Resized to 40 to 85% of its sides; cropped by 2 to 8% of each side; with a black or white border
    of 2 to 6%.
    """
    width, height = picture.size
    if kind == "resized":
        scale = rng.uniform(0.4, 0.85)
        sides = max(1, round(scale * width)), max(1, round(scale * height))
        picture = picture.resize(sides, Image.Resampling.BICUBIC)
    elif kind == "cropped":
        across, down = rng.uniform(0.02, 0.08, 2)
        left, top = int(rng.uniform(0, across) * width), int(rng.uniform(0, down) * height)
        picture = picture.crop((left, top, left + int((1 - across) * width), top + int((1 - down) * height)))
    elif kind == "bordered":
        grey = int(rng.choice([0, 255]))
        picture = ImageOps.expand(picture, 1 + int(rng.uniform(0.02, 0.06) * min(width, height)), (grey, grey, grey))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=int(rng.integers(35, 80)) if kind == KINDS[0] else 90)
    return stream.getvalue()


def plant(paths: Sequence[Path], folder: Path, share: float = SHARE, seed: int = SEED) -> dict[str, str]:
    """The same tars with copies of a share of their pictures among them; returns the kind of copy by the key of each.

    The copy of ``KEY`` is ``copy-KEY`` and lies in any of the tars, behind what was there.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    added: list[list[tuple[str, Mapping[str, bytes]]]] = [[] for _ in paths]
    kinds: dict[str, str] = {}
    for path in paths:
        with open(path, "rb") as stream:
            for key, fields in read_members(stream):
                if rng.random() >= share:
                    continue
                kind = KINDS[rng.integers(len(KINDS))]
                picture = images.decode(fields["jpg"])  # type: ignore[arg-type]  # all members are read
                held = {name: bytes(content) for name, content in fields.items()}  # type: ignore[arg-type]
                kinds[MARK + key] = kind
                added[rng.integers(len(paths))].append((MARK + key, held | {"jpg": copy_of(picture, kind, rng)}))

    for path, samples in zip(paths, added, strict=True):
        target = folder / path.name
        target.write_bytes(path.read_bytes())
        with tarfile.open(target, "a") as tar:
            for key, contents in samples:
                for extension, content in contents.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return kinds


def write_config(path: Path, shards: str, concepts: Path) -> Path:
    """The configuration of a run over tars of the demo world."""
    values = {
        "name": "duplicates",
        "shards": shards,
        "image": "jpg",
        "encoder": ENCODER,
        "vocabulary": {"source": str(concepts.absolute())},
    }
    path.write_text(yaml.safe_dump(values))
    return path


# --- how well they are found --------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Pairs of images that were taken for copies, against those that were planted."""

    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        return 2 * self.precision * self.recall / max(self.precision + self.recall, 1e-9)


def keys_of(run: Run) -> list[str]:
    """The keys of all images, in the order of the index."""
    return [key for path in run.of_shards("embeddings") for key in read_columns(path, {"key": None})["key"].to_pylist()]


def found_groups(run: Run) -> Found:
    """Precision and recall of the pairs that lie in one group of a run."""
    duplicates = read_duplicates(run)
    assert duplicates is not None
    keys = keys_of(run)
    originals = {key: number for number, key in enumerate(keys)}
    owners = np.array([originals[key.removeprefix(MARK)] for key in keys])
    chosen = chosen_rows(duplicates, len(keys))
    both = (_pairs(owners * len(keys) + chosen), _pairs(chosen), _pairs(owners))
    return Found(both[0] / max(both[1], 1), both[0] / max(both[2], 1))


def _pairs(groups: np.ndarray) -> int:
    """Pairs of rows (N,) of one group."""
    sizes = np.unique(groups, return_counts=True)[1]
    return int((sizes * (sizes - 1) // 2).sum())


def recall_by_kind(run: Run, kinds: Mapping[str, str]) -> dict[str, float]:
    """The share of the copies of each kind that are in a group with their original."""
    duplicates = read_duplicates(run)
    assert duplicates is not None
    keys = keys_of(run)
    chosen = dict(zip(keys, chosen_rows(duplicates, len(keys)).tolist(), strict=True))
    hits: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    for key, kind in kinds.items():
        hits[kind].append(chosen[key] == chosen[key.removeprefix(MARK)])
    return {kind: float(np.mean(values)) for kind, values in hits.items()}


def by_threshold(run: Run) -> Iterator[tuple[str, float, Found]]:
    """Precision and recall of neighbours that are taken for copies, by either measure alone, at some thresholds."""
    graph = np.load(run.graph)
    keys = keys_of(run)
    originals = [key.removeprefix(MARK) for key in keys]
    _, owners = np.unique(originals, return_inverse=True)
    row, column = np.nonzero(graph["ids"] > np.arange(len(graph))[:, None])
    other, cosine = graph["ids"][row, column], graph["cosines"][row, column]
    content = b"".join(
        value
        for path in run.of_shards("thumbnails")
        for value in read_columns(path, {"thumbnail": None})["thumbnail"].to_pylist()
    )
    pixels = np.frombuffer(content, np.uint8).reshape(-1, SIDE, SIDE)
    alike, is_copy, planted = similarity(pixels[row], pixels[other]), owners[row] == owners[other], _pairs(owners)
    for measure, values, thresholds in (("cosine", cosine, COSINES), ("similarity", alike, THRESHOLDS)):
        for threshold in thresholds:
            taken = values >= threshold
            yield measure, threshold, Found(is_copy[taken].mean(), is_copy[taken].sum() / planted)


def originals_quality(run: Run) -> Quality:
    """How right the archives of the images that are no planted copies are."""
    data = read_labelled(run, ["objects", "stuff"])
    ids = {concept: number for number, concept in enumerate(read_vocabulary(run.vocabulary).concepts)}
    archives = [
        [ids[entry["concept"]] for entry in archive]
        for path in run.of_shards("archives")
        for archive in read_columns(path, {"concepts": None})["concepts"].to_pylist()
    ]
    chosen = np.array([row for row, key in enumerate(keys_of(run)) if not key.startswith(MARK)])
    places = np.searchsorted(data.rows, chosen)
    lists = Ragged.from_lists([archives[row] for row in chosen])
    return quality(lists, data.visible.take(places), data.mentioned.take(places))


# --- the page -----------------------------------------------------------------------------------------------------------


def page(runs: Mapping[str, Run], kinds: Mapping[str, str], command: str) -> str:
    """The page, in Markdown."""
    planted = runs["30% copies, `once`"]
    groups = found_groups(planted)
    of_kinds = recall_by_kind(planted, kinds)
    parts = [
        "# Copies of pictures",
        f"Written by `{command}`. {len(keys_of(planted)) - len(kinds):,} scenes of the demo world and {len(kinds):,} "
        "copies of them: encoded again as JPEG of quality 35 to 80, resized to 40 to 85% of their sides, cropped "
        "by 2 to 8%, or with a border of 2 to 6%. Neighbours of a cosine of at least 0.75 are taken for copies where their "
        "grey thumbnails of 32 x 32 pixels are alike: the structural similarity (Wang et al., 2004) of one to the best "
        f"crop of the other is at least {SAME}.",
        f"Pairs in one group: precision {groups.precision:.3f}, recall {groups.recall:.3f}, **F1 {groups.f1:.3f}**.",
        table(["copies", "found"], [[kind, f"{share:.3f}"] for kind, share in of_kinds.items()]),
        "## By threshold",
        "Pairs of neighbours that one measure alone takes for copies. No cosine will do: a bordered copy is farther from "
        "its original, for this encoder, than two scenes of one kind are from each other.",
        table(
            ["measure", "at least", "precision", "recall", "F1"],
            [
                [name, f"{least:g}", *(f"{share:.3f}" for share in (*values, values.f1))]
                for name, least, values in by_threshold(planted)
            ],
        ),
        "## What copies do to archives",
        "Archives of the pictures that are no copies, against what is visible (L = 8).",
        table(
            ["world", "concepts", "recall", "precision at 1", "at 3", "at 5"],
            [
                [
                    name,
                    f"{q.concepts:.2f}",
                    *(f"{share:.3f}" for share in (q.recall, *(q.precision[k] for k in (1, 3, 5)))),
                ]
                for name, q in ((name, originals_quality(run)) for name, run in runs.items())
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.duplicates",
        description="Plant copies in the demo world, find them, and compare archives with those of the world without.",
    )
    parser.add_argument("folder", type=Path, help="folder for the worlds and the archives")
    parser.add_argument("--scenes", type=int, default=2000, help="scenes to draw (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/duplicates.md"), help="the page")
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)

    def work() -> None:
        world = args.folder / "world"
        ensure_world(str(world), WorldConfig(shards=2, scenes=-(-args.scenes // 2), validation=1), processes=1)
        kinds = plant(sorted((world / "train").glob("*.tar")), args.folder / "planted")
        clean = write_config(args.folder / "clean.yaml", "world/train/*.tar", world / "concepts.txt")
        planted = write_config(args.folder / "planted.yaml", "planted/*.tar", world / "concepts.txt")
        runs = {}
        for name, data, duplicates in (
            ("no copies, `keep`", clean, "keep"),
            ("no copies, `once`", clean, "once"),
            ("30% copies, `keep`", planted, "keep"),
            ("30% copies, `once`", planted, "once"),
        ):
            output = str(args.folder / f"{data.stem}-{duplicates}")
            options = ["--output", output, "--runner", "inprocess", "--retrieval.duplicates", duplicates]
            if curate.main(["--data", str(data), *options]):
                raise CocuError(f"{output}: curation failed; the line above says why")
            runs[name] = open_run(output)
        text = page(runs, kinds, f"python -m experiments.duplicates {shlex.join(words)}")
        args.page.write_text(text, encoding="utf-8")
        Console(highlight=False, soft_wrap=True).print(f"Written: {args.page}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
