"""The vocabulary: files that people edit, and what a run stores."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation import vocabulary
from curation.base.embeddings import embedding_array, embedding_matrix, normalise
from curation.base.errors import CocuError
from curation.vocabulary import Vocabulary
from curation.wordlists import read_concepts

# --- files of concepts -------------------------------------------------------------------------------------------------


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_concepts(str(path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "zebra\ndog\nwine glass\n", ["zebra", "dog", "wine glass"]),
        ("c.txt", "\n  dog \r\n\r\n\twine   glass\n\n", ["dog", "wine glass"]),
        ("c.txt", "\ufeffdog\ncat", ["dog", "cat"]),
        ("c.txt", "dogs\ndog\nDog\nmice\nmouse\nMICE", ["dogs", "mice"]),
        ("c.txt", "one two three four", ["one two three four"]),
        ("c.txt", "café\ncafe\u0301", ["café"]),
        ("c", "dog\ncat", ["dog", "cat"]),
        ("c.csv", "concept\ndog\ncat\n", ["dog", "cat"]),
        ("c.csv", "\ufeffconcept,count\ndog,3\n", ["dog"]),
        ("c.csv", "count,concept\r\n3,dog\r\n4,\r\n\r\n5,cat\r\n", ["dog", "cat"]),
        ("c.csv", 'concept,kept\n"wine ""glass""",true\n', ['wine "glass"']),
        (
            "c.csv",
            "concept,kept\na1,true\nb1,false\nc1,True\nd1,FALSE\ne1,1\nf1,0\ng1,\nh1, no \ni1\n",
            ["a1", "c1", "e1", "g1", "i1"],
        ),
    ],
)
def test_concepts_of_a_file(name, content, expected, tmp_path):
    assert read(tmp_path, name, content) == expected


def test_concepts_of_a_parquet_file(tmp_path):
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.table({"count": [1, 2, 3, 4], "concept": ["zebra", " dogs ", "", "dog"]}), path)
    assert read_concepts(path) == ["zebra", "dogs"]


def test_null_concepts_of_a_parquet_file_are_blank_lines(tmp_path):
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.table({"concept": ["dog", None, "cat"]}), path)
    assert read_concepts(path) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.txt", "", "no concepts"),
        ("c.txt", " \n\n", "no concepts"),
        ("c.csv", "", "concept"),
        ("c.csv", "concept,kept\n", "no concepts"),
        ("c.csv", "concept,kept\ndog,false\n", "no concepts"),
        ("c.csv", "name,count\ndog,3\n", "no column concept"),
        ("c.txt", "dog\none two three four five\n", "entry 2, 'one two three four five'"),
        ("c.txt", "...\n", "1 to 4 words"),
        ("c.txt", b"caf\xe9\n", "UTF-8"),
        ("c.parquet", b"junk", "not a Parquet file"),
        ("c.csv", b"concept,kept\nd\rog,true\n", "not a csv table"),  # found by fuzzing
    ],
)
def test_file_without_usable_concepts_is_an_error_naming_it(name, content, words, tmp_path):
    with pytest.raises(CocuError, match=rf"{name}.*{words}") as raised:
        read(tmp_path, name, content)
    assert "\n" not in str(raised.value)


def test_missing_file_and_missing_parquet_column_are_errors_naming_the_file(tmp_path):
    with pytest.raises(CocuError, match=r"nowhere\.txt"):
        read_concepts(str(tmp_path / "nowhere.txt"))
    pq.write_table(pa.table({"name": ["dog"]}), tmp_path / "c.parquet")
    with pytest.raises(CocuError, match=r"c\.parquet.*no column concept.*name"):
        read_concepts(str(tmp_path / "c.parquet"))


CONCEPTS = ["zebra", "wine glass", 'a "b", c', "café"]
COUNTS = np.array([3, 5, 7, 1 << 40])
VISUALNESS = np.array([0.5, np.nan, -0.25, 1.5], np.float32)


def test_report_is_read_back_as_the_concepts_that_were_kept(tmp_path):
    path = str(tmp_path / "report" / "candidates.csv")
    vocabulary.write_report(path, CONCEPTS, COUNTS, VISUALNESS, np.array([True, False, True, True]))
    assert read_concepts(path) == ["café", "zebra", 'a "b", c']  # the most visual first


def test_report_is_a_table_for_people(tmp_path):
    path = tmp_path / "c.csv"
    vocabulary.write_report(
        str(path), ["b", "a", "c"], COUNTS[:3], VISUALNESS[[1, 0, 0]], np.array([False, True, True])
    )
    assert path.read_text().splitlines() == [
        "concept,count,visualness,kept",
        "a,5,0.5000,true",
        "c,7,0.5000,true",
        "b,3,,false",
    ]


def test_report_of_a_built_vocabulary_says_how_often_a_word_is_a_noun_and_why_it_is_not_kept(tmp_path):
    path = tmp_path / "c.csv"
    kept = np.array([False, True, False])
    shares, reasons = np.array([0.0053, 1, np.nan]), ["not a noun", "", "part of ice cream cone"]
    vocabulary.write_report(
        str(path), ["white", "dog", "cream cone"], COUNTS[:3], VISUALNESS[[2, 0, 1]], kept, shares, reasons
    )
    assert path.read_text().splitlines() == [
        "concept,count,noun_share,visualness,kept,reason",
        "dog,5,1.0000,0.5000,true,",
        "white,3,0.0053,-0.2500,false,not a noun",
        "cream cone,7,,,false,part of ice cream cone",
    ]
    assert read_concepts(str(path)) == ["dog"]


def test_concepts_that_are_matched_as_written_are_stored(tmp_path):
    path = str(tmp_path / "vocabulary.parquet")
    eye = np.eye(3, dtype=np.float32)
    stored = Vocabulary(["glass", "glasses", "dog"], eye, COUNTS[:3], VISUALNESS[:3], frozenset({"glasses"}))
    pq.write_table(vocabulary.table_of(stored), path)
    assert vocabulary.table_of(stored)["exact"].to_pylist() == [False, True, False]
    back = vocabulary.read_vocabulary(path)
    assert back.exact == {"glasses"}
    assert back.matcher().match("two dogs, a glass") == [2, 0]
    assert back.matcher().match("with glasses") == [1]


def test_vocabulary_is_stored_in_half_precision_and_read_back_with_unit_norm(tmp_path):
    embeddings = normalise(np.random.default_rng(0).standard_normal((4, 6)))
    table = vocabulary.table_of(Vocabulary(CONCEPTS, embeddings, COUNTS, VISUALNESS))
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 6)
    assert table["visualness"].to_pylist() == [0.5, None, -0.25, 1.5]
    path = str(tmp_path / "vocabulary.parquet")
    pq.write_table(table, path)
    back = vocabulary.read_vocabulary(path)
    assert back.concepts == CONCEPTS
    np.testing.assert_array_equal(back.counts, COUNTS)
    np.testing.assert_array_equal(back.visualness, VISUALNESS)
    assert (back.embeddings.dtype, back.visualness.dtype) == (np.float32, np.float32)
    half = embeddings.astype(np.float16).astype(np.float64)
    np.testing.assert_allclose(back.embeddings, half / np.linalg.norm(half, axis=1)[:, None], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(back.embeddings, axis=1), 1, atol=1e-6)


def test_read_concepts_accepts_the_vocabulary_of_another_run(tmp_path):
    path = str(tmp_path / "vocabulary.parquet")
    table = vocabulary.table_of(Vocabulary(["dog", "cat"], np.eye(2, dtype=np.float32), COUNTS[:2], VISUALNESS[:2]))
    pq.write_table(table, path)
    assert read_concepts(path) == ["dog", "cat"]


def test_missing_vocabulary_is_an_error_naming_it(tmp_path):
    with pytest.raises(CocuError, match=r"vocabulary\.parquet"):
        vocabulary.read_vocabulary(str(tmp_path / "vocabulary.parquet"))


def test_embeddings_of_a_slice_and_of_several_chunks_are_read_in_order():
    embeddings = np.eye(5, dtype=np.float32)
    column = embedding_array(embeddings)
    np.testing.assert_array_equal(embedding_matrix(column[1:3]), embeddings[1:3])
    chunked = pa.chunked_array([column[3:], column[:2]])
    np.testing.assert_array_equal(embedding_matrix(chunked), embeddings[[3, 4, 0, 1]])
