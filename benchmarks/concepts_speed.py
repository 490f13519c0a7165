"""``python benchmarks/concepts_speed.py``: concepts of captions, against n-grams over NLTK's tokenizer.

The captions are the lines of a file, or sentences that every machine has that can run this: those of the Python
documentation and of the descriptions of installed packages, prose with contractions, hyphens and typographic quotes.
"""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics

from nltk.tokenize.destructive import NLTKWordTokenizer
from nltk.util import ngrams
from results import arguments, in_turns, publish

from curation.base.markdown import table
from curation.base.versions import conditions
from curation.concepts import LONGEST, Matcher, concept_key, singular
from curation.config import VocabularyConfig
from curation.nouns import candidates, count_facts, tag

RATIO = 10.0  # microseconds a caption, theirs to ours
SAMPLE = 3000  # captions whose nouns are the vocabulary
ROUNDS = 5


def sentences() -> list[str]:
    """English sentences of 5 to 30 words, in a fixed order."""
    texts = list(topics.values())
    for package in sorted(metadata.distributions(), key=lambda package: str(package.metadata["Name"])):
        texts.append(str(package.metadata.json.get("description", "")))
    paragraphs = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
    unique = dict.fromkeys(line for part in paragraphs for line in re.split(r"(?<=[.!?])\s+", part))
    return [line for line in unique if 5 <= len(line.split()) <= 30 and len(line) < 300]


class Tokenizer(NLTKWordTokenizer):  # type: ignore[misc]  # NLTK has no types
    """NLTK's tokenizer (that of ``word_tokenize``), cut to the tokens of docs/method.md §1.

    Contractions stay whole here, and what is neither a word, a hyphenated word nor 's is cut at its marks.
    """

    CONTRACTIONS2 = CONTRACTIONS3 = ()
    ENDING_QUOTES = (*NLTKWordTokenizer.ENDING_QUOTES[:3], (re.compile(r"(\w)('s\b)"), r"\1 \2 "))
    word = re.compile(r"[^\W_]+(?:-[^\W_]+)*|'s")
    parts = re.compile(r"[^\W_]+(?:-[^\W_]+)*|'s\b|\S")

    def words(self, text: str) -> list[str]:
        """The tokens of a text, case-folded."""
        folded = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
        cut = ([token] if self.word.fullmatch(token) else self.parts.findall(token) for token in self.tokenize(folded))
        return list(itertools.chain.from_iterable(cut))


def by_ngrams(caption: str, tokenizer: Tokenizer, concepts: dict[tuple[str, ...], int]) -> set[int]:
    """Ids of the concepts among a caption's n-grams of 1 to 4 words in the singular: how it is usually done."""
    words = list(map(singular, tokenizer.words(caption)))
    matches = set()
    for length in range(1, LONGEST + 1):
        for gram in ngrams(words, length):
            if gram in concepts:
                matches.add(concepts[gram])
    return matches


def vocabulary(captions: list[str]) -> list[str]:
    """The most frequent nouns and noun compounds of some captions, as ``vocabulary.source: build`` finds them."""
    tagged = tag(captions[:: len(captions) // SAMPLE + 1], VocabularyConfig().tagger)
    return [noun.name for noun in candidates(count_facts(tagged), 1) if not noun.exact]


def main() -> int:
    """Measure, print, write RESULTS.md; exit code 1 when a mark is missed."""
    parser = arguments(__file__, "Concept extraction, against n-grams over NLTK's tokenizer.")
    parser.add_argument("--captions", type=Path, help="a text file with one caption a line, in place of documentation")
    args = parser.parse_args()
    captions = args.captions.read_text(encoding="utf-8").splitlines() if args.captions else sentences()
    names = vocabulary(captions)
    tokenizer = Tokenizer()
    concepts = {concept_key(name): number for number, name in enumerate(names)}
    matcher = Matcher(names)

    theirs = [by_ngrams(caption, tokenizer, concepts) for caption in captions]
    ours = [matcher.match(caption) for caption in captions]
    equal = sum(set(a) == b for a, b in zip(ours, theirs, strict=True))
    seconds = in_turns(
        [
            lambda: [by_ngrams(caption, tokenizer, concepts) for caption in captions],
            lambda: matcher.match_all(captions),
        ],
        3 * ROUNDS if args.full else ROUNDS,
    )
    slow, fast = (1e6 * total / len(captions) for total in seconds)

    words = sum(len(caption.split()) for caption in captions) / len(captions)
    contracted, hyphenated, other = (
        sum(bool(re.search(pattern, caption)) for caption in captions)
        for pattern in (r"\w['’]\w", r"\w-\w", r"[^\x00-\x7f]")
    )
    source = args.captions or "the Python documentation and the descriptions of installed packages"
    return publish(
        "Concepts of captions",
        [
            conditions("nltk"),
            f"{len(captions):,} sentences of {source}, {words:.1f} words each; {contracted:,} with contractions or "
            f"possessives, {hyphenated:,} with hyphens, {other:,} with characters beyond ASCII; {len(names):,} concepts, "
            f"{sum(map(len, ours)) / len(captions):.1f} a sentence. One thread, the best of several rounds in turn. NLTK's "
            "tokenizer is set to our tokens, docs/method.md §1 (contractions off, words cut at other marks), so that the "
            "results can be equal; both take singulars from the same cache.",
            table(
                ["", "us a caption", "ratio", "equal results"],
                [
                    ["n-grams over NLTK's tokenizer", f"{slow:.1f}", "1", ""],
                    ["first-word index (`curation/concepts.py`)", f"{fast:.1f}", f"{slow / fast:.1f}", f"{equal:,}"],
                ],
            ),
        ],
        {
            f"concepts at least {RATIO:.0f} times faster ({slow / fast:.1f})": slow >= RATIO * fast,
            f"equal results for every caption ({equal:,} of {len(captions):,})": equal == len(captions),
        },
    )


if __name__ == "__main__":
    sys.exit(main())
