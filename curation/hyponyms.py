"""General nouns (docs/method.md §1): those that other nouns of a vocabulary are kinds of, as WordNet's definitions say."""

from __future__ import annotations

import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from curation.base.errors import CocuError
from curation.concepts import concept_key, singular

WORD = re.compile(r"[a-z][a-z'-]*")
ENDING = re.compile(r"[,;:]|\b[a-z-]+ed (?:as|at|by|for|from|in|on|to|with)\b")  # "dog trained to guard"
# What stands behind the noun that a definition begins with: "a woman who", "a dog trained for".
BEHIND = re.compile(
    "and|are|as|at|by|for|from|having|in|is|made|on|or|that|to|used|when|where|which|who|whose|with|without"
)


def count_visual_kinds(names: list[str], visual: np.ndarray) -> np.ndarray:
    """For each concept, how many of the visual ones (V,) bool are kinds of it: (V,) int64.

    Source: the 21,841 nouns of ImageNet, which are WordNet's, with its definitions: "girl: a young woman" makes *girl* a
    kind of *woman*. Raises CocuError where the list, which comes with timm, is missing.
    """
    kinds = _kinds()
    keys = [" ".join(concept_key(name)) for name in names]
    shown = {key for key, is_visual in zip(keys, visual, strict=True) if is_visual}
    return np.array([len((kinds.get(key, set()) & shown) - {key}) for key in keys], np.int64)


@lru_cache(maxsize=1)
def _kinds() -> dict[str, set[str]]:
    """The nouns that are directly below a noun, all in the singular."""
    nouns = dict(_lines("imagenet_synset_to_lemma.txt"))
    kinds: dict[str, set[str]] = defaultdict(set)
    for identifier, definition in _lines("imagenet_synset_to_definition.txt"):
        above = genus(definition)
        if above:
            kinds[above] |= {" ".join(map(singular, noun.lower().split())) for noun in nouns[identifier].split(", ")}
    return dict(kinds)


def _lines(name: str) -> Iterator[tuple[str, str]]:
    """Identifier and text of each line of one of timm's lists; timm, which open_clip needs, takes seconds to import."""
    package = importlib.util.find_spec("timm")
    path = Path(package.origin if package and package.origin else "timm").parent / "data" / "_info" / name
    if not path.is_file():
        raise CocuError(f"{path}: no such file; pip install 'timm>=1.0', or set vocabulary.kinds to 0")
    for line in path.read_text(encoding="utf-8").splitlines():
        identifier, _, text = line.partition("\t")
        yield identifier, text


def genus(definition: str) -> str:
    """The noun, in the singular, that a definition begins with; empty where that is a part, set or group of something.

    >>> genus("a young woman"), genus("large dog trained to guard"), genus("a group of people")
    ('woman', 'dog', '')
    """
    head = ""
    for word in WORD.findall(ENDING.split(re.sub(r"\([^)]*\)", "", definition.lower()), maxsplit=1)[0]):
        if word == "of":
            return ""
        if BEHIND.fullmatch(word):
            break
        head = word
    return singular(head)
