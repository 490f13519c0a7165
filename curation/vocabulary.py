"""The vocabulary Ω of visual concepts (docs/method.md §1): built from captions, and stored."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curation.base import files
from curation.base.embeddings import embedding_array, embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import check_columns, open_parquet, read_columns
from curation.concepts import LONGEST, concept_key, singular, tokens

TAGGED_AT_ONCE = 512  # captions


@dataclass(frozen=True)
class Vocabulary:
    """Concepts by id: the position in every field."""

    concepts: list[str]
    embeddings: np.ndarray  # (V, D) float32, unit rows: t_c
    counts: np.ndarray  # (V,) int64: captions that mention the concept
    visualness: np.ndarray  # (V,) float32: Cohen's d, NaN where it could not be measured


# --- nouns of captions -------------------------------------------------------------------------------------------------


def count_nouns(captions: Iterable[str], tagger: str) -> Counter[str]:
    """How many captions mention each noun lemma and each noun compound of 2 to 4 words.

    Parts of speech come from the spaCy pipeline ``tagger``, run on our own tokens, so that what is counted is what
    :class:`curation.concepts.Matcher` finds. Raises CocuError when the pipeline is not installed.
    """
    pipeline = _load_tagger(tagger)
    from spacy.tokens import Doc

    documents = (Doc(pipeline.vocab, words=tokens(caption)) for caption in captions)
    counts: Counter[str] = Counter()
    for document in pipeline.pipe(documents, batch_size=TAGGED_AT_ONCE):
        counts.update(noun_phrases([(token.text, token.tag_ in ("NN", "NNS")) for token in document]))
    return counts


def _load_tagger(name: str) -> Any:
    import spacy

    try:
        return spacy.load(name, exclude=["parser", "ner", "lemmatizer", "attribute_ruler"])
    except OSError:
        raise CocuError(f"vocabulary.tagger: the spaCy pipeline {name} is not installed; pip install it") from None


def noun_phrases(tagged: list[tuple[str, bool]]) -> set[str]:
    """Noun lemmas and compounds in one caption, from its tokens and whether each is a common noun.

    A compound is a run of 2 to 4 adjacent nouns, or part of one: "chocolate birthday cake" gives all its sub-runs.

    >>> sorted(noun_phrases([("two", False), ("wine", True), ("glasses", True)]))
    ['glass', 'wine', 'wine glass']
    """
    phrases: set[str] = set()
    run: list[str] = []
    for text, is_noun in [*tagged, ("", False)]:
        if is_noun and len(text) > 1 and any(character.isalpha() for character in text):
            run.append(singular(text))
            phrases.update(" ".join(run[-length:]) for length in range(1, min(LONGEST, len(run)) + 1))
        else:
            run = []

    # A lemma whose own lemma is another word would never be matched again under its name.
    return {phrase for phrase in phrases if concept_key(phrase) == tuple(phrase.split(" "))}


def choose_candidates(counts: Counter[str], min_count: int) -> list[str]:
    """Nouns in at least ``min_count`` captions, the most frequent first, ties in alphabetical order."""
    frequent = (noun for noun, count in counts.items() if count >= min_count)
    return sorted(frequent, key=lambda noun: (-counts[noun], noun))


# --- the table of candidates, for people to read -------------------------------------------------------------------------


def write_report(path: str, concepts: list[str], counts: np.ndarray, visualness: np.ndarray, kept: np.ndarray) -> None:
    """The table of all candidates, the most visual first, for people to read, edit and give back as ``source``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["concept", "count", "visualness", "kept"])
    order = np.lexsort((np.arange(len(concepts)), -np.nan_to_num(visualness, nan=-np.inf)))
    for row in order:
        measured = "" if np.isnan(visualness[row]) else f"{visualness[row]:.4f}"
        writer.writerow([concepts[row], counts[row], measured, str(bool(kept[row])).lower()])

    with files.atomic_write(path) as stream:
        stream.write(text.getvalue().encode())


# --- vocabulary.parquet ------------------------------------------------------------------------------------------------


def table_of(vocabulary: Vocabulary) -> pa.Table:
    """``vocabulary.parquet``: concept, count, visualness, embedding; the row number is the concept id."""
    return pa.table(
        {
            "concept": pa.array(vocabulary.concepts, pa.string()),
            "count": pa.array(vocabulary.counts, pa.int64()),
            "visualness": pa.array(vocabulary.visualness, pa.float32(), from_pandas=True),
            "embedding": embedding_array(vocabulary.embeddings),
        }
    )


def read_vocabulary(path: str) -> Vocabulary:
    """Read ``vocabulary.parquet`` back. Raises CocuError when it is missing or damaged."""
    kinds = {"concept": pa.string(), "count": pa.int64(), "embedding": None}
    table = read_columns(path, kinds)
    with open_parquet(path) as file:  # NaN where it could not be measured
        check_columns(file, ["visualness"], path)
        visualness = file.read(["visualness"])["visualness"].cast(pa.float32())
    return Vocabulary(
        table["concept"].to_pylist(),
        embedding_matrix(table["embedding"]),
        table["count"].to_numpy(),
        visualness.to_numpy(zero_copy_only=False),
    )
