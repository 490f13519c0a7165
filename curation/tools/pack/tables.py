"""Captions in tables and lists: CSV, TSV, JSON lines, JSON, Parquet, and plain lists of file names."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from curation.base.configuration import did_you_mean
from curation.base.errors import CocuError, one_line
from curation.base.parquet import open_parquet
from curation.tools.pack.entry import CAPTIONS, EXTENSIONS, CaptionColumns, Entry, extension_of, unusable
from curation.tools.pack.folder import ImageFolder

NAMES = (
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "path",
    "image_path",
    "image_file",
    "image",
    "img",
    "file",
    "key",
    "id",
)
ADDRESSES = ("url", "image_url", "uri", "link")  # columns with what has to be downloaded first
DOWNLOAD = "download the images first, with img2dataset, and pack the folder that it writes"
DAMAGED = "copy it again from where it came"
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
LISTS = (".txt", ".lst", ".list")
FOUND = (
    *(f"captions{suffix}" for suffix in TABLES),
    "metadata.csv",
    "metadata.jsonl",
    "metadata.parquet",
)  # in a folder


class Columns(NamedTuple):
    """Which columns hold the file names and the captions; None: the one of a usual name."""

    image: str | None = None
    caption: str | None = None
    captions: tuple[str, ...] = ()  # several, in place of ``caption``


class Row(NamedTuple):
    """A row of a table: an image's file name and its caption."""

    number: int  # from 1, to name it in a reject
    name: str
    caption: Any  # None where the row has none


def choose_column(path: Path, columns: Sequence[str], asked: str | None, usual: Sequence[str], what: str) -> str:
    """The column with file names, or with captions. Raises CocuError naming the columns that are there."""
    if asked is not None:
        if asked in columns:
            return asked
        raise CocuError(f"{path}: no column {asked}{did_you_mean(asked, columns)}; there are {_shown(columns)}")
    by_name = {column.lower().strip(): column for column in columns}
    column = next((by_name[name] for name in usual if name in by_name), None)
    if column is None:
        raise CocuError(f"{path}: {_why_none(columns, what)}")
    return column


def _why_none(columns: Sequence[str], what: str) -> str:
    """Why none of the columns holds file names, or captions, and what to do about it."""
    if not any(columns):
        return "its first line is empty; it must name the columns, such as image,caption"
    if any(extension_of(column) in EXTENSIONS for column in columns):
        return f"its first line is {_shown(columns)}, not names of columns; put a line such as image,caption before it"
    addresses = next((column for column in columns if column.lower().strip() in ADDRESSES), None)
    if what == "file names" and addresses:
        return f"no column with {what}, only addresses in {addresses}; {DOWNLOAD}"
    option = "--image-column" if what == "file names" else "--caption-column"
    return f"no column with {what}; the columns are {_shown(columns)}; name it with {option}"


def choose_captions(path: Path, names: Sequence[str], columns: Columns) -> tuple[str, ...]:
    """The column with captions, or the several that are asked for. Raises CocuError naming the columns that are there."""
    asked = columns.captions or (columns.caption,)
    return tuple(choose_column(path, names, name, CAPTIONS, "captions") for name in asked)


def caption_of(values: Mapping[str, Any], names: tuple[str, ...], columns: Columns) -> Any:
    """The caption of a row; where several columns are asked for, their values by name."""
    if columns.captions:
        return CaptionColumns({name: values.get(name) for name in names})
    text = values.get(names[0])
    return "" if text is None else text


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "") if columns else "none"


def read_table(path: Path, columns: Columns) -> Iterator[Row]:
    """The rows of a table. Raises CocuError where it cannot be read, or has no such columns."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path, columns)
            return
        with open(path, encoding="utf-8-sig", newline="") as stream:
            if suffix in (".csv", ".tsv"):
                yield from _csv_rows(path, stream, columns)
            elif suffix in LISTS:
                for number, line in enumerate(stream, 1):
                    name, _, caption = line.strip("\r\n").partition("\t")
                    if name.strip():
                        yield Row(number, name.strip(), caption or None)
            else:
                yield from _json_rows(path, stream, suffix == ".json", columns)
    except UnicodeDecodeError:
        raise CocuError(f"{path}: not UTF-8; save it as UTF-8") from None
    except csv.Error as error:
        raise CocuError(f"{path}: cannot be read as a table ({one_line(error)})") from None


def _csv_rows(path: Path, stream: Any, columns: Columns) -> Iterator[Row]:
    csv.field_size_limit(1 << 24)
    first = stream.readline()
    others = [character for character in ";\t" if character in first and "," not in first]  # as spreadsheets write it
    delimiter = "\t" if path.suffix.lower() == ".tsv" else next(iter(others), ",")
    reader = csv.reader(chain([first], stream), delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    image = header.index(choose_column(path, header, columns.image, NAMES, "file names"))
    captions = choose_captions(path, header, columns)
    for number, cells in enumerate(reader, 1):
        if len(cells) > image and cells[image].strip():
            values = dict(zip(reversed(header[: len(cells)]), reversed(cells[: len(header)]), strict=True))
            yield Row(number, cells[image].strip(), caption_of(values, captions, columns))


def _json_rows(path: Path, stream: Any, whole: bool, columns: Columns) -> Iterator[Row]:
    image = None
    captions: tuple[str, ...] = ()
    for number, value in enumerate(_json_items(path, stream, whole), 1):
        if not isinstance(value, dict):
            raise CocuError(f"{path}: item {number} is not an object with a file name and a caption")
        if image is None:
            image = choose_column(path, list(value), columns.image, NAMES, "file names")
            captions = choose_captions(path, list(value), columns)
        if value.get(image):
            yield Row(number, str(value[image]), caption_of(value, captions, columns))


def _json_items(path: Path, stream: Any, whole: bool) -> Iterator[Any]:
    """The items of a list, where ``whole``, or of lines. Raises CocuError that names the line which is no JSON."""
    line = 0
    try:
        if whole:
            items = json.load(stream)
            if not isinstance(items, list):
                raise CocuError(f"{path}: is not a list; write [...] of objects, each with a file name and a caption")
            yield from items
            return
        for text in stream:
            line += 1
            if text.strip():
                yield json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno if whole else line} is not JSON ({error.msg} at character {error.colno})"
        raise CocuError(f"{path}: {where}; correct the line, or take it out") from None
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise CocuError(f"{path}: cannot be read as JSON ({one_line(error)})") from None


def _parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    with open_parquet(str(path), remedy=DAMAGED) as file:
        schema = file.schema_arrow
        plain = [
            field.name for field in schema if not pa.types.is_binary(field.type) and not pa.types.is_struct(field.type)
        ]
        image = choose_column(path, plain, columns.image, NAMES, "file names")
        captions = choose_captions(path, plain, columns)
        number = 0
        for block in file.iter_batches(columns=list(dict.fromkeys([image, *captions]))):
            for row in block.to_pylist():
                number += 1
                if row[image] is not None and str(row[image]):
                    yield Row(number, str(row[image]), caption_of(row, captions, columns))


class Table:
    """The images that a table or a list names; in a folder, those that it does not name follow."""

    def __init__(self, path: Path, folder: ImageFolder, columns: Columns, with_others: bool) -> None:
        self.path, self.folder = path, folder
        self._columns, self._with_others = columns, with_others
        self._by_name: dict[str, list[str]] | None = None  # names within the folder, by file name alone

    def entries(self) -> Iterator[Entry]:
        """An entry for every row, in the order of the table, then the images without a row."""
        named: set[str] = set()
        for row in read_table(self.path, self._columns):
            name = self._find(row.name)
            if name is None:
                reason = "is an address, not a file" if "://" in row.name else "no such image"
                yield unusable(row.name, f"{reason} (row {row.number} of {self.path.name})")
                continue
            named.add(name)
            yield self.folder.entry(name, row.caption)
        if self._with_others:
            yield from (entry for entry in self.folder.entries() if entry.name not in named)

    def _find(self, name: str) -> str | None:
        """The image that a row means, relative to the folder: a path, or only a file name; with extension or without."""
        name = name.replace("\\", "/") if "\\" in name and not (self.folder.root / name).exists() else name
        if os.path.isabs(name) or ".." in name.split("/"):
            return self._inside(name)
        candidates = [name] if extension_of(name) in EXTENSIONS else [name, *(f"{name}.{kind}" for kind in EXTENSIONS)]
        for candidate in candidates:
            if os.path.lexists(self.folder.root / candidate) and not (self.folder.root / candidate).is_dir():
                return os.path.normpath(candidate)
        if self._by_name is None:
            self._by_name = {}
            for entry in self.folder.entries():
                file = entry.name.rpartition("/")[2]
                for key in {file, file[: -len(extension_of(file)) - 1]}:
                    self._by_name.setdefault(key, []).append(entry.name)
        matches = self._by_name.get(name.rpartition("/")[2], [])
        return matches[0] if len(matches) == 1 and "/" not in name else None

    def _inside(self, name: str) -> str:
        """A path by another way, relative to the folder where it leads into it; reading refuses any other."""
        path = os.path.realpath(self.folder.root / name)
        root = os.path.realpath(self.folder.root)
        return os.path.relpath(path, root) if path.startswith(root + os.sep) else name
