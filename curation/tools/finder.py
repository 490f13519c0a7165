"""The images of a run that are nearest to words or to a picture, by its encoder and its index."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from curation import encoder
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.images import decode
from curation.base.parquet import open_parquet
from curation.concepts import LONGEST, concept_key, count_words
from curation.index.open import SearchIndex
from curation.run.indexes import INDEXES, open_images
from curation.run.run import Run
from curation.vocabulary import Vocabulary, read_vocabulary

LARGEST_PICTURE = 1 << 28  # bytes of a picture to search by


@dataclass(frozen=True)
class Finder:
    """Finds images of a finished run. What it needs is loaded when it is first asked for."""

    run: Run

    @cached_property
    def _index(self) -> SearchIndex | None:
        index = open_images(self.run)
        return index and index.one_by_one()

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return read_vocabulary(self.run.vocabulary)

    @cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @property
    def has_encoder(self) -> bool:
        """Whether any words can be searched by, not only concepts of the vocabulary."""
        return self.run.config.encoder.is_named

    def embed_words(self, words: str) -> np.ndarray:
        """The embedding (1, D) of words, a unit row: of few words in the prompts of the run, of more as they stand.

        Raises CocuError where nothing gives one: the run names no encoder, and the words are no concept of it.
        """
        if not words.strip():
            raise CocuError("search: no words to search by")
        if not self.has_encoder:
            return self._embed_concept(words)
        with self._lock:
            encode = encoder.load(self.run.config.encoder).encode_texts
            if count_words(concept_key(words)) > LONGEST:
                return encode([words])
            return encoder.encode_concepts(encode, [words], self.run.config.vocabulary.prompts)

    def _embed_concept(self, words: str) -> np.ndarray:
        vocabulary = self._vocabulary
        for number, concept in enumerate(vocabulary.concepts):
            if concept_key(concept) == concept_key(words):
                return vocabulary.embeddings[number : number + 1]
        raise CocuError(
            f"{self.run.folder}: names no encoder, so that only its own concepts can be searched by, and {words} is none; "
            "search captions instead"
        )

    def embed_picture(self, path: str) -> np.ndarray:
        """The embedding (1, D) of a picture file. Raises CocuError for one that cannot be read or decoded."""
        if not self.has_encoder:
            raise CocuError(f"{self.run.folder}: names no encoder, so that no picture can be compared with its images")
        with files.open_file(path) as stream:
            content = stream.read(LARGEST_PICTURE)
        with self._lock:
            model = encoder.load(self.run.config.encoder)
            try:
                picture = decode(content, model.side)
            except CocuError as error:
                raise CocuError(f"{path}: {error}") from None
            return model.encode_images(torch.stack([model.preprocess(picture)]))

    def nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (K,) int64 of the run and cosines (K,), descending, of the ``count`` images nearest to a query (1, D).

        By the run's index of its images; where it has none, by comparing all.
        """
        if self._index is None:
            return scan(self.run, query, count)
        if self._index.faiss.d != query.shape[1]:
            raise CocuError(
                f"{self.run.folder}: its encoder gives {query.shape[1]} dimensions, but its images have "
                f"{self._index.faiss.d}"
            )
        cosines, rows = self._index.search(query, min(count, self._index.rows))
        order = np.lexsort((rows[0], -cosines[0]))  # of equal images the first row
        order = order[rows[0][order] >= 0]
        return rows[0][order], cosines[0][order]


def scan(run: Run, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """As :meth:`Finder.nearest`, by comparing all images, one block of them in memory."""
    best = np.zeros(0, np.int64), np.zeros(0, np.float32)
    start = 0
    for block in INDEXES["image"].vectors(run):
        cosines = np.concatenate([best[1], block @ query[0]])
        rows = np.concatenate([best[0], start + np.arange(len(block))])
        order = np.lexsort((rows, -cosines))[:count]
        best = rows[order], cosines[order]
        start += len(block)
    return best


def image_embedding(run: Run, shard: int, row: int) -> np.ndarray:
    """The embedding (1, D) of an image, a unit row, from the row group that holds it."""
    path = run.of_shard("embeddings", run.shards[shard])
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row < size:
                return embedding_matrix(file.read_row_group(group, ["embedding"])["embedding"].slice(row, 1))
            row -= size
    raise CocuError(f"{path}: has fewer rows than the archives; run cocu curate again")
