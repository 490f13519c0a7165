"""Concepts of a caption (docs/method.md §1): whole tokens, singular equals plural, every nested match."""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Collection, Container, Iterable
from functools import lru_cache
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from curation.base.errors import CocuError
from curation.base.ragged import Ragged

LONGEST = 4  # words in a concept
NO_PLURALS = frozenset({"has", "its", "les", "was", "yes"})  # of three letters, though WordNet knows ha, it, le, wa, ye
REMEMBERED = 1 << 18  # tokens
TOKEN = re.compile(r"[^\W_]+(?:-[^\W_]+)*|'s\b|\S")


def tokens(text: str) -> list[str]:
    """Case-folded tokens: words (hyphenated ones whole), the possessive 's, and every other mark by itself.

    >>> tokens("The dog's T-shirt.")
    ['the', 'dog', "'s", 't-shirt', '.']
    """
    if text.isascii():
        return TOKEN.findall(text.lower())
    return TOKEN.findall(unicodedata.normalize("NFKC", text).casefold().replace("’", "'"))


def _wordnet(name: str) -> Any:
    """A table of WordNet, by part of speech, as packaged by spacy-lookups-data."""
    path = resources.files("spacy_lookups_data") / "data" / f"en_lemma_{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


@lru_cache(maxsize=1)
def _noun_tables() -> tuple[dict[str, str], frozenset[str], list[tuple[str, str]]]:
    """WordNet's noun exceptions, noun index and suffix rules."""

    def table(name: str) -> Any:
        return _wordnet(name)["noun"]

    nouns = frozenset(table("index"))
    # A form such as cola, dive or crying is a noun of its own before it is the plural of colon, diva or cry.
    exceptions = {
        form: lemmas[0]
        for form, lemmas in table("exc").items()
        if not (form in nouns and form.endswith(("a", "e", "ing")))
    }
    exceptions |= {"axes": "axe", "lenses": "lens"}  # WordNet prefers the spellings "ax" and "lense"
    return exceptions, nouns, [(old, new) for old, new in table("rules")]


@lru_cache(maxsize=REMEMBERED)
def singular(token: str) -> str:
    """The singular of a case-folded noun: ``mice`` -> ``mouse``, ``boxes`` -> ``box``, ``bus`` -> ``bus``.

    WordNet's exceptions come first, then its suffix rules where they lead to a known noun; a word that WordNet does not
    know loses its regular plural ending, unless it ends in us or is. Of a hyphenated word, the last part changes.
    """
    exceptions, nouns, rules = _noun_tables()
    if token in exceptions:
        return exceptions[token]
    if len(token) <= 2 or token.endswith("ss"):
        return token
    if len(token) == 3:  # tvs, ads; but neither bus nor 70s
        is_plural = token[2] == "s" and token[:2].isalpha() and token[:2] in nouns and not token.endswith(("us", "is"))
        return token[:2] if is_plural and token not in nouns and token not in NO_PLURALS else token

    for plural, ending in rules:
        if token.endswith(plural) and token[: -len(plural)] + ending in nouns:
            return token[: -len(plural)] + ending
    if token in nouns and not token.endswith("ers"):  # its bikers are cyclists: more than one biker
        return token

    first, hyphen, last = token.rpartition("-")
    if hyphen:
        return first + hyphen + singular(last)
    if token.endswith(("sses", "xes", "zes", "ches", "shes")):
        return token[:-2]
    return token[:-1] if token.endswith("s") and not token.endswith(("us", "is")) else token


def is_listed_noun(form: str) -> bool:
    """Whether WordNet lists a case-folded form as a noun of its own, even if it is a plural, such as ``sunglasses``."""
    exceptions, nouns, _ = _noun_tables()
    return form in nouns and form not in exceptions


@lru_cache(maxsize=1)
def _other_words() -> frozenset[str]:
    """Verbs, adjectives and adverbs that are no nouns as well."""
    parts = _wordnet("index")
    return frozenset(parts["verb"]).union(parts["adj"], parts["adv"]) - _noun_tables()[1]


def is_never_noun(form: str) -> bool:
    """Whether WordNet knows a case-folded form, such as ``grassy`` or ``performs``, but not as a noun; all in -less too."""
    return not is_listed_noun(form) and (singular(form) in _other_words() or form.endswith("less"))


def concept_key(concept: str) -> tuple[str, ...]:
    """What a concept is matched by: the singulars of its tokens. Two concepts with one key are the same concept."""
    return tuple(map(singular, tokens(concept)))


def count_words(key: Iterable[str]) -> int:
    """Number of tokens that are words rather than marks."""
    return sum(token[0].isalnum() for token in key)


class _Start(NamedTuple):
    """The concepts that begin with a word."""

    lengths: list[int]  # of those of several tokens, the longest first
    longer: dict[tuple[str, ...], int]  # their other tokens, singular -> id
    alone: int | None  # the id of the word by itself


class _StartsOfTokens(dict[str, _Start | None]):
    """The concepts that begin with a token, singular or plural; filled as they occur, because most occur often."""

    def __init__(self, by_first_word: dict[str, _Start], by_form: dict[str, int]) -> None:
        super().__init__()
        self._by_first_word, self._by_form = by_first_word, by_form

    def __missing__(self, token: str) -> _Start | None:
        if len(self) >= REMEMBERED:
            self.clear()
        start = self._by_first_word.get(singular(token))
        if token in self._by_form:
            start = (start or _Start([], {}, None))._replace(alone=self._by_form[token])
        self[token] = start
        return start


class Matcher:
    """Finds the concepts of a vocabulary in captions, by an index of their first words.

    >>> Matcher(["dog", "red dog", "mouse"]).match("Two mice and a red dog")
    [2, 1, 0]
    >>> Matcher(["glass", "glasses"], exact={"glasses"}).match("She wears glasses")
    [1]
    """

    def __init__(self, concepts: list[str], exact: Collection[str] = ()) -> None:
        """``concepts``: position = concept id. ``exact``: those that are matched as they are written, not in the singular.

        An exact concept is one token. Raises CocuError when two are the same, or one is too long or empty.
        """
        by_first_word: dict[str, _Start] = {}
        by_form: dict[str, int] = {}
        by_key: dict[tuple[str, ...], str] = {}
        for identifier, concept in enumerate(concepts):
            key = tuple(tokens(concept)) if concept in exact else concept_key(concept)
            if not 1 <= count_words(key) <= LONGEST:
                raise CocuError(f"vocabulary: {concept!r} has {count_words(key)} words; a concept has 1 to {LONGEST}")
            if key in by_key:
                raise CocuError(f"vocabulary: {by_key[key]!r} and {concept!r} are one concept (singular = plural)")
            by_key[key] = concept

            if concept in exact:
                by_form[key[0]] = identifier
                continue
            start = by_first_word.get(key[0], _Start([], {}, None))
            if len(key) == 1:
                start = start._replace(alone=identifier)
            else:
                start.longer[key[1:]] = identifier
            by_first_word[key[0]] = start

        for start in by_first_word.values():
            # The longest first: "chocolate cake" before "chocolate".
            start.lengths.extend(sorted({len(rest) + 1 for rest in start.longer}, reverse=True))
        self._starts = _StartsOfTokens(by_first_word, by_form)

    def match(self, caption: str, nouns: Container[int] | None = None) -> list[int]:
        """Ids of the concepts that a caption mentions, each once, in order of mention (at one position, longest first).

        ``nouns``: positions of the tokens that are nouns, where parts of speech are known: then only mentions count
        whose last word is one of them.
        """
        starts = self._starts
        words = tokens(caption)
        singulars: tuple[str, ...] = ()  # of all words, once one of them begins a longer concept
        matches: dict[int, None] = {}  # in order

        for position, word in enumerate(words):
            start = starts[word]
            if start is None:
                continue
            lengths, longer, alone = start
            if lengths:
                singulars = singulars or tuple(map(singular, words))
                for length in lengths:
                    last = position + length - 1
                    identifier = longer.get(singulars[position + 1 : last + 1])
                    if identifier is not None and (nouns is None or last in nouns) and last < len(words):
                        matches[identifier] = None
            if alone is not None and (nouns is None or position in nouns):
                matches[alone] = None
        return list(matches)

    def match_all(self, captions: Iterable[str], nouns: Iterable[Container[int]] | None = None) -> Ragged:
        """The concepts of many captions: a list of ids, int32, for each. ``nouns``: as in :meth:`match`, one each."""
        if nouns is None:
            return Ragged.from_lists([self.match(caption) for caption in captions], np.int32)
        pairs = zip(captions, nouns, strict=True)
        return Ragged.from_lists([self.match(caption, positions) for caption, positions in pairs], np.int32)


def unite(lists: Ragged, rows: np.ndarray, sources: np.ndarray, count: int) -> tuple[Ragged, np.ndarray]:
    """The union of what several captions of each of ``count`` images mention, and the sources that mention each concept.

    lists: C lists of concept ids, one a caption; rows (C,): the image of each caption, ascending; sources (C,) int32: bits
    of the sources that each caption has. An image's concepts, int32, are in order of mention, each once; their sources
    (P,) int32 are those of all captions that mention them.

    >>> united, sources = unite(Ragged.from_lists([[3, 1], [1]]), np.array([0, 0]), np.array([1, 2]), 2)
    >>> united.values.tolist(), united.lengths.tolist(), sources.tolist()
    ([3, 1], [2, 0], [1, 3])
    """
    owners = rows[lists.owners]  # (Q,): the image of each mention
    width = int(lists.values.max(initial=0)) + 1
    pairs, first, inverse = np.unique(owners * width + lists.values, return_index=True, return_inverse=True)
    bits = np.zeros(len(pairs), np.int32)
    np.bitwise_or.at(bits, inverse, sources[lists.owners].astype(np.int32))

    order = np.argsort(first)  # mentions of one image lie together, so this is the order of mention
    owner, concept = np.divmod(pairs[order], width)
    return Ragged.from_lengths(np.bincount(owner, minlength=count), concept.astype(np.int32)), bits[order]
