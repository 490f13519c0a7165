"""Nouns of captions (docs/method.md §1): which words are nouns where they stand, and what a noun is a name of."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

from curation.base.errors import CocuError
from curation.concepts import LONGEST, concept_key, is_listed_noun, is_never_noun, singular, tokens

TAGGED_AT_ONCE = 512  # captions
COMMON_NOUNS = ("NN", "NNS")
DESCRIBES = ("JJ", "NN", "VBG", "VBN")  # the beginnings of tags of words that may be part of a name
PRONOUN = re.compile("(any|every|no|some)(body|one|thing)|others")  # that taggers call a noun
PLURALS_OF_NAMES = frozenset({"sports"})  # that stand before a noun, though WordNet does not list them: "sports car"
ONE = frozenset({"a", "an", "one", "another", "every", "each"})  # articles of one thing, never of several
ONLY_PLURAL = 0.95  # of its captions: a word that is hardly ever in the singular has no singular
PIECE_OF_COMPOUND, PIECE_OF_WORD = 0.6, 0.8  # of its captions: from here on a noun is a piece of a longer name
# Plurals that name another thing than their singulars do, where captions use both.
OTHER_THINGS = frozenset({"bangs", "blinds", "boxers", "braces", "briefs", "glasses", "scales", "trunks", "woods"})


class Caption(NamedTuple):
    """A caption whose parts of speech are known."""

    words: list[str]  # as :func:`curation.concepts.tokens` cuts it
    tags: list[str]  # Penn Treebank tags, one a word
    nouns: list[int]  # positions of the common nouns, ascending


class Fact(NamedTuple):
    """Something about a noun that captions are counted by; the nameless fact is that they mention it."""

    noun: str  # singulars of its words
    kind: str = (
        ""  # "form": as written; "head": names the thing; "before", "after": the word there may be a part of its name
    )
    value: str = ""


@dataclass(frozen=True)
class Candidate:
    """A concept that may enter the vocabulary."""

    name: str  # its most frequent form
    count: int  # captions where it is tagged as a noun
    head_share: float  # of these, where it names the thing: "wall" of "brick wall", not "brick"
    part_of: str  # the longer name that it is nearly always a part of, or ""
    exact: bool  # whether it is matched as written: the singular of "shorts" is another word


# --- parts of speech ---------------------------------------------------------------------------------------------------


def tag(captions: Iterable[str], tagger: str) -> Iterator[Caption]:
    """Parts of speech by the spaCy pipeline ``tagger``, run on the tokens that a matcher sees.

    Raises CocuError when the pipeline is not installed.
    """
    pipeline = _load_tagger(tagger)
    from spacy.tokens import Doc

    documents = (Doc(pipeline.vocab, words=tokens(caption)) for caption in captions)
    for document in pipeline.pipe(documents, batch_size=TAGGED_AT_ONCE):
        words, tags = [token.text for token in document], [token.tag_ for token in document]
        yield Caption(words, tags, common_nouns(words, tags))


@lru_cache(maxsize=1)
def _load_tagger(name: str) -> Any:
    import spacy

    try:
        return spacy.load(name, exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    except OSError:
        raise CocuError(f"vocabulary.tagger: the spaCy pipeline {name} is not installed; pip install it") from None


def common_nouns(words: list[str], tags: list[str]) -> list[int]:
    """Positions of the common nouns, ascending: what is tagged so, but for verbs that agreement gives away.

    A tagger often takes the verb of a short caption for a noun. But "a dog leaps" cannot be about leaps, which "a" does
    not fit, and in "two dogs wrestle" a noun would not follow the plural.

    >>> common_nouns(["a", "dog", "leaps"], ["DT", "NN", "NNS"]), common_nouns(["two", "dogs"], ["CD", "NNS"])
    ([1], [1])
    """
    nouns: list[int] = []
    of_one = False  # whether an article of one thing belongs to the words here
    for position, (word, part) in enumerate(zip(words, tags, strict=True)):
        follows_noun = bool(nouns) and nouns[-1] == position - 1
        if part in COMMON_NOUNS and _has_name(word):
            if follows_noun and _disagrees(word, words[position - 1], of_one):
                of_one = False
            else:
                nouns.append(position)
        elif word in ONE:
            of_one = True
        elif follows_noun or not part.startswith(DESCRIBES):
            of_one = False
    return nouns


def _disagrees(word: str, before: str, of_one: bool) -> bool:
    """Whether a noun right behind another one cannot belong to it, so that it is a verb; WordNet's plurals may be names."""
    if singular(before) != before and not is_listed_noun(before) and before not in PLURALS_OF_NAMES:
        return singular(word) == word
    return of_one and word.endswith("s") and singular(word) != word and not is_listed_noun(word)


def _has_name(word: str) -> bool:
    is_word = len(word) > 1 and any(character.isalpha() for character in word)
    return is_word and not PRONOUN.fullmatch(word) and not is_never_noun(word)


# --- counting ----------------------------------------------------------------------------------------------------------


def count_facts(captions: Iterable[Caption]) -> Counter[Fact]:
    """How many captions say each fact about the noun lemmas, and compounds of 2 to 4 words, that they mention."""
    counts: Counter[Fact] = Counter()
    for caption in captions:
        counts.update(facts(caption))
    return counts


def facts(caption: Caption) -> set[Fact]:
    """The facts about every noun and compound of one caption.

    A compound is a run of 2 to 4 adjacent nouns, or part of one: "chocolate birthday cake" gives all its sub-runs.

    >>> sorted({fact.noun for fact in facts(Caption(["two", "wine", "glasses"], ["CD", "NN", "NNS"], [1, 2]))})
    ['glass', 'wine', 'wine glass']
    """
    said: set[Fact] = set()
    for run in _runs(caption.nouns):
        first, end = run[0], run[-1] + 1
        lemmas = [singular(word) for word in caption.words[first:end]]
        for start in range(first, end):
            for stop in range(start + 1, min(start + LONGEST, end) + 1):
                noun = " ".join(lemmas[start - first : stop - first])
                said |= {Fact(noun), Fact(noun, "form", " ".join(caption.words[start:stop]))}
                if stop == end:
                    said.add(Fact(noun, "head"))
                else:
                    said.add(Fact(noun, "after", caption.words[stop]))
                if start and caption.tags[start - 1].startswith(DESCRIBES):
                    said.add(Fact(noun, "before", caption.words[start - 1]))

    # A lemma whose own lemma is another word would never be matched again under its name.
    return {fact for fact in said if concept_key(fact.noun) == tuple(fact.noun.split(" "))}


def _runs(positions: list[int]) -> Iterator[list[int]]:
    """Runs of adjacent positions."""
    for _, run in groupby(enumerate(positions), lambda item: item[1] - item[0]):
        yield [position for _, position in run]


# --- candidates --------------------------------------------------------------------------------------------------------


def candidates(counts: Counter[Fact], min_count: int) -> list[Candidate]:
    """Nouns in at least ``min_count`` captions, the most frequent first, ties in alphabetical order.

    A word that captions use in the plural only, and a plural that names another thing than its singular, are matched as
    they are written.
    """
    frequent = {fact.noun for fact, count in counts.items() if not fact.kind and count >= min_count}
    values: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by noun and kind
    for fact, count in counts.items():
        if fact.noun in frequent:
            values[fact.noun, fact.kind][fact.value] = count

    chosen: list[Candidate] = []
    for noun in frequent:
        count, forms = counts[Fact(noun)], values[noun, "form"]
        head_share = counts[Fact(noun, "head")] / count
        for plural in _own_plurals(noun, count, forms):
            chosen.append(Candidate(plural, forms.pop(plural), head_share, "", exact=True))
            count = min(count, forms.total()) if plural in OTHER_THINGS else 0
        if count >= min_count:
            longer = _longer_name(noun, counts[Fact(noun)], values[noun, "before"], values[noun, "after"], frequent)
            chosen.append(Candidate(_most_frequent(forms), count, head_share, longer, exact=False))
    chosen = [candidate for candidate in chosen if candidate.count >= min_count]
    return sorted(chosen, key=lambda candidate: (-candidate.count, candidate.name))


def _own_plurals(noun: str, count: int, forms: Counter[str]) -> list[str]:
    """The plurals of a single word that are concepts of their own."""
    if " " in noun:
        return []
    return [form for form in forms if form != noun and (form in OTHER_THINGS or forms[form] >= ONLY_PLURAL * count)]


def _longer_name(noun: str, count: int, before: Counter[str], after: Counter[str], frequent: set[str]) -> str:
    """The longer name that a noun is a piece of, because one and the same word nearly always stands before or after it.

    A word by itself needs more of that than a compound, and with what stands before it must be a candidate: "dog" says what
    it is without "little", even if all dogs are little, but "cream cone" does not without "ice".
    """
    single = " " not in noun
    least = (PIECE_OF_WORD if single else PIECE_OF_COMPOUND) * count
    if before:
        word = _most_frequent(before)
        longer = f"{word} {noun}"
        if before[word] >= least and (not single or " ".join(concept_key(longer)) in frequent):
            return longer
    if after:
        word = _most_frequent(after)
        return f"{noun} {word}" if after[word] >= least else ""
    return ""


def _most_frequent(counts: Counter[str]) -> str:
    """The most frequent value, of several the first in alphabetical order."""
    return min(counts, key=lambda value: (-counts[value], value))
