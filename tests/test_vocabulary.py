"""The vocabulary: nouns of captions, visualness and calibration against slow formulas, files that people edit."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import vocabulary
from curation.base.errors import CocuError
from curation.concepts import Matcher
from curation.config import VocabularyConfig
from curation.similarity import normalise
from curation.vocabulary import Vocabulary

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
        ("a/n dog/n", {"dog"}),  # one letter is no noun, and it ends a run
        ("dog/n x/n cat/n", {"dog", "cat"}),
        ("2024/n ½/n dog/n", {"dog"}),
        ("cat/n !!!/n dog/n", {"cat", "dog"}),
        ("t-shirt/n", {"t-shirt"}),
    ],
)
def test_nouns_and_compounds_of_tagged_tokens(text, expected):
    assert phrases(text) == expected


def test_compounds_have_four_words_at_most():
    found = phrases("stone/n wall/n garden/n gate/n lock/n")
    words = ["stone", "wall", "garden", "gate", "lock"]
    assert found == {" ".join(words[a:b]) for a in range(5) for b in range(a + 1, min(a + 4, 5) + 1)}


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["dogs", "mice", "glasses", "species", "data", "axes", ",", "t-shirts"]), st.booleans()
        )
    )
)
def test_every_phrase_is_found_again_in_its_own_caption(tagged):
    found = sorted(vocabulary.noun_phrases(tagged))
    matched = Matcher(found).match(" ".join(text for text, _ in tagged))
    assert {found[identifier] for identifier in matched} == set(found)


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


# --- visualness --------------------------------------------------------------------------------------------------------


def make_block(seed, images=40, texts=7, dimensions=5, sampled=15):
    """Random images, texts, CSR concepts and a random sample. No caption mentions the last concept."""
    random = np.random.default_rng(seed)
    lists = [random.permutation(texts - 1)[: random.integers(0, texts - 1)] for _ in range(images)]
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in lists])]).astype(np.int64)
    concepts = np.concatenate(lists).astype(np.int32)
    sample = np.sort(random.choice(images, sampled, replace=False))
    return (
        normalise(random.standard_normal((images, dimensions))),
        normalise(random.standard_normal((texts, dimensions))),
        offsets,
        concepts,
        sample,
    )


def values_of(images, texts, offsets, concepts, sample):
    """For each concept: cosines of [images that mention it, sampled images, both], by a loop."""
    chosen = set(sample.tolist())
    found = [[[], [], []] for _ in texts]
    for row, image in enumerate(images.astype(np.float64)):
        mentioned = concepts[offsets[row] : offsets[row + 1]].tolist()
        for concept, text in enumerate(texts.astype(np.float64)):
            cosine = float(image @ text)
            for kind, holds in enumerate((concept in mentioned, row in chosen, concept in mentioned and row in chosen)):
                if holds:
                    found[concept][kind].append(cosine)
    return found


def slow_sums(block):
    return np.array([[[len(v), sum(v), sum(x * x for x in v)] for v in kinds] for kinds in values_of(*block)])


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_a_slow_loop(seed):
    block = make_block(seed)
    sums = vocabulary.image_text_sums(*block)
    assert sums.shape == (7, 3, 3)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, slow_sums(block), atol=1e-5)


@pytest.mark.parametrize("cut", [0, 1, 17, 40])
def test_sums_of_blocks_add_up(cut):
    images, texts, offsets, concepts, sample = make_block(3)
    at = offsets[cut]
    first = vocabulary.image_text_sums(images[:cut], texts, offsets[: cut + 1], concepts[:at], sample[sample < cut])
    second = vocabulary.image_text_sums(
        images[cut:], texts, offsets[cut:] - at, concepts[at:], sample[sample >= cut] - cut
    )
    whole = vocabulary.image_text_sums(images, texts, offsets, concepts, sample)
    np.testing.assert_allclose(first + second, whole, atol=1e-5)


def cohens_d(mentioned, others):
    if min(len(mentioned), len(others)) < 2:
        return math.nan
    pooled = math.sqrt((np.var(mentioned, ddof=1) + np.var(others, ddof=1)) / 2)
    return (np.mean(mentioned) - np.mean(others)) / pooled


@pytest.mark.parametrize("seed", range(4))
def test_effect_size_is_cohens_d_of_the_raw_values(seed):
    block = make_block(seed, images=60, sampled=30)
    images, texts, offsets, concepts, sample = block
    mentions = np.zeros((len(images), len(texts)), bool)
    mentions[np.repeat(np.arange(len(images)), np.diff(offsets)), concepts] = True
    cosines = images.astype(np.float64) @ texts.astype(np.float64).T
    chosen = np.isin(np.arange(len(images)), sample)
    expected = [cohens_d(cosines[mentions[:, c], c], cosines[chosen & ~mentions[:, c], c]) for c in range(len(texts))]
    found = vocabulary.effect_sizes(vocabulary.image_text_sums(*block))
    assert found.dtype == np.float32
    assert np.isfinite(found[:-1]).all()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def sums_of(mentioned, sampled, both):
    return np.array([[[len(v), sum(v), sum(x * x for x in v)] for v in (mentioned, sampled, both)]], float)


@pytest.mark.parametrize(
    ("mentioned", "sampled", "both", "known"),
    [
        ([], [0.1, 0.2, 0.3], [], False),
        ([0.5], [0.1, 0.2, 0.3], [], False),
        ([0.5, 0.6], [0.1], [], False),
        ([0.5, 0.6], [], [], False),
        ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], False),  # every sampled image mentions it
        ([0.1, 0.2, 0.5], [0.1, 0.2, 0.3], [0.1, 0.2], False),  # one other image
        ([0.5, 0.6], [0.1, 0.2], [], True),
        ([0.1, 0.5], [0.1, 0.2, 0.3], [0.1], True),
    ],
)
def test_effect_size_is_nan_where_a_side_has_fewer_than_two_images(mentioned, sampled, both, known):
    (found,) = vocabulary.effect_sizes(sums_of(mentioned, sampled, both))
    assert np.isfinite(found) == known
    if known:
        assert found == pytest.approx(cohens_d(mentioned, [v for v in sampled if v not in both]), rel=1e-5)


def test_effect_size_without_any_variance_is_finite():
    assert np.isfinite(vocabulary.effect_sizes(sums_of([0.5, 0.5], [0.25, 0.25], []))).all()
    assert vocabulary.effect_sizes(sums_of([0.5, 0.5], [0.5, 0.5], [])) == 0


def test_calibration_is_mean_and_deviation_over_the_sample():
    images, texts, _, _, sample = block = make_block(5)
    cosines = (images[sample].astype(np.float64) @ texts.astype(np.float64).T).T
    found = vocabulary.calibration(vocabulary.image_text_sums(*block))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack([cosines.mean(1), cosines.std(1)], axis=1), rtol=1e-4, atol=1e-6)


def test_calibration_never_divides_by_zero():
    found = vocabulary.calibration(np.concatenate([sums_of([], [], []), sums_of([], [0.3, 0.3], [])]))
    assert np.isfinite(found).all()
    assert (found[:, 1] > 0).all()


def test_keep_needs_the_count_and_the_visualness():
    counts = np.array([10, 9, 10, 10, 10])
    visualness = np.array([0.3, 9, 0.2, np.nan, -1], np.float32)
    assert vocabulary.keep(counts, visualness, 10, 0.25).tolist() == [True, False, False, False, False]
    assert vocabulary.keep(counts, visualness, 10, -2).tolist() == [True, False, True, False, True]
    assert vocabulary.keep(counts, visualness, 10, None).tolist() == [True, False, True, True, True]
    assert vocabulary.keep(counts, visualness, 0, None).dtype == bool


# --- files of concepts -------------------------------------------------------------------------------------------------


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return vocabulary.read_concepts(str(path))


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
    assert vocabulary.read_concepts(path) == ["zebra", "dogs"]


def test_null_concepts_of_a_parquet_file_are_blank_lines(tmp_path):
    path = str(tmp_path / "c.parquet")
    pq.write_table(pa.table({"concept": ["dog", None, "cat"]}), path)
    assert vocabulary.read_concepts(path) == ["dog", "cat"]


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
        ("c.parquet", b"junk", "parquet"),
        ("c.csv", b"concept,kept\nd\rog,true\n", "not a csv table"),  # found by fuzzing
    ],
)
def test_file_without_usable_concepts_is_an_error_naming_it(name, content, words, tmp_path):
    with pytest.raises(CocuError, match=rf"{name}.*{words}") as raised:
        read(tmp_path, name, content)
    assert "\n" not in str(raised.value)


def test_missing_file_and_missing_parquet_column_are_errors_naming_the_file(tmp_path):
    with pytest.raises(CocuError, match=r"nowhere\.txt"):
        vocabulary.read_concepts(str(tmp_path / "nowhere.txt"))
    pq.write_table(pa.table({"name": ["dog"]}), tmp_path / "c.parquet")
    with pytest.raises(CocuError, match=r"c\.parquet.*no column concept.*name"):
        vocabulary.read_concepts(str(tmp_path / "c.parquet"))


CONCEPTS = ["zebra", "wine glass", 'a "b", c', "café"]
COUNTS = np.array([3, 5, 7, 1 << 40])
VISUALNESS = np.array([0.5, np.nan, -0.25, 1.5], np.float32)


def test_report_is_read_back_as_the_concepts_that_were_kept(tmp_path):
    path = str(tmp_path / "report" / "candidates.csv")
    vocabulary.write_report(path, CONCEPTS, COUNTS, VISUALNESS, np.array([True, False, True, True]))
    assert vocabulary.read_concepts(path) == ["café", "zebra", 'a "b", c']  # the most visual first


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
    assert vocabulary.read_concepts(path) == ["dog", "cat"]


def test_missing_vocabulary_is_an_error_naming_it(tmp_path):
    with pytest.raises(CocuError, match=r"vocabulary\.parquet"):
        vocabulary.read_vocabulary(str(tmp_path / "vocabulary.parquet"))


def test_embeddings_of_a_slice_and_of_several_chunks_are_read_in_order():
    embeddings = np.eye(5, dtype=np.float32)
    column = vocabulary.embedding_array(embeddings)
    np.testing.assert_array_equal(vocabulary.embedding_matrix(column[1:3]), embeddings[1:3])
    chunked = pa.chunked_array([column[3:], column[:2]])
    np.testing.assert_array_equal(vocabulary.embedding_matrix(chunked), embeddings[[3, 4, 0, 1]])
