"""The vocabulary: nouns of captions, and files that people edit."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import vocabulary
from curation.base.embeddings import embedding_array, embedding_matrix, normalise
from curation.base.errors import CocuError
from curation.concepts import Matcher
from curation.config import VocabularyConfig
from curation.vocabulary import Vocabulary
from curation.wordlists import read_concepts

# --- nouns -------------------------------------------------------------------------------------------------------------


def phrases(text):
    """noun_phrases of "word/n word ...": /n marks a noun."""
    tagged = [(part.removesuffix("/n"), part.endswith("/n")) for part in text.split()]
    return vocabulary.noun_phrases(tagged)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("runs fast", set()),
        ("a dog/n runs", {"dog"}),
        ("two dogs/n and a dog/n", {"dog"}),
        ("dog/n , cat/n", {"dog", "cat"}),
        ("dog/n in a park/n", {"dog", "park"}),
        (
            "chocolate/n birthday/n cake/n",
            {"chocolate", "birthday", "cake", "chocolate birthday", "birthday cake", "chocolate birthday cake"},
        ),
        ("wine/n glasses/n", {"wine", "glass", "wine glass"}),
        ("a/n dog/n", {"dog"}),  # one letter is not a noun, and it ends a run
        ("dog/n x/n cat/n", {"dog", "cat"}),
        ("2024/n ½/n dog/n", {"dog"}),
        ("cat/n !!!/n dog/n", {"cat", "dog"}),
        ("t-shirt/n", {"t-shirt"}),
    ],
)
def test_nouns_and_compounds_of_tagged_tokens(text, expected):
    assert phrases(text) == expected


def test_compounds_have_four_words_at_most():
    compounds = phrases("stone/n wall/n garden/n gate/n lock/n")
    words = ["stone", "wall", "garden", "gate", "lock"]
    assert compounds == {" ".join(words[a:b]) for a in range(5) for b in range(a + 1, min(a + 4, 5) + 1)}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["dogs", "mice", "glasses", "species", "data", "axes", ",", "t-shirts"]), st.booleans()
        )
    )
)
def test_every_phrase_is_found_again_in_its_own_caption(tagged):
    nouns = sorted(vocabulary.noun_phrases(tagged))
    matched = Matcher(nouns).match(" ".join(text for text, _ in tagged))
    assert {nouns[identifier] for identifier in matched} == set(nouns)


def test_count_nouns_counts_captions_not_mentions():
    captions = [
        "A dog and another dog in the grass.",
        "Two dogs are sleeping on a sofa.",
        "The cat sat on the sofa.",
        "",
    ]
    counts = vocabulary.count_nouns(captions, VocabularyConfig().tagger)
    assert {noun: counts[noun] for noun in ("dog", "sofa", "grass", "cat")} == {
        "dog": 2,
        "sofa": 2,
        "grass": 1,
        "cat": 1,
    }
    assert not {"dogs", "the", "on", "a", ".", "sleeping", ""} & set(counts)


def test_count_nouns_finds_compounds_and_takes_captions_as_a_stream():
    counts = vocabulary.count_nouns(
        iter(["A chocolate birthday cake on a wooden table"] * 3), VocabularyConfig().tagger
    )
    assert {"cake", "table", "birthday cake"} <= set(counts)
    assert set(counts.values()) == {3}


def test_tagger_that_is_not_installed_is_an_error_naming_it():
    with pytest.raises(CocuError, match="no_such_tagger"):
        vocabulary.count_nouns(["a dog"], "no_such_tagger")


def test_candidates_are_frequent_first_then_alphabetical():
    counts = Counter({"zebra": 5, "cat": 9, "ant": 5, "rare": 4, "bee": 5})
    assert vocabulary.choose_candidates(counts, 5) == ["cat", "ant", "bee", "zebra"]
    assert vocabulary.choose_candidates(Counter(dict(reversed(counts.items()))), 5) == ["cat", "ant", "bee", "zebra"]
    assert vocabulary.choose_candidates(counts, 10) == []


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
