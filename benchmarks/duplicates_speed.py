"""``python benchmarks/duplicates_speed.py``: what it costs a run that duplicates count once.

The demo world, whose pictures are small and whose encoder is too, so that little else hides the cost: whole commands with
``retrieval.duplicates`` ``once`` and ``keep`` in turn, in processor time. Both make thumbnails, which are counted as a cost
of ``once``. Full: synthetic embeddings without pictures too.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from results import arguments, publish
from scale import children_seconds
from synthetic import write_data_set

from curation.archive.members import read_members
from curation.base import files, images
from curation.base.markdown import table
from curation.base.versions import conditions
from curation.run.run import open_run
from curation.thumbnails import thumbnail
from pipelines.demo.world import ensure_world

CHOICES = ("keep", "once")
MOST = 0.05  # of a run, that duplicates may cost
SYNTHETIC = 100_000  # images without pictures
STAGES = ("neighbours", "graph", "duplicates")


def demo_data(folder: Path, world: Path) -> Path:
    """The configuration of a run over the demo world, which is drawn unless it is there."""
    ensure_world(str(world))
    values = {
        "name": "demo",
        "shards": str(world.absolute() / "train" / "*.tar"),
        "encoder": {"model": "local-dir:package:pipelines/demo/clip", "precision": "fp32", "batch_size": 256},
        "vocabulary": {"source": "build", "min_count": 20, "visualness": 0.3},
    }
    path = folder / "demo.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def processor_seconds(data: Path, out: Path, duplicates: str) -> float:
    """Processor time of a whole command with one worker, and of its children."""
    files.remove(str(out))
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(data), "--output", str(out), "--workers", "1"]
    before = children_seconds()
    ended = subprocess.run(
        [*command, "--retrieval.duplicates", duplicates], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise SystemExit(ended.stdout + ended.stderr)
    return children_seconds() - before


def thumbnail_seconds(tar: Path) -> float:
    """Processor time of making the thumbnail of a picture of a tar that is decoded already."""
    with open(tar, "rb") as stream:
        fields = [fields["jpg"] for _, fields in read_members(stream)]
    pictures = [images.decode(content) for content in fields if isinstance(content, bytes)]
    for picture in pictures[:10]:
        thumbnail(picture)
    began = time.process_time()
    for picture in pictures:
        thumbnail(picture)
    return (time.process_time() - began) / len(pictures)


def compare(name: str, data: Path, folder: Path, rounds: int, each: float = 0.0) -> tuple[float, list[str]]:
    """The share of a run that duplicates cost, by the best of some rounds in turn, and a line of the table.

    ``each``: seconds of an image that both runs spend on it.
    """
    best = dict.fromkeys(CHOICES, float("inf"))
    for _ in range(rounds):
        for choice in CHOICES:
            best[choice] = min(best[choice], processor_seconds(data, folder / choice, choice))
    run = open_run(str(folder / "once"))
    notes = files.read_json(run.manifest)
    counts = notes["counts"]
    more = best["once"] - best["keep"] + each * counts["rows"]
    share = more / best["once"]
    stages = sum(notes["seconds"].get(stage, 0.0) for stage in STAGES)
    seconds = (best["keep"], best["once"], each * counts["rows"], stages)
    cells = [name, f"{counts['rows']:,}", *(f"{value:.2f}" for value in seconds), f"{share:.1%}"]
    return share, [*cells, f"{counts['duplicates']:,}"]


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when the mark is missed."""
    parser = arguments(__file__, "What it costs a run that duplicates count once.")
    parser.add_argument("--world", type=Path, help="a demo world that is there (default: one is drawn)")
    args = parser.parse_args()
    rounds = 5 if args.full else 3
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        world = args.world or folder / "world"
        data = demo_data(folder, world)
        each = thumbnail_seconds(min((world / "train").glob("*.tar")))
        measured = [compare("demo world", data, folder, rounds, each)]
        if args.full:
            measured.append(compare("synthetic, no pictures", write_data_set(folder / "data", SYNTHETIC), folder, 1))
    shares, lines = zip(*measured, strict=True)
    return publish(
        "Duplicates that count once",
        [
            conditions("torch", "pillow", "numpy"),
            f"Whole commands with one worker, everything from reading to the report; processor time, the best of {rounds} "
            "rounds in turn. Both make thumbnails; they are counted as a cost of `once`, with the difference of the two. "
            "Stages: neighbours, graph and duplicates of `once`, by the clock; with `keep` the search is part of the stage "
            "archive.",
            table(
                ["images", "number", "keep, s", "once, s", "thumbnails, s", "stages, s", "cost", "duplicates"],
                list(lines),
            ),
        ],
        {f"at most {MOST:.0%} of a run ({shares[0]:.1%})": shares[0] <= MOST},
    )


if __name__ == "__main__":
    sys.exit(main())
