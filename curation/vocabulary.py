"""The vocabulary Ω of visual concepts (docs/method.md §1): read from a file or built, and stored."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import files
from curation.base.embeddings import embedding_array, embedding_matrix
from curation.base.errors import CocuError, listed, one_line, quoted
from curation.base.parquet import check_columns, open_parquet, read_columns
from curation.concepts import LONGEST, Matcher, concept_key, count_words


@dataclass(frozen=True)
class Vocabulary:
    """Concepts by id: the position in every field."""

    concepts: list[str]
    embeddings: np.ndarray  # (V, D) float32, unit rows: t_c
    counts: np.ndarray  # (V,) int64: captions that mention the concept
    visualness: np.ndarray  # (V,) float32: Cohen's d, NaN where it could not be measured
    exact: frozenset[str] = frozenset()  # concepts that are matched as they are written, not in the singular

    def matcher(self) -> Matcher:
        """Finds these concepts in captions."""
        return Matcher(self.concepts, self.exact)


# --- files of concepts, for people to write ----------------------------------------------------------------------------


def read_concepts(path: str) -> list[str]:
    """Concepts of a file, in order: ``.txt`` one a line, ``.csv`` or ``.parquet`` with a column ``concept``.

    A csv's rows whose column ``kept`` says false or 0 are left out, so that the table of a run can be edited and used.
    Later entries that mean the same concept (singular = plural) are left out. Raises CocuError for a missing or
    empty file, a missing column, or an entry of more than 4 words.
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
    with files.open_file(path) as stream:
        content = stream.read()
    if path.endswith(".parquet"):
        return _parquet_entries(content, path)

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CocuError(f"{path}: not UTF-8") from None
    if not path.endswith(".csv"):
        return text.splitlines()
    try:
        return list(_csv_entries(text, path))
    except csv.Error as error:
        raise CocuError(f"{path}: not a csv table ({error})") from None


def _parquet_entries(content: bytes, path: str) -> list[str]:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise CocuError(f"{path}: not a Parquet file ({one_line(error)})") from None
    if "concept" not in table.column_names:
        raise CocuError(f"{path}: no column concept, only {listed(table.column_names)}")
    return [entry or "" for entry in table["concept"].to_pylist()]


def _csv_entries(text: str, path: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text))
    if "concept" not in (rows.fieldnames or ()):
        raise CocuError(f"{path}: no column concept in its first line")
    for row in rows:
        if (row.get("kept") or "true").strip().lower() not in ("false", "0", "no"):
            yield row["concept"] or ""


def write_report(
    path: str,
    concepts: list[str],
    counts: np.ndarray,
    visualness: np.ndarray,
    kept: np.ndarray,
    noun_share: np.ndarray | None = None,
    reasons: Sequence[str] = (),
) -> None:
    """The table of all candidates, the most visual first, for people to read, edit and give back as ``source``.

    ``noun_share`` and ``reasons``, why a candidate is not kept, are of a vocabulary that was built.
    """
    columns: dict[str, Sequence[object]] = {"concept": concepts, "count": counts.tolist()}
    if noun_share is not None:
        columns["noun_share"] = _decimals(noun_share)
    columns |= {"visualness": _decimals(visualness), "kept": [str(bool(stays)).lower() for stays in kept]}
    if noun_share is not None:
        columns["reason"] = reasons

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in np.lexsort((np.arange(len(concepts)), -np.nan_to_num(visualness, nan=-np.inf))):
        writer.writerow([column[row] for column in columns.values()])
    with files.atomic_write(path) as stream:
        stream.write(text.getvalue().encode())


def _decimals(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.4f}" for value in values]


# --- vocabulary.parquet ------------------------------------------------------------------------------------------------


def table_of(vocabulary: Vocabulary) -> pa.Table:
    """``vocabulary.parquet``: concept, count, visualness, embedding; the row number is the concept id.

    Where some concepts are matched as they are written, a column ``exact`` says which.
    """
    columns = {
        "concept": pa.array(vocabulary.concepts, pa.string()),
        "count": pa.array(vocabulary.counts, pa.int64()),
        "visualness": pa.array(vocabulary.visualness, pa.float32(), from_pandas=True),
        "embedding": embedding_array(vocabulary.embeddings),
    }
    if vocabulary.exact:
        columns["exact"] = pa.array([concept in vocabulary.exact for concept in vocabulary.concepts], pa.bool_())
    return pa.table(columns)


def read_vocabulary(path: str) -> Vocabulary:
    """Read ``vocabulary.parquet`` back. Raises CocuError when it is missing or damaged."""
    kinds = {"concept": pa.string(), "count": pa.int64(), "embedding": None}
    table = read_columns(path, kinds)
    with open_parquet(path) as file:  # NaN where it could not be measured
        check_columns(file, ["visualness"], path)
        visualness = file.read(["visualness"])["visualness"].cast(pa.float32())
        has_exact = "exact" in file.schema_arrow.names
    concepts = table["concept"].to_pylist()
    exact = read_columns(path, {"exact": pa.bool_()})["exact"].to_pylist() if has_exact else []
    return Vocabulary(
        concepts,
        embedding_matrix(table["embedding"]),
        table["count"].to_numpy(),
        visualness.to_numpy(zero_copy_only=False),
        frozenset(concept for concept, is_exact in zip(concepts, exact, strict=False) if is_exact),
    )
