"""The vocabulary Ω of visual concepts (docs/method.md §1): as it is stored, and as a table for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.embeddings import embedding_array, embedding_matrix
from curation.base.parquet import check_columns, open_parquet, read_columns
from curation.concepts import Matcher


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


# --- the table of candidates, for people to read -------------------------------------------------------------------------


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
