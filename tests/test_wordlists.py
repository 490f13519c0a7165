"""Files of concepts as people and programs write them, and their embeddings."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.base.errors import CocuError
from curation.wordlists import is_kept, read_concepts, read_embeddings, read_rows


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "# animals\ndog # the animal\n#cat\n", ["dog"]),
        ("c.txt", "\"wine glass\"\n'dog'\n“T-shirt”\nchef's knife\n", ["wine glass", "dog", "T-shirt", "chef's knife"]),
        ("c.txt", "dog\rcat\r", ["dog", "cat"]),
        ("c.txt", "White House\nwhite houses\n", ["White House"]),  # as it is written, matched in any case
        ("c.txt", "dog\r\ncat\r\n".encode("utf-16"), ["dog", "cat"]),
        ("c.csv", "concept\rdog\rcat\r", ["dog", "cat"]),
        ("c.csv", '# mine\nconcept,why\n# pets\ndog,"barks, ""loudly"""\ncat\n', ["dog", "cat"]),
        ("c.csv", "Concept ; notes;kept\nwine glass;a, b;\ncat;;NO\n", ["wine glass"]),
        ("c.tsv", "count\tconcept\n3\t'dog'\n", ["dog"]),
        ("c.csv", "\n\nconcept,kept\ndog,f\ncat,t\n", ["cat"]),
    ],
)
def test_concepts_are_read_as_people_write_them(name, content, expected, tmp_path):
    assert read_concepts(write(tmp_path, name, content)) == expected


def test_rows_of_a_table_have_all_columns_and_say_whether_they_are_kept(tmp_path):
    rows = read_rows(write(tmp_path, "v.csv", "\ufeffconcept,count,kept\ndog,3\ncat,2,False\n"))
    assert rows == [{"concept": "dog", "count": "3", "kept": ""}, {"concept": "cat", "count": "2", "kept": "False"}]
    assert [is_kept(row) for row in rows] == [True, False]


# --- embeddings -----------------------------------------------------------------------------------------------------------

VECTORS = [[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]
NAMES = ["dogs", "wine glass", "Dog"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(VECTORS, pa.list_(pa.float64())),
        pa.array(VECTORS, pa.list_(pa.float32())),
        pa.array(VECTORS, pa.large_list(pa.float32())),
        pa.array([np.array(row, np.float16) for row in VECTORS], pa.list_(pa.float16(), 2)),
        pa.array([[3, 4], [0, 2], [1, 0]], pa.list_(pa.int64())),
    ],
    ids=str,
)
def test_embeddings_of_any_column_of_vectors(column, tmp_path):
    path = str(tmp_path / "e.parquet")
    pq.write_table(pa.table({"concept": NAMES, "embedding": column, "more": [1, 2, 3]}), path)
    given = read_embeddings(path)
    assert given.width == 2
    assert given.find(["dog", "Wine Glasses", "cat"]).tolist() == [0, 1, -1]  # the first of two that are one concept
    assert given.embeddings == pytest.approx(np.array([[0.6, 0.8], [0, 1], [1, 0]]))
    assert given.embeddings.dtype == np.float32


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"concept": ["dog"]}, "no column embedding, only concept"),
        ({"name": ["dog"], "embedding": [[1.0]]}, "no column concept"),
        ({"concept": [1], "embedding": [[1.0]]}, "holds int64, not texts"),
        ({"concept": ["dog"], "embedding": [1.0]}, "holds double, not lists"),
        ({"concept": ["dog"], "embedding": [["x"]]}, "not lists of numbers"),
        ({"concept": ["dog", "cat"], "embedding": [[1.0, 2.0], [1.0]]}, "different lengths: 1, 2"),
        ({"concept": ["dog", "cat"], "embedding": [[1.0], None]}, "a value in it is missing"),
        ({"concept": ["dog", "cat"], "embedding": [[1.0], [None]]}, "a value in it is missing"),
        ({"concept": ["dog", "cat"], "embedding": [[1.0, 1.0], [0.0, 0.0]]}, "of 'cat' is zero or not finite"),
        ({"concept": ["dog"], "embedding": [[float("nan"), 1.0]]}, "of 'dog' is zero or not finite"),
    ],
)
def test_embeddings_that_cannot_be_used_are_errors_naming_the_file(table, words, tmp_path):
    path = str(tmp_path / "e.parquet")
    pq.write_table(pa.table(table), path)
    with pytest.raises(CocuError, match=f"e.parquet.*{words}"):
        read_embeddings(path)
