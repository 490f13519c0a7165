"""Concept archives on disk: one Parquet file per shard, one row per sample. Light to import: no Beam, no torch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from curation.base.errors import CocuError
from curation.base.parquet import open_parquet

CONCEPT = pa.struct(
    [
        ("concept", pa.dictionary(pa.int32(), pa.string())),
        ("score", pa.float32()),  # what the list is sorted by, descending
        ("global", pa.float32()),  # relevance to the anchor against the whole archive
        ("local", pa.float32()),  # relevance to the anchor against images whose captions mention the concept
        ("cluster", pa.int16()),
        ("support", pa.int16()),  # retrieved captions that mention the concept
    ]
)
SCHEMA = pa.schema([("key", pa.string()), ("caption", pa.string()), ("concepts", pa.list_(CONCEPT))])


def archive_batch(
    keys: pa.Array,
    captions: pa.Array,
    names: pa.Array,
    offsets: np.ndarray,
    concepts: np.ndarray,
    **columns: np.ndarray,
) -> pa.RecordBatch:
    """Archive rows of a block of anchors.

    keys, captions (B,) and names (V,): string arrays; offsets (B + 1,), concepts (P,): CSR in descending score;
    ``columns``: score, global, local, cluster, support, (P,) each.
    """
    entries = [pa.DictionaryArray.from_arrays(pa.array(concepts, pa.int32()), names)]
    entries += [pa.array(columns[field.name], field.type) for field in list(CONCEPT)[1:]]
    lists = pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(entries, fields=list(CONCEPT))
    )
    return pa.record_batch([keys, captions, lists], schema=SCHEMA)


def read_archive(path: str) -> pa.Table:
    """The archives of one shard: key, caption, concepts, in the order of the tar.

    Raises CocuError when the file is missing or damaged, or holds anything else.
    """
    with open_parquet(path, mapped=True) as file:
        if not file.schema_arrow.equals(SCHEMA):
            raise CocuError(f"{path}: not a concept archive; expected the columns {', '.join(SCHEMA.names)}")
        # Arrow cannot read a dictionary inside a struct over several row groups at once.
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
        return pa.concat_tables(groups) if groups else SCHEMA.empty_table()
