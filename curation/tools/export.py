"""``cocu export OUT --format webdataset|jsonl|csv``: archives for tools that do not read Parquet."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import sys
import tarfile
import typing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from rich.console import Console
from rich.progress import track

from curation.archive import ConceptArchive, Filter, read_tar
from curation.base import files
from curation.base.configuration import attribute_docs
from curation.base.errors import CocuError, quoted
from curation.base.options import CommandParser
from curation.base.recorded import leaves_folder
from curation.base.terminal import add_remote_option, printable, run_command

COLUMNS = ("filepath", "title", "key", "file")  # of csv; the first two are open_clip's
# What pandas reads as a missing value rather than as text.
MISSING = {
    *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"),
    *("<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
}
FORMATS = ("webdataset", "jsonl", "csv")
TEXT = "{caption}, with {concepts}"
EPILOG = """\
formats:
  webdataset  <shard>.concepts.tar for every tar of images: <key>.concepts.json, a list of concepts in descending score, in
              the order of the tar; joins with the images by shard and key
  jsonl       <shard>.jsonl: one line {"key", "caption", "concepts"} per sample; captions too, where there are several
  csv         train.csv, tab-separated, with the columns filepath and title, as open_clip's trainer reads it
              (--dataset-type csv), then key and file, as they were in the tar; a line for each of several captions; images
              are copied out of the tars, byte by byte, to images/<shard>/<row>.<field>

examples:
  cocu export artifacts/cc12m --format webdataset --to data/cc12m
  cocu export artifacts/cc12m --format jsonl --top 5 --support 2
  cocu export artifacts/cc12m --format csv --omitted --top 3 --text "{caption}. Also: {concepts}"
"""


@dataclass(frozen=True)
class Export:
    """Archives, and the folder and format that they are written in. Files appear whole or not at all."""

    archive: ConceptArchive
    folder: str
    format: str
    text: str = TEXT  # of csv: {caption} and {concepts}, names separated by commas

    def __post_init__(self) -> None:
        """Check the format and the text."""
        if self.format not in FORMATS:
            raise CocuError(f"format: {self.format!r} is not one of {', '.join(FORMATS)}")
        if "{concepts}" not in self.text:
            raise CocuError(f"text: {self.text!r} has no {{concepts}}")

    def write(self, workers: int = 1) -> int:
        """Write every shard, in ``workers`` processes, and return the number of samples.

        Raises CocuError for what cannot be read or written.
        """
        samples, total = 0, len(self.archive.shards)
        console, quiet = Console(stderr=True), not sys.stderr.isatty()
        shards = track(self._shards(workers), f"{self.format}, shards", total, console=console, disable=quiet)
        if self.format != "csv":
            return sum(len(shard) for shard in shards)
        with files.atomic_write(files.join(self.folder, "train.csv")) as stream:
            stream.write(_lines([COLUMNS]))
            for lines in shards:
                stream.write(_lines(lines))
                samples += len({line[0] for line in lines})
        return samples

    def _shards(self, workers: int) -> Iterator[list[tuple[str, ...]]]:
        names = self.archive.shards
        if workers == 1:
            yield from map(self.write_shard, names)
            return
        with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
            yield from pool.map(self.write_shard, names)

    def write_shard(self, name: str) -> list[tuple[str, ...]]:
        """Write one shard; returns the lines of csv, else keys and captions."""
        rows: list[dict[str, Any]] = self.archive.table(name).to_pylist()
        if self.format == "csv":
            return self._write_images(name, rows)
        if self.format == "jsonl":
            with files.atomic_write(files.join(self.folder, f"{name}.jsonl")) as stream:
                stream.writelines(_json(row) + b"\n" for row in rows)
        else:
            with (
                files.atomic_write(files.join(self.folder, f"{name}.concepts.tar")) as stream,
                tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            ):
                for row in rows:
                    if leaves_folder(row["key"]):
                        raise CocuError(
                            f"{self.archive.path('archives', name)}: the key {quoted(row['key'])} would be a file outside "
                            "of the folder that the tar is unpacked into; use --format jsonl"
                        )
                    content = _json(row["concepts"])
                    member = tarfile.TarInfo(row["key"] + ".concepts.json")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return [(row["key"], row["caption"]) for row in rows]

    def _write_images(self, name: str, rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
        """Copy images out of their tar, each named after its row: a key never becomes a path."""
        source = next(source for source in self.archive.sources if source.name == name)
        fields = source.image.lower().split(";")
        folder = files.join(self.folder, "images", name)
        filesystem, inner = url_to_fs(folder)
        filesystem.makedirs(inner, exist_ok=True)
        waiting = {row["key"]: number for number, row in enumerate(rows)}
        lines: list[tuple[str, ...]] = []
        written = 0
        for sample in read_tar(source.path, fields, source.max_member):
            number = waiting.pop(sample["__key__"], None)
            field = next((field for field in fields if field in sample), None)
            if number is None or field is None:
                continue  # rejected by curation
            path = files.join(folder, f"{number:08d}.{field}")
            with fsspec.open(path, "wb") as stream:  # train.csv comes last: no image counts before
                stream.write(sample[field])
            row = rows[number]
            captions = [caption["text"] for caption in row["captions"]] if "captions" in row else [row["caption"]]
            titles = [_title(enriched(row | {"caption": caption}, self.text)) for caption in captions]
            lines += [(path, title, row["key"], f"{row['key']}.{field}") for title in titles]
            written += 1
        if written < len(rows):
            missing = next(iter(waiting), "an image")
            raise CocuError(f"{source.path}: {missing} is missing: the tar is not the one that was curated")
        return lines


def enriched(row: dict[str, Any], text: str) -> str:
    """``text`` with {caption} and {concepts} of an archive filled in; the caption alone where it has no concepts."""
    concepts = ", ".join(entry["concept"] for entry in row["concepts"])
    filled = text.replace("{concepts}", concepts).replace("{caption}", row["caption"])
    return filled if concepts else str(row["caption"])


def _title(text: str) -> str:
    """The text as pandas, by which open_clip reads it, keeps it: a space makes NA and null text; tokenizers strip it."""
    return text + " " if text in MISSING else text


def _lines(lines: list[tuple[str, ...]]) -> bytes:
    """Tab-separated lines. A field with a line break of any kind is quoted: readers take a lone CR for one too."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter="\t", lineterminator="\r\n")  # Python quotes what is in its line ending
    for line in lines:
        writer.writerow(line)
        out.seek(out.tell() - 2)
        out.write("\n")
        out.truncate()
    return out.getvalue().encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu export",
        description="Write concept archives in other formats. The archives themselves are not changed.",
        epilog=EPILOG,
    )
    parser.add_argument("folder", metavar="OUT", help="output folder of a finished run, local or a URL")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what is written, as said below")
    parser.add_argument(
        "-o", "--output", "--to", dest="to", metavar="FOLDER", help="folder to write into (default: OUT/export/FORMAT)"
    )
    add_filter_options(parser)
    add_remote_option(parser)
    parser.add_argument("--text", default=TEXT, help="the title of csv (default: %(default)r)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: 1)")
    return parser


def add_filter_options(parser: argparse.ArgumentParser) -> None:
    """An option for every condition of a filter."""
    texts = attribute_docs(Filter)
    kinds = typing.get_type_hints(Filter)
    for field in dataclasses.fields(Filter):
        if kinds[field.name] is bool:
            parser.add_argument(f"--{field.name}", action="store_true", help=texts[field.name])
        else:
            kind = next(
                kind for kind in (float, int) if kind in (typing.get_args(kinds[field.name]) or [kinds[field.name]])
            )
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=texts[field.name])


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)

    conditions = {field.name: getattr(args, field.name) for field in dataclasses.fields(Filter)}

    def work() -> None:
        archive = ConceptArchive.open(args.folder, args.allow_remote).filter(**conditions)
        folder = args.to or files.join(args.folder, "export", args.format)
        folder = folder if files.is_remote(folder) else os.path.abspath(folder)  # csv is read from anywhere
        count = Export(archive, folder, args.format, args.text).write(max(args.workers, 1))
        print(f"{printable(folder)}: {count:,} samples of {len(archive.shards):,} shards as {args.format}")

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
