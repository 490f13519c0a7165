"""Files that say what is visible in images: concepts or captions by key, and the annotations of COCO."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import files
from curation.base.errors import CocuError, listed, one_line, quoted

FORMS = "a truth is a jsonl, csv or parquet with columns key and concepts or captions, json of the same, or COCO's json"
KEYS = ("key", "image_path", "file_name", "image")
IMAGE_ENDING = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)$", re.IGNORECASE)


@dataclass
class Labels:
    """What a file says of one image."""

    concepts: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


@dataclass
class LabelFile:
    """What a file says of all its images."""

    of_key: dict[str, Labels] = field(default_factory=dict)
    judged: list[str] | None = None  # the concepts that it speaks of, where all others may be visible unsaid

    def add(self, key: str, concepts: Iterable[str] = (), captions: Iterable[str] = ()) -> None:
        """Something more of an image."""
        labels = self.of_key.setdefault(key, Labels())
        labels.concepts += concepts
        labels.captions += captions


def read_labels(path: str) -> LabelFile:
    """Concepts and captions by key, of a jsonl, csv, parquet or json file, or COCO's instances or captions.

    Rows have ``key``, and ``concepts`` or ``captions`` (``caption``): a list, or a text, in which semicolons separate
    concepts; several rows of one key add up. A json file is a list of such rows; an object of such rows, or of captions, by
    key; or an object of columns (``keys``, ``captions``), beside which it may have such objects. Raises CocuError.
    """
    with files.open_file(path) as stream:
        content = stream.read()
    labels = LabelFile()
    if path.endswith(".parquet"):
        _add_rows(labels, _parquet_rows(content, path), path)
    else:
        text = _decoded(content, path)
        if path.endswith((".csv", ".tsv")):
            _add_rows(labels, csv.DictReader(io.StringIO(text), delimiter="\t" if path.endswith(".tsv") else ","), path)
        elif path.endswith((".jsonl", ".ndjson")):
            _add_rows(labels, _json_lines(text, path), path)
        else:
            _add_json(labels, text, path)
    if not labels.of_key:
        raise CocuError(f"{path}: says nothing of any image; {FORMS}")
    return labels


def _decoded(content: bytes, path: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CocuError(f"{path}: not UTF-8; {FORMS}") from None


# --- rows ---------------------------------------------------------------------------------------------------------------


def _parquet_rows(content: bytes, path: str) -> Iterator[Mapping[str, Any]]:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise CocuError(f"{path}: not a Parquet file ({one_line(error)})") from None
    wanted = [name for name in table.column_names if name in (*KEYS, "concepts", "captions", "caption")]
    yield from table.select(wanted).to_pylist()


def _json_lines(text: str, path: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CocuError(f"{path}: line {number} is not JSON ({one_line(error)})") from None


def _add_rows(labels: LabelFile, rows: Iterable[Any], path: str) -> None:
    try:
        for number, row in enumerate(rows, 1):
            _add_row(labels, row, f"{path}: row {number}")
    except csv.Error as error:
        raise CocuError(f"{path}: not a csv table ({error})") from None


def _add_row(labels: LabelFile, row: Any, where: str, key: Any = None) -> None:
    """Add what one row says. Raises CocuError, beginning with ``where``, for anything else than a row."""
    if not isinstance(row, Mapping):
        raise CocuError(f"{where}: {quoted(row)} is no row with names; {FORMS}")
    key = next((row[name] for name in KEYS if row.get(name) is not None), key)
    if key is None or not {"concepts", "captions", "caption"} & row.keys():
        raise CocuError(f"{where}: needs key, and concepts or captions, has {listed(row)}; {FORMS}")
    concepts = _texts(row.get("concepts"), where, lambda text: text.split(";"))
    captions = [text for name in ("captions", "caption") for text in _texts(row.get(name), where)]
    labels.add(str(key), concepts, captions)


def _texts(value: Any, where: str, split: Callable[[str], list[str]] = lambda text: [text]) -> list[str]:
    """The texts of a cell: a list, one as JSON writes it, or a text to be split."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = [value]
        else:
            value = split(value)
    items = [] if value is None else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise CocuError(f"{where}: {quoted(value)} is no text and no list of texts")
    return [item.strip() for item in items if item.strip()]


# --- json ---------------------------------------------------------------------------------------------------------------


def _add_json(labels: LabelFile, text: str, path: str) -> None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):  # a value a line
            return _add_rows(labels, _json_lines(text, path), path)
        raise CocuError(f"{path}: not JSON ({one_line(error)}); {FORMS}") from None

    if isinstance(values, list):
        _add_rows(labels, values, path)
    elif not isinstance(values, dict):
        raise CocuError(f"{path}: {quoted(values)}; {FORMS}")
    elif isinstance(values.get("annotations"), list) and isinstance(values.get("images"), list):
        _add_coco(labels, values, path)
    elif isinstance(values.get("keys"), list):
        _add_columns(labels, values, path)
    else:
        _add_by_key(labels, values, path)
    return None


def _add_by_key(labels: LabelFile, values: Mapping[str, Any], path: str) -> None:
    """Rows by key; or captions by key."""
    for key, value in values.items():
        row = value if isinstance(value, dict) else {"captions": value}
        _add_row(labels, row, f"{path}: {quoted(key)}", key)


def _add_columns(labels: LabelFile, values: Mapping[str, Any], path: str) -> None:
    """Columns, one value a key; and objects by key beside them."""
    keys = values["keys"]
    columns = {name: values[name] for name in ("concepts", "captions") if isinstance(values.get(name), list)}
    for name, column in columns.items():
        if len(column) != len(keys):
            raise CocuError(f"{path}: {len(column)} {name} for {len(keys)} keys")
    for number, key in enumerate(keys):
        row = {name: column[number] for name, column in columns.items()}
        if row:
            _add_row(labels, row, f"{path}: {quoted(key)}", key)
    for value in values.values():
        if isinstance(value, dict):
            _add_by_key(labels, value, path)


def _add_coco(labels: LabelFile, values: Mapping[str, Any], path: str) -> None:
    """COCO's instances or captions: an image without annotations has nothing of the categories."""
    try:
        names = {image["id"]: image["file_name"] for image in values["images"]}
        categories = {category["id"]: category["name"] for category in values.get("categories", [])}
        for name in names.values() if categories else ():
            labels.add(name)
        for annotation in values["annotations"]:
            key = names[annotation["image_id"]]
            if "caption" in annotation:
                labels.add(key, captions=[annotation["caption"]])
            else:
                labels.add(key, concepts=[categories[annotation["category_id"]]])
    except (KeyError, TypeError) as error:
        raise CocuError(f"{path}: COCO's json, but for {one_line(error)}, which is missing") from None
    labels.judged = list(categories.values()) or None


# --- keys ---------------------------------------------------------------------------------------------------------------


def rows_of_keys(keys: list[str], others: list[str]) -> tuple[np.ndarray, list[str]]:
    """Which keys of a run (R,), int64 rows, are among the ``others`` of a file, and which of these each is.

    Keys are compared as they are, by the names of their files without folder and ending, or, where clip-retrieval or a
    script put row numbers before the names, without these: by whichever finds most.

    >>> rows_of_keys(["0500_cat", "0501_dog"], ["images/dog.jpg", "cow.jpg"])
    (array([1]), ['images/dog.jpg'])
    """
    best: tuple[np.ndarray, list[str]] = np.zeros(0, np.int64), []
    for form in (str, _stem, _unnumbered):
        known: dict[str, str] = {}
        for other in others:
            known.setdefault(other if form is str else _stem(other), other)
        found = [(row, known[form(key)]) for row, key in enumerate(keys) if form(key) in known]
        if len(found) > len(best[1]):
            best = np.array([row for row, _ in found], np.int64), [other for _, other in found]
    return best


def _stem(key: str) -> str:
    return IMAGE_ENDING.sub("", re.split(r"[/\\]", key)[-1])


def _unnumbered(key: str) -> str:
    return re.sub(r"^\d+_", "", _stem(key))
