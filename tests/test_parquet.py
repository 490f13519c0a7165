"""Parquet files as they are written: what gets a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.parquet import write_table


def test_what_repeats_has_a_dictionary_and_numbers_that_do_not_have_none(tmp_path) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float16)), 4)
    columns = {
        "caption": pa.array(["a fox", "a fox"]),
        "concepts": pa.array([[1, 2], [2]]),
        "embedding": vectors,
        "scores": pa.array([[0.5], []], pa.list_(pa.float32())),
        "thumbnail": pa.array([b"1", b"2"]),
        "code": pa.array([b"12", b"34"], pa.binary(2)),
        "boxes": pa.array([[{"name": "fox", "share": 0.5}], []]),
    }
    path = tmp_path / "table.parquet"
    write_table(str(path), pa.table(columns), {})

    assert pq.read_table(path).to_pylist() == pa.table(columns).to_pylist()
    group = pq.ParquetFile(path).metadata.row_group(0)
    written = [group.column(number) for number in range(group.num_columns)]
    dictionaries = {column.path_in_schema for column in written if "RLE_DICTIONARY" in column.encodings}
    assert dictionaries == {"caption", "concepts.list.element", "boxes.list.element.name"}
