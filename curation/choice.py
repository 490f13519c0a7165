"""Which candidates enter the vocabulary, and why the others do not (docs/method.md §1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from curation import visualness
from curation.concepts import concept_key, singular, tokens
from curation.config import VocabularyConfig
from curation.hyponyms import count_visual_kinds

COMPOUND_SHARE = (
    0.7  # a compound is less ambiguous than a word: what is a noun less often, like "dog chases", is a clause
)
RARE, NO_NOUN, NO_HEAD, NOT_VISUAL = "rare", "not a noun", "only before other nouns", "not visual"


@dataclass(frozen=True)
class NounFacts:
    """What is known of V candidates that are nouns of captions."""

    noun_share: (
        np.ndarray
    )  # (V,) float64: of the captions that hold the words, those where they are a noun; NaN for none
    head_share: np.ndarray  # (V,) float64: of the captions where it is a noun, those where it names the thing
    part_of: list[str]  # the longer name that each is a piece of, or ""
    exact: frozenset[str]  # those that are matched as they are written


def reasons_to_drop(
    names: list[str], counts: np.ndarray, sizes: np.ndarray, facts: NounFacts | None, config: VocabularyConfig
) -> list[str]:
    """Why each candidate (V,) does not enter the vocabulary; "" for those that do.

    counts (V,) int: captions that mention it; sizes (V,): visualness; ``facts``: None for the concepts of a file. A noun of
    which at least ``kinds`` visual candidates are kinds stays without being visual itself, as long as its own images are
    not farther from it than others.
    """
    reasons = [RARE if count < config.smallest_count else "" for count in counts]
    if facts:
        reasons = [reason or no_name for reason, no_name in zip(reasons, _no_names(names, facts, config), strict=True)]

    limit = config.smallest_visualness
    if limit is not None:
        visual = visualness.keep(counts, sizes, 0, limit)
        shown = visual & np.array([not reason for reason in reasons], bool)
        if facts and config.kinds:
            is_general = (count_visual_kinds(names, shown) >= config.kinds) & (np.nan_to_num(sizes, nan=-1) >= 0)
            visual |= is_general
        reasons = [reason or ("" if sees else NOT_VISUAL) for reason, sees in zip(reasons, visual, strict=True)]

    stay = listed(names, config.keep, facts.exact if facts else frozenset()) & (counts > 0)
    return ["" if stays else reason for reason, stays in zip(reasons, stay, strict=True)]


def _no_names(names: list[str], facts: NounFacts, config: VocabularyConfig) -> list[str]:
    """Why each candidate is not the name of a thing, as far as words can tell."""
    shares = np.nan_to_num(facts.noun_share, nan=1.0)
    of_word: dict[str, float] = {}
    for name, share in zip(names, shares, strict=True):
        if " " not in name:
            of_word[singular(name)] = max(share, of_word.get(singular(name), 0.0))

    reasons = []
    for name, share, head_share, longer in zip(names, shares, facts.head_share, facts.part_of, strict=True):
        head = of_word.get(singular(name.rpartition(" ")[2]), 1.0)
        is_noun = share >= config.noun_share and head >= config.noun_share
        if not is_noun or (config.noun_share and " " in name and share < COMPOUND_SHARE):
            reasons.append(NO_NOUN)
        elif head_share < config.head_share:
            reasons.append(NO_HEAD)
        else:
            reasons.append(f"part of {longer}" if longer else "")
    return reasons


def listed(names: list[str], wanted: list[str], exact: frozenset[str] = frozenset()) -> np.ndarray:
    """Which names (V,) bool a person lists, in the singular or the plural; exact ones as they are written."""
    words = {tuple(tokens(concept)) for concept in wanted}
    keys = {concept_key(concept) for concept in wanted}
    return np.array([tuple(tokens(n)) in words or (n not in exact and concept_key(n) in keys) for n in names], bool)
