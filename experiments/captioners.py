"""Two captioners side by side: how right is what each names? ``python -m experiments.captioners FOLDER`` writes a page.

The scenes are those of the demo world, whose captions (``txt``) name little and nothing wrong. A second captioner names
more and errs, as models do; it is written into the json sidecars as ``model``. Archives are made from either and from both.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from rich.console import Console

from curation.archive.members import read_members
from curation.base.errors import CocuError
from curation.base.markdown import table
from curation.base.parquet import read_columns
from curation.base.ragged import Ragged, is_in
from curation.base.terminal import run_command
from curation.run.run import Run, open_run
from curation.tools.quality import LabelledData, quality
from curation.tools.truth import read_labelled
from curation.vocabulary import read_vocabulary
from pipelines import curate
from pipelines.demo.captions import indefinite
from pipelines.demo.scene import CLASSES
from pipelines.demo.world import WorldConfig, ensure_world

PEOPLE, MODEL = "txt", "json:model"
RUNS = ([PEOPLE], [MODEL], [PEOPLE, MODEL])
MOST = 4  # things that the model names
ERRS = 0.3  # chance that a thing it names is another one than it saw
SEED = 11
ENCODER = {"model": "local-dir:package:pipelines/demo/clip", "precision": "fp32"}


def model_caption(rng: np.random.Generator, visible: Sequence[str]) -> str:
    """A caption of two to MOST of what is visible, each with a chance of ERRS taken for anything else."""
    count = min(int(rng.integers(2, MOST + 1)), len(visible))
    names = [visible[i] for i in rng.permutation(len(visible))[:count]]
    seen = [CLASSES[rng.integers(len(CLASSES))] if rng.random() < ERRS else name for name in names]
    return "an image with " + " and ".join(indefinite(name) for name in dict.fromkeys(seen))


def add_model(path: Path, target: Path, seed: int) -> None:
    """A tar of the demo world again, with the model's caption in each json sidecar."""
    rng = np.random.default_rng([SEED, seed])
    with open(path, "rb") as stream, tarfile.open(target, "w") as tar:
        for key, fields in read_members(stream):
            sidecar = json.loads(fields["json"])  # type: ignore[arg-type]  # all members are read
            sidecar["model"] = model_caption(rng, [*sidecar["objects"], *sidecar["stuff"]])
            for extension, content in (fields | {"json": json.dumps(sidecar).encode()}).items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))  # type: ignore[arg-type]


def make(folder: Path, config: WorldConfig) -> Path:
    """The world with both captioners; returns the configuration of a run over it."""
    world = folder / "world"
    ensure_world(str(world), config, processes=1)
    (folder / "train").mkdir(exist_ok=True)
    for number, path in enumerate(sorted((world / "train").glob("*.tar"))):
        add_model(path, folder / "train" / path.name, number)
    values = {
        "name": "captioners",
        "shards": "train/*.tar",
        "image": "jpg",
        "encoder": ENCODER,
        "vocabulary": {"source": "world/concepts.txt"},
    }
    (folder / "captioners.yaml").write_text(yaml.safe_dump(values))
    return folder / "captioners.yaml"


def archives_of(run: Run) -> tuple[Ragged, list[set[str]]]:
    """The archives of a run as lists of concept ids, and the sources of every entry."""
    ids = {concept: number for number, concept in enumerate(read_vocabulary(run.vocabulary).concepts)}
    lists: list[list[int]] = []
    sources: list[set[str]] = []
    for path in run.of_shards("archives"):
        for archive in read_columns(path, {"concepts": None})["concepts"].to_pylist():
            lists.append([ids[entry["concept"]] for entry in archive])
            sources += [set(entry["sources"]) for entry in archive]
    return Ragged.from_lists(lists), sources


def own_sources(run: Run) -> list[set[str]]:
    """Which of an image's own captions name a concept: for every one that they name."""
    bits = [value for path in run.of_shards("embeddings") for row in _bits(path) for value in row]
    return [{name for bit, name in enumerate(run.config.captions) if value >> bit & 1} for value in bits]


def _bits(path: str) -> Iterator[list[int]]:
    yield from read_columns(path, {"sources": None})["sources"].to_pylist()


def run_rows(runs: Sequence[tuple[Run, LabelledData]]) -> Iterator[list[str]]:
    """A line for each run: what captions name, and what archives hold."""
    for run, data in runs:
        named, held = (quality(lists, data.visible, data.mentioned) for lists in (data.mentioned, archives_of(run)[0]))
        right = is_in(data.mentioned, data.visible).mean()
        shares = [named.recall, right, held.recall, held.precision[1], held.precision[3]]
        sizes = [f"{named.concepts:.1f}", f"{held.concepts:.1f}"]
        cells = [f"{share:.3f}" for share in shares]
        yield [" + ".join(run.config.captions), sizes[0], *cells[:2], sizes[1], *cells[2:]]


def source_rows(run: Run, data: LabelledData) -> Iterator[list[str]]:
    """A line for each set of sources: how many concepts they name and how many of these are visible."""
    archives, retrieved = archives_of(run)
    for what, lists, sources in (
        ("an image's own captions", data.mentioned, own_sources(run)),
        ("captions of its neighbours, its own among them", archives, retrieved),
    ):
        right = is_in(lists, data.visible)
        for names in ({PEOPLE}, {MODEL}, {PEOPLE, MODEL}):
            chosen = np.array([found == names for found in sources])
            only = "both" if len(names) > 1 else f"{min(names)} only"
            yield [what, only, f"{chosen.mean():.3f}", f"{right[chosen].mean():.3f}"]


def page(runs: Sequence[tuple[Run, LabelledData]], command: str) -> str:
    """The page, in Markdown."""
    both, data = runs[-1]
    parts = [
        "# Two captioners",
        f"Written by `{command}`. {len(data.images):,} scenes of the demo world, whose captions (`{PEOPLE}`) name one or "
        f"two things that are there. A second captioner (`{MODEL}`) names 2 to {MOST}, and takes each for another thing "
        f"with a chance of {ERRS:g}. Vision-driven expansion, L = {both.config.retrieval.neighbors}; the vocabulary is "
        "given, and the CLIP was trained on this world. The numbers say nothing about real captioners; they show what "
        "`sources` are for.",
        table(
            ["captions", "named", "recall", "right", "in archives", "recall", "precision at 1", "at 3"],
            run_rows(runs),
        ),
        "*Named*: concepts in an image's captions; *right*: the share of them that is visible.",
        "## Precision by source",
        f"With `captions: [{PEOPLE}, {MODEL}]`: the share of concepts that each source names, and how many of these are "
        "visible.",
        table(["named by", "source", "share", "visible"], source_rows(both, data)),
    ]
    return "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.captioners",
        description="Archives from two captioners, one of which errs, and how right each is.",
    )
    parser.add_argument("folder", type=Path, help="folder for the world and the archives")
    parser.add_argument("--scenes", type=int, default=2000, help="scenes to draw (default: %(default)s)")
    parser.add_argument("--page", type=Path, default=Path("docs/captions.md"), help="the page")
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(words)

    def work() -> None:
        args.folder.mkdir(parents=True, exist_ok=True)
        data = make(args.folder, WorldConfig(shards=2, scenes=-(-args.scenes // 2), validation=1))
        measured = []
        for number, captions in enumerate(RUNS):
            output = str(args.folder / f"archives-{number}")
            options = ["--output", output, "--runner", "inprocess", "--captions", json.dumps(captions)]
            if curate.main(["--data", str(data), *options]):
                raise CocuError(f"{output}: curation failed; the line above says why")
            run = open_run(output)
            measured.append((run, read_labelled(run, ["objects", "stuff"])))
        args.page.write_text(page(measured, f"python -m experiments.captioners {shlex.join(words)}"), encoding="utf-8")
        Console(highlight=False, soft_wrap=True).print(f"Written: {args.page}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
