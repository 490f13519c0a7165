"""Concepts of captions (docs/method.md §1): whole tokens, singular equals plural, every nested match, in a fixed order."""

import os
import random
import subprocess
import sys
import unicodedata
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base.errors import CocuError
from curation.concepts import LONGEST, Matcher, concept_key, count_words, singular, tokens

# --- singular ----------------------------------------------------------------------------------------------------------

SINGULARS = {
    # regular
    "dogs": "dog",
    "days": "day",
    "trees": "tree",
    "photos": "photo",
    "boxes": "box",
    "churches": "church",
    "dishes": "dish",
    "houses": "house",
    "horses": "horse",
    "shoes": "shoe",
    "potatoes": "potato",
    "movies": "movie",
    "ties": "tie",
    "babies": "baby",
    "cherries": "cherry",
    "monkeys": "monkey",
    "gloves": "glove",
    "waves": "wave",
    "skis": "ski",
    "sofas": "sofa",
    "glasses": "glass",
    "dresses": "dress",
    "buses": "bus",
    "canvases": "canvas",
    "irises": "iris",
    "octopuses": "octopus",
    "fishes": "fish",
    "lenses": "lens",
    "axes": "axe",
    "snowmen": "snowman",
    # irregular
    "mice": "mouse",
    "children": "child",
    "knives": "knife",
    "leaves": "leaf",
    "wolves": "wolf",
    "shelves": "shelf",
    "calves": "calf",
    "men": "man",
    "women": "woman",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "oxen": "ox",
    "cacti": "cactus",
    "crises": "crisis",
    "quizzes": "quiz",
    # of three letters, hyphenated, agents
    "tvs": "tv",
    "cds": "cd",
    "rvs": "rv",
    "ads": "ad",
    "t-shirts": "t-shirt",
    "sun-glasses": "sun-glass",
    "bikers": "biker",
    "skateboarders": "skateboarder",
    # unknown to WordNet
    "headdresses": "headdress",
    "smartphones": "smartphone",
    "hoverboards": "hoverboard",
    "selfies": "selfie",
}
# fmt: off
UNCHANGED = [
    "dog", "bus", "ski", "lens", "axe", "axis", "glass", "grass", "dress", "boss",
    "chess", "cross", "canvas", "news", "sheep", "deer", "moose", "fish", "octopus", "cactus",
    "walrus", "hippopotamus", "virus", "christmas", "series", "scissors", "tennis", "iris", "atlas", "gas",
    "campus", "asparagus", "hummus", "paris", "leaf", "mouse", "child", "knife", "people", "house",
    "horse", "shoe", "tree", "as", "is", "us", "was", "this", "his",
    "has", "its", "yes", "70s", "gps", "cola", "dive", "crying", "stamina",
]
# fmt: on


@pytest.mark.parametrize(("plural", "expected"), SINGULARS.items())
def test_plural_becomes_singular_and_singular_stays(plural, expected):
    assert singular(plural) == expected
    assert singular(expected) == expected


@pytest.mark.parametrize("word", UNCHANGED)
def test_singular_is_unchanged_even_when_it_ends_in_s(word):
    assert singular(word) == word


@pytest.mark.parametrize("token", ["", "s", "'s", "ss", ".", "🐶", "4s", "犬"])
def test_marks_and_short_tokens_are_unchanged(token):
    assert singular(token) == token


# --- tokens ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\t ", []),
        ("A Dog, a CAT.", ["a", "dog", ",", "a", "cat", "."]),
        ("dog\ncat\u00a0cow", ["dog", "cat", "cow"]),
        # contractions and possessives
        ("the dog's bone", ["the", "dog", "'s", "bone"]),
        ("the dog’s bone", ["the", "dog", "'s", "bone"]),
        ("the dogs' bowls", ["the", "dogs", "'", "bowls"]),
        ("don't", ["don", "'", "t"]),
        ("o'shea", ["o", "'", "shea"]),  # 's begins a longer word: not a possessive
        # hyphens
        ("a t-shirt", ["a", "t-shirt"]),
        ("black-and-white", ["black-and-white"]),
        ("well- -worn --", ["well", "-", "-", "worn", "-", "-"]),
        ("dog—cat", ["dog", "—", "cat"]),
        # marks
        ("snake_case", ["snake", "_", "case"]),
        ("3.5 kg", ["3", ".", "5", "kg"]),
        ("#dog@home", ["#", "dog", "@", "home"]),
        ("🐶dog", ["🐶", "dog"]),
        # Unicode
        ("CAFE\u0301", ["café"]),
        ("café", ["café"]),
        ("ｄｏｇ ＤＯＧ", ["dog", "dog"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("ﬁsh", ["fish"]),
        ("ΣΊΣΥΦΟΣ", ["σίσυφοσ"]),
        ("犬と猫", ["犬と猫"]),
    ],
)
def test_tokens_of_a_text(text, expected):
    assert tokens(text) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_no_token_holds_a_space_and_no_character_is_lost(text):
    cut = tokens(text)
    assert all(token and not any(character.isspace() for character in token) for token in cut)
    assert "".join(cut) == "".join(unicodedata.normalize("NFKC", text).casefold().split())


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(max_codepoint=127), max_size=20))
def test_ascii_captions_are_cut_as_others_are(text):
    assert tokens(text + " é")[:-1] == tokens(text)  # the short cut for ASCII gives what the long way gives


@pytest.mark.parametrize(
    ("key", "words"), [(["bird", "'s", "nest"], 2), ([",", "."], 0), (["t-shirt"], 1), (["3", "d", "printer"], 3)]
)
def test_words_are_counted_without_marks(key, words):
    assert count_words(key) == words


# --- matching ----------------------------------------------------------------------------------------------------------


def mentioned(caption, *concepts):
    concepts = list(concepts)
    return [concepts[identifier] for identifier in Matcher(concepts).match(caption)]


def oracle(caption: str, concepts: list[str]) -> set[int]:
    """docs/method.md §1, slowly: every run of 1 to 4 whole tokens of the caption, compared in the singular."""
    words = [singular(token) for token in tokens(caption)]
    runs = {
        tuple(words[start : start + length])
        for length in range(1, LONGEST + 1)
        for start in range(len(words) - length + 1)
    }
    return {identifier for identifier, concept in enumerate(concepts) if tuple(map(singular, tokens(concept))) in runs}


WORDS = ["dog", "dogs", "mouse", "mice", "cat", "cats", "bus", "buses", "glass", "glasses"]
SINGULAR_WORDS = ["dog", "mouse", "cat", "bus", "glass"]
caption_parts = st.lists(st.sampled_from([*WORDS, *map(str.upper, WORDS), ",", ".", "-", "'s", "the", "catdog", "🐶"]))
captions = st.tuples(caption_parts, st.sampled_from([" ", "  ", "\n"])).map(lambda drawn: drawn[1].join(drawn[0]))
vocabularies = st.lists(
    st.lists(st.sampled_from(SINGULAR_WORDS), min_size=1, max_size=LONGEST).map(" ".join), unique=True, max_size=12
)


@settings(max_examples=300, deadline=None)
@given(captions, vocabularies)
def test_matches_are_all_runs_of_tokens_and_nothing_else(caption, concepts):
    matched = Matcher(concepts).match(caption)
    assert set(matched) == oracle(caption, concepts)
    assert len(matched) == len(set(matched))


@settings(max_examples=100, deadline=None)
@given(captions, vocabularies, st.randoms(use_true_random=False))
def test_order_of_mention_does_not_depend_on_the_order_of_the_vocabulary(caption, concepts, shuffler):
    shuffled = random.Random(shuffler.random()).sample(concepts, len(concepts))
    assert mentioned(caption, *shuffled) == mentioned(caption, *concepts)


@settings(max_examples=100, deadline=None)
@given(captions, vocabularies)
def test_order_is_the_first_mention_and_there_the_longest_first(caption, concepts):
    words = [singular(token) for token in tokens(caption)]

    def first_mention(identifier):
        key = list(concept_key(concepts[identifier]))
        return next(at for at in range(len(words)) if words[at : at + len(key)] == key), -len(key)

    matched = Matcher(concepts).match(caption)
    assert matched == sorted(matched, key=first_mention)


@pytest.mark.parametrize("caption", ["concatenate", "scattered", "a catalogue", "cat-like", "bobcat", "catcat", "écat"])
def test_part_of_a_word_is_never_a_match(caption):
    assert mentioned(caption, "cat") == []


@pytest.mark.parametrize(
    "caption", ["cat", "CATS", "Cat!", "(cat)", "cat.", "cat's", "#cat", "a 'cat' a", "🐱cat", "ｃａｔ"]
)
def test_whole_word_is_a_match_whatever_surrounds_it(caption):
    assert mentioned(caption, "cat") == ["cat"]


@pytest.mark.parametrize(
    "caption", ["dog, cat", "dog. Cat", "dog / cat", "dog-cat", "dog - cat", "dog's cat", "dog 🐶 cat"]
)
def test_marks_separate_the_words_of_a_concept(caption):
    assert mentioned(caption, "dog cat") == []


@pytest.mark.parametrize("caption", ["dog cat", "Dog  Cats", "dogs\ncats", "a dog\u00a0cat"])
def test_spaces_and_line_breaks_do_not_separate_the_words_of_a_concept(caption):
    assert mentioned(caption, "dog cat") == ["dog cat"]


def test_every_nested_match_counts():
    concepts = ["cake", "chocolate", "chocolate birthday cake", "birthday cake", "birthday", "cake birthday"]
    assert mentioned("a chocolate birthday cake", *concepts) == [
        "chocolate birthday cake",
        "chocolate",
        "birthday cake",
        "birthday",
        "cake",
    ]


def test_singular_and_plural_are_one_concept_both_ways():
    assert mentioned("two mice, one knife and wine glasses", "mouse", "knives", "wine glass") == [
        "mouse",
        "knives",
        "wine glass",
    ]


def test_concept_that_is_mentioned_twice_is_found_once_at_its_first_mention():
    assert mentioned("cat, dog, cats and a cat", "dog", "cat") == ["cat", "dog"]


def test_repeated_words_in_a_concept_are_matched():
    assert mentioned("a choo choo train", "choo choo", "choo", "choo choo choo") == ["choo choo", "choo"]


def test_concepts_with_marks_and_hyphens_are_matched_as_written():
    assert mentioned("a bird's nest", "bird's nest", "bird nest") == ["bird's nest"]
    assert mentioned("a T-shirt", "t-shirt", "shirt") == ["t-shirt"]


def test_order_is_the_same_in_processes_with_other_hash_seeds():
    program = (
        "from curation.concepts import Matcher; "
        "print(Matcher(['zebra', 'dog', 'red dog', 'cat', 'red']).match('a red dog, a cat, two zebras'))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert outputs == {"[2, 4, 1, 3, 0]\n"}


# --- parts of speech ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "nouns", "expected"),
    [
        ("they watch a watch", None, ["watch"]),
        ("they watch a watch", [3], ["watch"]),
        ("they watch a man", [3], ["man"]),
        ("they watch a man", [], []),
        ("an orange cat", [2], []),
        ("a swimming pool", [2], ["swimming pool"]),  # the last word is the noun
        ("a swimming pool", [1], []),
    ],
)
def test_other_parts_of_speech_are_no_mention_where_they_are_known(caption, nouns, expected):
    concepts = ["watch", "man", "orange", "swimming pool"]
    assert [concepts[identifier] for identifier in Matcher(concepts).match(caption, nouns)] == expected


def test_a_longer_concept_that_the_caption_cuts_off_is_not_taken_for_a_shorter_one():
    assert Matcher(["bus dog dog", "bus bus"]).match("bus bus", [2]) == []


@settings(max_examples=100, deadline=None)
@given(captions, vocabularies, st.sets(st.integers(0, 20)))
def test_with_nouns_a_match_is_a_run_that_ends_in_one(caption, concepts, nouns):
    words = [singular(token) for token in tokens(caption)]
    keys = [concept_key(concept) for concept in concepts]
    expected = {
        identifier
        for identifier, key in enumerate(keys)
        if any(tuple(words[at + 1 - len(key) : at + 1]) == key for at in nouns if len(key) <= at + 1 <= len(words))
    }
    assert set(Matcher(concepts).match(caption, nouns)) == expected


def test_exact_concepts_are_matched_as_they_are_written():
    matcher = Matcher(["shorts", "short", "swim shorts"], exact={"shorts"})
    assert matcher.match("a short man in Shorts") == [1, 0]
    assert matcher.match("swim shorts") == [2, 0]
    assert Matcher(["shorts"], exact={"shorts"}).match("short hair") == []
    assert Matcher(["shorts"]).match("short hair") == [0]  # as it is for the concepts of a file


# --- vocabularies that are refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair", [["dog", "dogs"], ["Mouse", "mice"], ["wine glass", "wine  Glasses"], ["straße", "STRASSE"]]
)
def test_two_concepts_that_are_the_same_raise_naming_both(pair):
    with pytest.raises(CocuError) as raised:
        Matcher(["other", *pair])
    assert all(repr(concept) in str(raised.value) for concept in pair)


@pytest.mark.parametrize("concept", ["one two three four five", "", "  ", "...", "a b c d e f"])
def test_concept_that_is_too_long_or_has_no_word_raises(concept):
    with pytest.raises(CocuError, match="1 to 4"):
        Matcher(["dog", concept])


def test_four_words_with_marks_are_not_too_long():
    assert mentioned("jack-o-lantern at st. john's gate", "st. john's gate", "jack-o-lantern at") == [
        "jack-o-lantern at",
        "st. john's gate",
    ]


# --- many captions -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.lists(captions, max_size=6), vocabularies)
def test_match_all_is_match_of_every_caption(texts, concepts):
    matcher = Matcher(concepts)
    matches = matcher.match_all(iter(texts))
    offsets, identifiers = matches.offsets, matches.values
    assert (offsets.dtype, identifiers.dtype) == (np.int64, np.int32)
    assert offsets[0] == 0
    assert len(offsets) == len(texts) + 1
    rows = [identifiers[start:end].tolist() for start, end in pairwise(offsets)]
    assert rows == [matcher.match(text) for text in texts]
    assert offsets[-1] == len(identifiers)


def test_captions_without_concepts_have_empty_rows():
    matches = Matcher(["dog", "cat"]).match_all(["", "a cat and a dog", "nothing", ""])
    assert matches.offsets.tolist() == [0, 0, 2, 2, 2]
    assert matches.values.tolist() == [1, 0]
