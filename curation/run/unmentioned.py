"""Concepts of a file that no caption mentions, and what captions say instead: a word misspelt, or another for the same."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from curation.base.embeddings import embedding_matrix
from curation.base.errors import listed
from curation.base.parquet import blocks, open_parquet, row_count
from curation.concepts import concept_key, singular, tokens
from curation.run.captions import block_captions, caption_column
from curation.run.records import read_record
from curation.run.run import Run
from curation.vocabulary import read_vocabulary

SHOWN = 12  # concepts whose nearest words are looked for
CAPTIONS = 20_000  # that are read for words
ALIKE = 0.8  # of difflib's ratio, from 0 to 1
NEAREST = 2


def unmentioned(run: Run) -> dict[str, Any]:
    """What a manifest says of concepts that no caption mentions: their number, of how many, and words nearest to the first.

    Near is a word or pair of words that captions use and that is spelt alike, then a mentioned concept of near embedding.
    Empty where captions mention all.
    """
    names = read_record(run.vocabulary, "vocabulary").get("unmentioned") or []
    if not names:
        return {}
    spelt = _spellings(run)
    by_meaning = _nearest_concepts(run, names[:SHOWN])
    nearest = {
        name: list(dict.fromkeys([*_spelt_alike(name, spelt), *by_meaning.get(name, [])]))[:NEAREST]
        for name in names[:SHOWN]
    }
    return {"count": len(names), "of": row_count(run.candidates), "nearest": nearest}


def sentence(noted: dict[str, Any]) -> str:
    """The same in words.

    >>> sentence({"count": 1, "of": 23, "nearest": {"lorry": ["truck", "van"]}})
    '1 of 23 concepts is in no caption: lorry (nearest: truck, van)'
    """
    parts = [f"{name} (nearest: {', '.join(near)})" if near else name for name, near in noted["nearest"].items()]
    more = f" and {noted['count'] - len(parts):,} more" if noted["count"] > len(parts) else ""
    verb = "is" if noted["count"] == 1 else "are"
    return f"{noted['count']:,} of {noted['of']:,} concepts {verb} in no caption: {listed(parts, SHOWN)}{more}"


def _captions(run: Run) -> Iterator[str]:
    """As many captions of every shard as make up CAPTIONS in all."""
    share = -(-CAPTIONS // len(run.shards))
    for path in run.of_shards("embeddings"):
        block = next(blocks(path, [caption_column(run.config)], share), None)
        yield from block_captions(block, run.config).texts if block is not None else []


def _spellings(run: Run) -> dict[str, str]:
    """Words and pairs of words of captions, by their letters alone; the more frequent of two with the same letters."""
    counts: Counter[str] = Counter()
    for caption in _captions(run):
        words = [singular(token) for token in tokens(caption) if token[0].isalnum()]
        counts.update(words)
        counts.update(" ".join(pair) for pair in pairwise(words) if min(map(len, pair)) > 2)
    return {_letters(word): word for word, _ in reversed(counts.most_common())}


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _spelt_alike(name: str, spelt: dict[str, str]) -> list[str]:
    """What captions use that is spelt nearly like a concept, and begins with the same letter."""
    letters = _letters("".join(concept_key(name)))
    near = [other for other in spelt if other[:1] == letters[:1] and abs(len(other) - len(letters)) <= 2]
    return [spelt[other] for other in difflib.get_close_matches(letters, near, NEAREST, ALIKE)]


def _nearest_concepts(run: Run, names: list[str]) -> dict[str, list[str]]:
    """For each concept, those of the vocabulary that captions mention and whose text embeddings are nearest."""
    vocabulary = read_vocabulary(run.vocabulary)
    used = np.flatnonzero(vocabulary.counts > 0)
    with open_parquet(run.candidates) as file:
        table = file.read(["concept", "embedding"])
    rows = [row for row, name in enumerate(table["concept"].to_pylist()) if name in set(names)]
    cosines = embedding_matrix(table["embedding"].take(rows)) @ vocabulary.embeddings[used].T
    order = used[np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]]
    chosen = table["concept"].take(rows).to_pylist()
    return {name: [vocabulary.concepts[near] for near in row] for name, row in zip(chosen, order, strict=True)}
