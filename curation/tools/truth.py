"""What is visible in the images of a run: from json sidecars of its tars, or from a file that people or data sets give."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError, listed
from curation.base.parquet import open_parquet
from curation.base.ragged import Ragged
from curation.concepts import Matcher, concept_key
from curation.run.run import Run, tar_of
from curation.samples import read_sidecars
from curation.tools.labels import Labels, read_labels, rows_of_keys
from curation.tools.quality import LabelledData


class NoTruthError(CocuError):
    """Data of which nothing says what is visible."""


def read_labelled(run: Run, fields: list[str]) -> LabelledData:
    """Embeddings, captions and truth of a finished run. Raises NoTruthError where the sidecars lack the fields."""
    if run.config.embeddings:
        raise NoTruthError(
            "measure: the run was made from imported embeddings, which have no json sidecars; give a file of the truth "
            "with --truth"
        )
    tables = _tables(run)
    ids = _ids(run)
    visible: list[list[int]] = []
    for shard, rows in zip(run.shards, tables, strict=True):
        of_key = {key: _known(names, ids) for key, names in _sidecars(tar_of(run, shard), fields)}
        missing = next((key for key in rows["key"].to_pylist() if key not in of_key), None)
        if missing is not None:
            raise NoTruthError(f"{shard.path}: key {missing} has no json sidecar with {' or '.join(fields)}")
        visible += [of_key[key] for key in rows["key"].to_pylist()]
    table = pa.concat_tables(tables).combine_chunks()
    return _labelled(table, np.arange(len(table)), visible)


def read_labelled_by(run: Run, path: str) -> LabelledData:
    """Embeddings and captions of the images of a finished run of which a file says what is visible.

    The file has concepts or captions by key (see :func:`curation.tools.labels.read_labels`); what a caption mentions of the
    run's vocabulary is visible. Raises NoTruthError where no key of the file is one of the run.
    """
    labels = read_labels(path)
    table = pa.concat_tables(_tables(run)).combine_chunks()
    keys = table["key"].to_pylist()
    rows, found = rows_of_keys(keys, list(labels.of_key))
    if not len(rows):
        raise NoTruthError(
            f"{path}: none of its keys ({listed(labels.of_key, 2)}) is a key of {run.folder} ({listed(keys, 2)})"
        )

    ids = _ids(run)
    matcher = Matcher(list(_names(run)))
    visible = [_visible(labels.of_key[key], ids, matcher) for key in found]
    judged = None if labels.judged is None else np.array(_known(labels.judged, ids), np.int64)
    return _labelled(table, rows, visible, judged)


def _tables(run: Run) -> list[pa.Table]:
    tables = []
    for path in run.of_shards("embeddings"):
        with open_parquet(path) as file:
            tables.append(file.read())
    return tables


def _names(run: Run) -> list[str]:
    with open_parquet(run.vocabulary) as file:
        return file.read(["concept"])["concept"].to_pylist()


def _ids(run: Run) -> dict[tuple[str, ...], int]:
    """Concept ids of the vocabulary, to which :func:`_known` adds those of other concepts."""
    return {concept_key(name): number for number, name in enumerate(_names(run))}


def _known(names: Iterable[str], ids: dict[tuple[str, ...], int]) -> list[int]:
    return sorted({ids.setdefault(concept_key(name), len(ids)) for name in names})


def _visible(labels: Labels, ids: dict[tuple[str, ...], int], matcher: Matcher) -> list[int]:
    """The ids of what is listed, and of what captions mention."""
    mentioned = (concept for caption in labels.captions for concept in matcher.match(caption))
    return sorted({*_known(labels.concepts, ids), *mentioned})


def _labelled(
    table: pa.Table, rows: np.ndarray, visible: list[list[int]], judged: np.ndarray | None = None
) -> LabelledData:
    chosen = table.take(pa.array(rows)).combine_chunks()
    mentioned = Ragged.from_arrow(chosen["concepts"].chunk(0))
    images = embedding_matrix(chosen["embedding"])
    return LabelledData(images, chosen["caption"].to_pylist(), mentioned, Ragged.from_lists(visible), rows, judged)


def _sidecars(path: str, fields: list[str]) -> Iterator[tuple[str, list[str]]]:
    for key, content in read_sidecars(path):
        try:
            sidecar: Any = json.loads(content)
        except ValueError as error:
            raise CocuError(f"{path}: key {key}: the json sidecar is not JSON ({error})") from None
        if not isinstance(sidecar, Mapping):
            raise CocuError(f"{path}: key {key}: the json sidecar is not an object")
        if any(field in sidecar for field in fields):
            yield key, [name for field in fields for name in sidecar.get(field, [])]
