"""``python -m experiments.omitted``: what captions leave out, and where models see it (the paper's Figures 3b and 4).

For each class there is one image of the training data: of those whose caption does not mention the class, the one that it
covers most of. The classes that are covered most come first. Nothing is chosen for what a model makes of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from curation.archive import ConceptArchive
from curation.archive.captions import names_in
from curation.base.errors import CocuError
from curation.base.options import positive
from curation.base.terminal import run_command
from curation.concepts import concept_key
from curation.samples import read_sidecars
from evaluation.inference import embed_classes
from evaluation.panels import FAINT, INK, PAPER, TEXT, Entry, Panel, side_by_side
from evaluation.pictures import heat_panel, shown_size
from evaluation.segment import heat, view_for
from segmenters.opening import Segmenter, open_segmenter

PIXELS = 160  # of a panel's side
WRAPPED = 24  # letters of a line below an image
SHOWN = 8  # concepts of an archive
MARK = (200, 30, 30)  # the omitted class in the archive
COMPARED = "artifacts/experiments/demo"  # what cocu experiments --data demo leaves
DEMO = tuple(
    f"{title}={COMPARED}/runs/dense/{arm}/0/checkpoints/last.ckpt"
    for title, arm in (("captions", "caption"), ("archives", "archive"))
)
COLOURS = 96  # of the file: heat maps are smooth, and the file is read in a browser

Concept = tuple[str, ...]  # of concept_key


@dataclass(frozen=True)
class Omission:
    """An image, and a class that it shows and its caption does not mention."""

    shard: str
    key: str
    name: str
    area: float  # share of the image, 0..1


# --- choosing -------------------------------------------------------------------------------------------------------------


def largest_omissions(
    areas: Iterable[tuple[str, str, Mapping[str, float]]], captions: Mapping[str, Mapping[str, set[Concept]]]
) -> list[Omission]:
    """The image of each class, by the rule above, the most covered first; ties: the first.

    areas: (shard, key, share of the image by class) of all images. captions: what captions mention, by shard and key.
    """
    largest: dict[str, Omission] = {}
    for shard, key, shares in areas:
        if key not in captions[shard]:  # rejected by curation
            continue
        for name, area in shares.items():
            larger = name not in largest or area > largest[name].area
            if larger and concept_key(name) not in captions[shard][key]:
                largest[name] = Omission(shard, key, name, area)
    return sorted(largest.values(), key=lambda omission: -omission.area)


def mentioned(archive: ConceptArchive, shard: str) -> dict[str, set[Concept]]:
    """The concepts that the caption of each image of a shard mentions, by key."""
    captions = archive.read(shard, mentioned=True)
    names = [concept_key(name) for name in captions.names]
    lists = np.split(captions.concepts, captions.offsets[1:-1])
    return {key: {names[concept] for concept in row} for key, row in zip(captions.keys, lists, strict=True)}


def read_sidecar_fields(archive: ConceptArchive, field: str) -> Iterable[tuple[str, str, Any]]:
    """(shard, key, value) of a field of the json sidecars of a run's images. Raises CocuError where none has it."""
    present = False
    for source in archive.sources:
        for key, content in read_sidecars(source.path):
            sidecar = json.loads(content)
            if field in sidecar:
                present = True
                yield source.name, key, sidecar[field]
    if not present:
        raise CocuError(f"{archive.folder}: no json sidecar of its images has {field}; the demo world's have")


def choose(omissions: Sequence[Omission], things: set[str], count: int) -> list[Omission]:
    """The first ``count`` of things and as many of what is none of them, stuff."""
    kinds = [[omission for omission in omissions if (omission.name in things) == kind] for kind in (True, False)]
    return [omission for kind in kinds for omission in kind[:count]]


# --- drawing --------------------------------------------------------------------------------------------------------------


def draw(archive: ConceptArchive, omissions: Sequence[Omission], models: Mapping[str, Segmenter]) -> Image.Image:
    """One row an omission: the image with its caption, its archive, and where each model sees the class."""
    pictures = read_images(archive, omissions)
    panels = []
    for omission in omissions:
        row = archive[omission.shard, omission.key]
        image = pictures[omission]
        shown = image.resize(shown_size(image.size, PIXELS), Image.Resampling.BICUBIC)
        title = f"{omission.name}, {100 * omission.area:.0f}% of it"
        lines = textwrap.wrap(f"“{row['caption']}”", WRAPPED)
        panels.append(Panel(title, shown, [Entry(None, line) for line in lines]))
        panels.append(Panel("archive", archive_picture(row["concepts"], omission.name, PIXELS), []))

        maps = {title: class_heat(model, image, omission.name) for title, model in models.items()}
        ranges = colour_ranges(list(maps.values()), share_text(list(models.values()), omission.name))
        for (title, values), colours in zip(maps.items(), ranges, strict=True):
            panels.append(heat_panel(shown, values, colours, f"{title}: {omission.name}"))
    sheet = side_by_side(panels, columns=2 + len(models))
    return sheet.quantize(COLOURS, dither=Image.Dither.NONE)


def archive_picture(concepts: Sequence[Mapping[str, Any]], omitted: str, side: int) -> Image.Image:
    """The best concepts of an archive with their scores, one a line; the omitted class is marked."""
    picture = Image.new("RGB", (side, side), PAPER)
    writer = ImageDraw.Draw(picture)
    font = ImageFont.load_default(TEXT)
    height = side / (SHOWN + 1)
    for number, entry in enumerate(concepts[:SHOWN]):
        colour = MARK if concept_key(entry["concept"]) == concept_key(omitted) else INK
        writer.text((0, number * height), entry["concept"], colour, font)
        writer.text((side - 36, number * height), f"{entry['score']:.2f}", colour, font)
    if len(concepts) > SHOWN:
        writer.text((0, SHOWN * height), f"and {len(concepts) - SHOWN} more", FAINT, font)
    return picture


def share_text(models: Sequence[Segmenter], name: str) -> bool:
    """Whether models compare their places with the same vector for a class, as CLIPs do whose text tower nobody trained."""
    first, *others = (embed_classes(model, [name], None).text for model in models)
    return all(first.shape == other.shape and torch.allclose(first, other, atol=1e-5) for other in others)


def colour_ranges(maps: Sequence[np.ndarray], shared: bool) -> list[tuple[float, float]]:
    """Least and greatest value of the colours of each map: one range for all where cosines are with the same vector, else
    a range of each map's own, since cosines of two models cannot be compared."""
    ranges = [(float(values.min()), float(values.max())) for values in maps]
    return [(min(low for low, _ in ranges), max(high for _, high in ranges))] * len(maps) if shared else ranges


def class_heat(model: Segmenter, image: Image.Image, name: str) -> np.ndarray:
    """Cosine of every pixel with a class: (h, w)."""
    view = view_for(max(min(image.size), model.smallest), model.config.image_size)
    return heat(model, embed_classes(model, [name], None), image, view)[0]


def read_images(archive: ConceptArchive, omissions: Sequence[Omission]) -> dict[Omission, Image.Image]:
    """The images, decoded."""
    pictures = {}
    for source in archive.sources:
        wanted = {omission.key: omission for omission in omissions if omission.shard == source.name}
        for extension in names_in(source.image) if wanted else ():
            for key, content in read_sidecars(source.path, extension):
                if key in wanted:
                    pictures[wanted[key]] = Image.open(BytesIO(content)).convert("RGB")
    return pictures


# --- the command ----------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.omitted",
        description="Draw images whose caption omits what they show: caption, archive, and where models see it.",
        epilog="""examples, the first after cocu experiments --only dense/caption dense/archive --seeds 1:
  python -m experiments.omitted -o omitted.png
  python -m experiments.omitted artifacts/demo --model untrained=local-dir:pipelines/demo/clip --model mine=last.ckpt""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "run",
        nargs="?",
        default=f"{COMPARED}/archives/base",
        help="a finished run (default: that of cocu experiments --data demo)",
    )
    parser.add_argument(
        "--model",
        action="append",
        metavar="TITLE=CHECKPOINT",
        help="a column of heat maps, may be repeated (default: the dense CLIP that learnt from captions alone and the one "
        "that learnt from archives, of the same runs, seed 0)",
    )
    parser.add_argument("--count", type=positive, default=2, help="classes of things, and of stuff (default: 2)")
    parser.add_argument("-o", "--output", default="omitted.png", help="picture to write (default: omitted.png)")
    return parser


def models_of(titled: Sequence[str]) -> dict[str, Segmenter]:
    """The models by their titles. Raises CocuError for an argument without a title, and for what is no checkpoint."""
    models = {}
    for argument in titled:
        title, equals, checkpoint = argument.partition("=")
        if not equals:
            raise CocuError(f"model: {argument} has no title; write TITLE=CHECKPOINT")
        models[title] = open_segmenter(checkpoint).model
    return models


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    def work() -> None:
        models = models_of(args.model or DEMO)
        archive = ConceptArchive.open(args.run)
        captions = {shard: mentioned(archive, shard) for shard in archive.shards}
        omissions = largest_omissions(read_sidecar_fields(archive, "area"), captions)
        if not omissions:
            raise CocuError(f"{args.run}: no caption omits a class that its image shows; there is nothing to draw")
        things = {name for _, _, names in read_sidecar_fields(archive, "objects") for name in names}
        picture = draw(archive, choose(omissions, things, args.count), models)
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        picture.save(args.output, optimize=True)
        print(f"{args.output}: {picture.width} x {picture.height} pixels")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
