"""Nouns of captions: which words are nouns where they stand, what is counted of them, and what a noun is called."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import nouns
from curation.base.errors import CocuError
from curation.concepts import Matcher
from curation.config import VocabularyConfig
from curation.nouns import Candidate, Caption, Fact

TAGGER = VocabularyConfig().tagger
TAGS = {"n": "NN", "s": "NNS", "a": "DT", "j": "JJ", "v": "VBZ", "g": "VBG", "i": "IN", "c": "CD", "": "VBZ"}


def caption(text):
    """A caption from "word/n ...": /n marks a noun, /s a plural, /j an adjective, /a an article, nothing a verb."""
    parts = [part.partition("/") for part in text.split()]
    words, tags = [word for word, _, _ in parts], [TAGS[tag] for _, _, tag in parts]
    return Caption(words, tags, nouns.common_nouns(words, tags))


def phrases(text):
    """The nouns and compounds that the facts about a caption are about."""
    return {fact.noun for fact in nouns.facts(caption(text))}


def nouns_of(text):
    """The words of a caption that are nouns where they stand."""
    tagged = caption(text)
    return [tagged.words[position] for position in tagged.nouns]


# --- which words are nouns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/a dog/n", ["dog"]),
        ("two/c dogs/s and/i a/a cat/n", ["dogs", "cat"]),
        # "a" does not fit a plural: the last word is a verb
        ("a/a dog/n leaps/s", ["dog"]),
        ("a/a brown/j dog/n leaps/s over/i a/a wall/n", ["dog", "wall"]),
        ("another/a girl/n climbs/s", ["girl"]),
        ("one/c dog/n bites/s", ["dog"]),
        ("the/a dog/n toys/s", ["dog", "toys"]),  # "the" fits
        ("a/a man/n with/i tennis/n balls/s", ["man", "tennis", "balls"]),
        ("a/a boy/n playing/g video/n games/s", ["boy", "video", "games"]),
        ("a/a man/n in/i swim/n shorts/s", ["man", "swim", "shorts"]),
        ("a/a woman/n sunglasses/s", ["woman", "sunglasses"]),  # which is a noun of its own
        # a noun does not follow a plural
        ("two/c dogs/s wrestle/n", ["dogs"]),
        ("children/s run/n on/i grass/n", ["children", "grass"]),
        ("men/s race/n", ["men"]),
        ("the/a sports/s car/n", ["sports", "car"]),
        ("an/a arts/s center/n", ["arts", "center"]),
        # words that are never nouns, whatever the tagger says
        ("a/a shirtless/n man/n", ["man"]),
        ("someone/n performs/s", []),
        ("a/a dog/n and/i others/s", ["dog"]),
        # not words
        ("a/n dog/n", ["dog"]),
        ("2024/n ½/n dog/n", ["dog"]),
    ],
)
def test_words_that_are_nouns_where_they_stand(text, expected):
    assert nouns_of(text) == expected


def test_the_tagger_knows_a_verb_or_an_adjective_from_a_noun():
    captions = ["Two boys watch a red ball", "A white dog runs", "A gold watch", "A woman with short hair and shorts"]
    found = [[one.words[position] for position in one.nouns] for one in nouns.tag(captions, TAGGER)]
    assert found == [["boys", "ball"], ["dog"], ["gold", "watch"], ["woman", "hair", "shorts"]]


def test_tagger_that_is_not_installed_is_an_error_naming_it():
    with pytest.raises(CocuError, match="no_such_tagger"):
        list(nouns.tag(["a dog"], "no_such_tagger"))


# --- nouns and compounds -----------------------------------------------------------------------------------------------


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
def test_every_phrase_is_found_again_in_its_own_caption(drawn):
    tagged = caption(" ".join(f"{text}/{'s' if is_noun else 'v'}" for text, is_noun in drawn))
    names = sorted({fact.noun for fact in nouns.facts(tagged)})
    matched = Matcher(names).match(" ".join(tagged.words), tagged.nouns)
    assert {names[identifier] for identifier in matched} == set(names)


def test_facts_are_forms_heads_and_neighbours():
    assert nouns.facts(caption("hot/j air/n balloons/s fly")) == {
        Fact("air"),
        Fact("air", "form", "air"),
        Fact("air", "before", "hot"),
        Fact("air", "after", "balloons"),
        Fact("balloon"),
        Fact("balloon", "form", "balloons"),
        Fact("balloon", "head"),
        Fact("balloon", "before", "air"),
        Fact("air balloon"),
        Fact("air balloon", "form", "air balloons"),
        Fact("air balloon", "head"),
        Fact("air balloon", "before", "hot"),
    }


def test_facts_are_counted_by_captions_not_by_mentions():
    captions = [
        "A dog and another dog in the grass.",
        "Two dogs are sleeping on a sofa.",
        "The cat sat on the sofa.",
        "",
    ]
    counts = nouns.count_facts(nouns.tag(iter(captions), TAGGER))
    assert {noun: counts[Fact(noun)] for noun in ("dog", "sofa", "grass", "cat")} == {
        "dog": 2,
        "sofa": 2,
        "grass": 1,
        "cat": 1,
    }
    assert counts[Fact("dog", "form", "dogs")] == 1
    assert not {"dogs", "the", "on", "a", ".", "sleeping", ""} & {fact.noun for fact in counts}


# --- candidates --------------------------------------------------------------------------------------------------------


def candidates(texts, min_count=1):
    """The candidates of captions, by name."""
    chosen = nouns.candidates(nouns.count_facts(map(caption, texts)), min_count)
    return {candidate.name: candidate for candidate in chosen}


def test_candidates_are_frequent_first_then_alphabetical():
    counts = {"zebra": 5, "cat": 9, "ant": 5, "rare": 4, "bee": 5}
    facts = Counter({Fact(n): c for n, c in counts.items()} | {Fact(n, "form", n): c for n, c in counts.items()})
    for order in (facts, Counter(dict(reversed(facts.items())))):
        assert [one.name for one in nouns.candidates(order, 5)] == ["cat", "ant", "bee", "zebra"]
    assert nouns.candidates(facts, 10) == []


def test_a_noun_is_called_what_it_is_called_most_often():
    texts = ["a/a leaf/n", "leaves/s", "leaves/s", "palm/n trees/s", "palm/n trees/s", "a/a palm/n tree/n"]
    chosen = candidates(texts)
    assert chosen["leaves"] == Candidate("leaves", 3, 1.0, "", exact=False)
    assert "leaf" not in chosen
    assert chosen["palm trees"].count == 3
    assert candidates(["dogs/s", "a/a dog/n"]).keys() == {"dog"}  # a tie: the first in the alphabet


@pytest.mark.parametrize("plural", ["shorts", "sunglasses", "pants", "headphones", "rapids", "species", "jeans"])
def test_a_word_that_is_never_in_the_singular_is_matched_in_the_plural_only(plural):
    chosen = candidates([f"{plural}/s"] * 3)
    assert chosen == {plural: Candidate(plural, 3, 1.0, "", exact=True)}
    matcher = Matcher([plural], exact={plural})
    assert matcher.match(f"in {plural}") == [0]
    assert matcher.match("short hair, a jean, a rapid") == []


def test_a_plural_that_names_another_thing_is_a_concept_beside_its_singular():
    chosen = candidates(["a/a glass/n"] * 2 + ["glasses/s"] * 3)
    assert chosen == {
        "glasses": Candidate("glasses", 3, 1.0, "", exact=True),
        "glass": Candidate("glass", 2, 1.0, "", exact=False),
    }
    matcher = Matcher(["glass", "glasses", "wine glass"], exact={"glasses"})
    assert matcher.match("a glass") == [0]
    assert matcher.match("she wears glasses") == [1]
    assert matcher.match("a wine glass") == [2, 0]


def test_head_share_is_how_often_a_noun_names_the_thing():
    texts = ["a/a parking/n lot/n", "a/a parking/n lot/n", "a/a brick/n wall/n", "a/a brick/n", "a/a wall/n"]
    chosen = candidates(texts)
    shares = {name: chosen[name].head_share for name in ("parking", "parking lot", "brick", "wall")}
    assert shares == {"parking": 0, "parking lot": 1, "brick": 0.5, "wall": 1}


@pytest.mark.parametrize(
    ("texts", "pieces"),
    [
        (
            ["an/a ice/n cream/n cone/n"] * 3 + ["ice/n cream/n"],
            {"cream": "ice cream", "cream cone": "ice cream cone", "cone": "cream cone", "ice": "ice cream"},
        ),
        (["a/a chain/n link/n fence/n"] * 2 + ["a/a fence/n"], {"chain link": "chain link fence"}),
        (["a/a hot/j air/n balloon/n"] * 3, {"air balloon": "hot air balloon", "balloon": "air balloon"}),
        (["a/a little/j dog/n"] * 3, {"dog": ""}),  # that they are all little is not its name
        (["a/a red/j fire/n truck/n", "a/a fire/n truck/n"], {"fire truck": ""}),
    ],
)
def test_pieces_of_longer_names_are_known_as_such(texts, pieces):
    chosen = candidates(texts)
    assert {name: chosen[name].part_of for name in pieces} == pieces
