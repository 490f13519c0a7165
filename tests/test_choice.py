"""Which candidates enter the vocabulary, and why the others do not."""

from __future__ import annotations

import numpy as np
import pytest

from curation.choice import COMPOUND_SHARE, NounFacts, listed, reasons_to_drop
from curation.config import VocabularyConfig
from curation.hyponyms import count_visual_kinds, genus

NOUNS = {  # noun share, head share, part of, visualness
    "dog": (1.0, 1.0, "", 0.9),
    "white": (0.01, 0.5, "", 0.9),
    "parking": (0.8, 0.0, "", 0.9),
    "parking lot": (0.8, 1.0, "", 0.9),
    "cream cone": (1.0, 1.0, "ice cream cone", 0.9),
    "leap": (0.29, 1.0, "", 0.9),
    "dog leap": (0.9, 1.0, "", 0.9),
    "dog chase": (0.5, 1.0, "", 0.9),
    "day": (1.0, 1.0, "", 0.1),
    "mystery": (1.0, 1.0, "", np.nan),
}
EXPECTED = {
    "white": "not a noun",
    "parking": "only before other nouns",
    "cream cone": "part of ice cream cone",
    "leap": "not a noun",
    "dog leap": "not a noun",
    "dog chase": "not a noun",
    "day": "not visual",
    "mystery": "not visual",
}


def reasons(nouns, counts=None, exact=(), **settings):
    """Why each of some nouns is dropped, by name, without those that stay."""
    columns = list(zip(*nouns.values(), strict=True))
    facts = NounFacts(np.array(columns[0]), np.array(columns[1]), list(columns[2]), frozenset(exact))
    counts = np.full(len(nouns), 100) if counts is None else np.array(counts)
    dropped = reasons_to_drop(list(nouns), counts, np.array(columns[3]), facts, VocabularyConfig(**settings))
    return {name: reason for name, reason in zip(nouns, dropped, strict=True) if reason}


def test_every_rule_gives_its_reason():
    assert reasons(NOUNS) == EXPECTED


def test_each_rule_can_be_turned_off():
    assert not {"white", "leap", "dog leap", "dog chase"} & reasons(NOUNS, noun_share=0.0).keys()
    assert "parking" not in reasons(NOUNS, head_share=0.0)
    assert reasons(NOUNS, visualness=0.95).keys() == NOUNS.keys()


def test_what_a_person_lists_stays_if_any_caption_mentions_it():
    counts = [100, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    kept = ["Whites", "parking lot", "days"]
    dropped = reasons(NOUNS, counts, keep=kept)
    assert "white" not in dropped and "day" not in dropped
    assert dropped["parking lot"] == "rare"


def test_exact_concepts_are_listed_as_they_are_written():
    names = ["short", "shorts", "dogs"]
    assert listed(names, ["shorts", "dog"], frozenset({"shorts"})).tolist() == [True, True, True]
    assert listed(names, ["short"], frozenset({"shorts"})).tolist() == [True, False, False]


KINDS = {name: (1.0, 1.0, "", 0.9) for name in ("woman", "girl", "singer", "dancer")}
GENERAL = {"person": (1.0, 1.0, "", 0.05), "day": (1.0, 1.0, "", 0.05), "photo": (1.0, 1.0, "", 0.2)}


def test_the_general_stays_and_what_is_not_visible_goes():
    assert reasons(GENERAL | KINDS) == {"day": "not visual", "photo": "not visual"}


@pytest.mark.parametrize("words", [["day"], ["photo"], ["view"], ["side"], ["lot"], ["watch"]])
def test_a_noun_without_kinds_has_to_be_visual_itself(words):
    assert reasons({word: (1.0, 1.0, "", 0.05) for word in words} | KINDS).keys() == set(words)


def test_the_general_needs_kinds_that_are_visual_here_and_images_that_are_not_farther():
    assert "person" in reasons(GENERAL | dict(list(KINDS.items())[:3]))
    assert "person" in reasons(GENERAL | {name: (1.0, 1.0, "", 0.1) for name in KINDS})
    assert "person" in reasons(GENERAL | KINDS, kinds=0)
    assert "person" in reasons(GENERAL | KINDS, kinds=5)
    assert "person" in reasons(GENERAL | {"person": (1.0, 1.0, "", -0.05)} | KINDS)


def test_concepts_of_a_file_are_judged_by_count_and_visualness_alone():
    names, counts = ["white", "dog", "rare"], np.array([9, 9, 1])
    sizes = np.array([0.5, 0.1, 0.5], np.float32)
    file = {"source": "concepts.txt"}
    assert reasons_to_drop(names, counts, sizes, None, VocabularyConfig(**file)) == ["", "", ""]
    limits = VocabularyConfig(**file, min_count=2, visualness=0.3)
    assert reasons_to_drop(names, counts, sizes, None, limits) == ["", "not visual", "rare"]


def test_compounds_are_held_to_more():
    compound = {"dog": NOUNS["dog"], "dog show": (COMPOUND_SHARE - 0.01, 1.0, "", 0.9)}
    assert reasons(compound) == {"dog show": "not a noun"}


# --- kinds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("definition", "noun"),
    [
        ("a young woman", "woman"),
        ("a person who plays a musical instrument", "person"),
        ("an adult female person (as opposed to a man)", "person"),
        ("any of a number of small fishes", ""),
        ("a group of people", ""),
        ("large sleek swift-flying birds", "bird"),
        ("someone trained to compete in sports", "someone"),
        ("", ""),
    ],
)
def test_the_noun_that_a_definition_begins_with(definition, noun):
    assert genus(definition) == noun


def test_visual_kinds_are_counted_in_the_singular_and_without_the_noun_itself():
    names = ["people", "person", "girls", "women", "dancer", "dog", "vehicle", "car"]
    every = np.ones(len(names), bool)
    counts = dict(zip(names, count_visual_kinds(names, every).tolist(), strict=True))
    assert counts["person"] == 3
    assert counts["vehicle"] == 1
    assert counts["dog"] == 0
    assert count_visual_kinds(names, ~every).tolist() == [0] * len(names)
