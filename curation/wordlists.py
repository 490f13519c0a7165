"""Files of concepts as people write them (docs/method.md §1): lists, tables, and tables with text embeddings."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import files
from curation.base.embeddings import has_direction, normalise
from curation.base.errors import CocuError, listed, one_line, quoted
from curation.concepts import LONGEST, concept_key, count_words

QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}
LEFT_OUT = {"false", "f", "0", "no", "n"}  # what a person may write into the column kept
DELIMITERS = ",;\t"
ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # by their first bytes; else UTF-8, with or without a mark


@dataclass(frozen=True)
class ConceptEmbeddings:
    """Text embeddings that somebody gives: t_c of V concepts."""

    rows: dict[tuple[str, ...], int]  # by what a concept is matched by; the first of two with one key
    embeddings: np.ndarray  # (V, D) float32, unit rows

    @property
    def width(self) -> int:
        """D, the length of an embedding."""
        return self.embeddings.shape[1]

    def find(self, concepts: Iterable[str]) -> np.ndarray:
        """The row of every concept, (N,) int64; -1 for one that is not there."""
        return np.array([self.rows.get(concept_key(concept), -1) for concept in concepts], np.int64)


def read_concepts(path: str) -> list[str]:
    """Concepts of a file, in order: ``.txt`` one a line, ``.csv`` or ``.parquet`` with a column ``concept``.

    Lines that begin with # are comments, and so is in a list what follows " #"; quotes around a concept are no part of it.
    Rows of a csv whose column ``kept`` says false or 0 are left out, so that the table of a run can be edited and used;
    other columns do not matter. Later entries that mean the same concept (singular = plural) are left out. Raises CocuError
    for a missing or empty file, a missing column, or an entry of more than 4 words.
    """
    unique: dict[tuple[str, ...], str] = {}
    for number, entry in enumerate(_entries(path), 1):
        key = concept_key(entry)
        if not key:
            continue
        if not 1 <= count_words(key) <= LONGEST:
            raise CocuError(f"{path}: entry {number}, {quoted(entry.strip())}: a concept has 1 to {LONGEST} words")
        unique.setdefault(key, " ".join(entry.split()))

    if not unique:
        raise CocuError(f"{path}: no concepts in it")
    return list(unique.values())


def _entries(path: str) -> list[str]:
    """The lines, or the fields of the column ``concept``, of a file of concepts."""
    if path.endswith(".parquet"):
        return [entry or "" for entry in _read_parquet(path)["concept"].to_pylist()]
    if path.endswith((".csv", ".tsv")):
        return [unquoted(row["concept"]) for row in read_rows(path) if is_kept(row)]
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in _read_text(path).splitlines())
    return [unquoted(line) for line in lines]


def unquoted(entry: str) -> str:
    """An entry without the quotes around it.

    >>> unquoted(' "wine glass" '), unquoted("the cook's knife")
    ('wine glass', "the cook's knife")
    """
    entry = entry.strip()
    return entry[1:-1].strip() if len(entry) > 1 and QUOTES.get(entry[0]) == entry[-1] else entry


# --- tables -------------------------------------------------------------------------------------------------------------


def is_kept(row: dict[str, str]) -> bool:
    """Whether a row of a table stays: unless its column ``kept`` says no."""
    return row.get("kept", "").strip().lower() not in LEFT_OUT


def read_rows(path: str) -> list[dict[str, str]]:
    """The rows of a csv table that a person may have edited, by its column names, which include ``concept``.

    Columns are separated by commas, semicolons or tabs, as the line of names is. Raises CocuError naming the file.
    """
    text = _read_text(path).replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    lines = [line for line in text.split("\n") if not line.lstrip().startswith("#")]
    names = next((line for line in lines if line.strip()), "")
    delimiter = max(DELIMITERS, key=names.count)
    try:
        table = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter))
    except csv.Error as error:
        raise CocuError(f"{path}: not a csv table ({error})") from None

    rows = [row for row in table if any(field.strip() for field in row)]
    columns = [name.strip().lower() for name in rows[0]] if rows else []
    if "concept" not in columns:
        raise CocuError(f"{path}: no column concept in its first line")
    return [dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=False)) for row in rows[1:]]


def _read_text(path: str) -> str:
    """The text of a file: UTF-8, or UTF-16 where its first bytes say so."""
    with files.open_file(path) as stream:
        content = stream.read()
    try:
        return content.decode(ENCODINGS.get(content[:2], "utf-8-sig"))
    except UnicodeDecodeError:
        raise CocuError(f"{path}: not UTF-8") from None


def _read_parquet(path: str) -> pa.Table:
    with files.open_file(path) as stream:
        content = stream.read()
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise CocuError(f"{path}: not a Parquet file ({one_line(error)})") from None
    if "concept" not in table.column_names:
        raise CocuError(f"{path}: no column concept, only {listed(table.column_names)}")
    if not pa.types.is_string(table["concept"].type) and not pa.types.is_large_string(table["concept"].type):
        raise CocuError(f"{path}: the column concept holds {one_line(table['concept'].type, 80)}, not texts")
    return table


# --- tables with embeddings ---------------------------------------------------------------------------------------------


def read_embeddings(path: str) -> ConceptEmbeddings:
    """Text embeddings of a parquet with columns ``concept`` and ``embedding`` (lists of numbers, of any length above 0).

    A ``vocabulary.parquet`` is one. Raises CocuError, naming the file, for anything else, and for a vector that has no
    direction.
    """
    return _read_embeddings(path, str(files.version(path)))


@lru_cache(maxsize=2)
def _read_embeddings(path: str, version: str) -> ConceptEmbeddings:
    table = _read_parquet(path)
    if "embedding" not in table.column_names:
        raise CocuError(
            f"{path}: no column embedding, only {listed(table.column_names)}; give text embeddings, or name the encoder"
        )
    names = [unquoted(name or "") for name in table["concept"].to_pylist()]
    matrix = _matrix(table["embedding"], path)
    bad = np.flatnonzero(~has_direction(matrix))
    if len(bad):
        raise CocuError(f"{path}: the embedding of {quoted(names[bad[0]])} is zero or not finite")

    rows: dict[tuple[str, ...], int] = {}
    for row, name in enumerate(names):
        rows.setdefault(concept_key(name), row)
    return ConceptEmbeddings(rows, normalise(matrix))


def _matrix(column: pa.ChunkedArray, path: str) -> np.ndarray:
    """A column of lists of one length as (V, D) float64. Raises CocuError for anything else."""
    array = column.combine_chunks()
    kind = array.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise CocuError(f"{path}: the column embedding holds {one_line(kind, 80)}, not lists of numbers")
    values = array.flatten()
    if array.null_count or values.null_count or not len(array):
        raise CocuError(f"{path}: the column embedding is empty, or a value in it is missing")

    width = len(values) // len(array)
    lengths = {kind.list_size} if pa.types.is_fixed_size_list(kind) else set(np.diff(array.offsets.to_numpy()).tolist())
    if lengths != {width} or not width:
        raise CocuError(f"{path}: its embeddings are of different lengths: {listed(sorted(lengths), 4)}")
    return values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, width)
