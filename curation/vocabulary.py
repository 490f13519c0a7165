"""The vocabulary Ω of visual concepts (docs/method.md §1): read from a file, or built from captions, measured with CLIP."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import open_parquet
from curation.base.ragged import Ragged
from curation.concepts import LONGEST, concept_key, count_words, singular, tokens
from curation.similarity import normalise, pair_similarities

AT_ONCE = 512  # images that are compared with every concept at once


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

    counts: Counter[str] = Counter()
    words = (tokens(caption) for caption in captions)
    for tagged in pipeline.pipe((Doc(pipeline.vocab, words=found) for found in words), batch_size=512):
        counts.update(noun_phrases([(token.text, token.tag_ in ("NN", "NNS")) for token in tagged]))
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
    """
    found: set[str] = set()
    run: list[str] = []
    for text, is_noun in [*tagged, ("", False)]:
        if is_noun and len(text) > 1 and any(character.isalpha() for character in text):
            run.append(singular(text))
            found.update(" ".join(run[-length:]) for length in range(1, min(LONGEST, len(run)) + 1))
        else:
            run = []
    # A lemma whose own lemma is another word would never be matched again under its name.
    return {phrase for phrase in found if concept_key(phrase) == tuple(phrase.split(" "))}


def choose_candidates(counts: Counter[str], min_count: int) -> list[str]:
    """Nouns in at least ``min_count`` captions, the most frequent first, ties in alphabetical order."""
    return sorted(
        (noun for noun, count in counts.items() if count >= min_count), key=lambda noun: (-counts[noun], noun)
    )


# --- visualness --------------------------------------------------------------------------------------------------------


def image_text_sums(
    images: np.ndarray, texts: np.ndarray, offsets: np.ndarray, concepts: np.ndarray, sample: np.ndarray
) -> np.ndarray:
    """Sums of t_c · f(x) from which visualness and calibration follow, for one block of images.

    images (B, D), texts (V, D): unit rows; offsets (B + 1,), concepts (P,): the concepts of each caption (CSR);
    sample (S,) int: rows that stand for a random image. Returns (V, 3, 3) float64: for each concept
    [images that mention it, sampled images, both] x [count, sum, sum of squares]. Sums of blocks add up.
    """
    rows = Ragged(offsets, concepts).owners
    similarity = pair_similarities(images, texts, Ragged(offsets, concepts)).astype(np.float64)
    sums = np.zeros((len(texts), 3, 3))
    sampled = np.isin(rows, sample)
    for kind, chosen in ((0, slice(None)), (2, sampled)):
        for power in range(3):
            sums[:, kind, power] = np.bincount(concepts[chosen], similarity[chosen] ** power, minlength=len(texts))
    sums[:, 1, 0] = len(sample)
    for start in range(0, len(sample), AT_ONCE):
        background = (images[sample[start : start + AT_ONCE]] @ texts.T).astype(np.float64)  # (S, D) @ (D, V) -> (S, V)
        sums[:, 1, 1] += background.sum(0)
        sums[:, 1, 2] += np.einsum("sv,sv->v", background, background)
    return sums


def effect_sizes(sums: np.ndarray) -> np.ndarray:
    """Visualness (V,) float32: Cohen's d between images whose captions mention a concept and other images.

    d = (mean of t_c · f(x) where mentioned - mean elsewhere) / pooled standard deviation, the pool being the mean of
    the two sample variances. NaN where either side has fewer than two images.
    """
    mentioned, others = sums[:, 0], sums[:, 1] - sums[:, 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        (mean_a, var_a), (mean_b, var_b) = _moments(mentioned), _moments(others)
        distance = (mean_a - mean_b) / np.sqrt(np.maximum((var_a + var_b) / 2, 1e-12))
    return np.where((mentioned[:, 0] >= 2) & (others[:, 0] >= 2), distance, np.nan).astype(np.float32)


def calibration(sums: np.ndarray) -> np.ndarray:
    """Mean and standard deviation (V, 2), float32, of t_c · f(x) over the random sample of images (docs/method.md §3)."""
    count, total, squares = sums[:, 1].T
    mean = total / np.maximum(count, 1)
    variance = squares / np.maximum(count, 1) - mean**2
    return np.stack([mean, np.sqrt(np.maximum(variance, 1e-12))], axis=1).astype(np.float32)


def _moments(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, total, squares = sums[:, 0], sums[:, 1], sums[:, 2]
    return total / count, (squares - total**2 / count) / (count - 1)


def keep(counts: np.ndarray, visualness: np.ndarray, min_count: int, threshold: float | None) -> np.ndarray:
    """Which candidates (V,) stay in the vocabulary; with a threshold, what could not be measured goes."""
    return (counts >= min_count) & (True if threshold is None else np.nan_to_num(visualness, nan=-np.inf) >= threshold)


# --- files -------------------------------------------------------------------------------------------------------------


def read_concepts(path: str) -> list[str]:
    """Concepts of a file, in order: ``.txt`` one a line, ``.csv`` or ``.parquet`` with a column ``concept``.

    A csv's rows whose column ``kept`` says false or 0 are left out, so that the table of a run can be edited and used.
    Later entries that mean the same concept (singular = plural) are left out. Raises CocuError for a missing or
    empty file, a missing column, or an entry of more than 4 words.
    """
    with files.open_file(path) as stream:
        content = stream.read()
    if path.endswith(".parquet"):
        try:
            table = pq.read_table(io.BytesIO(content))
        except (pa.ArrowException, OSError) as error:
            raise CocuError(f"{path}: not a parquet file ({' '.join(str(error).split())})") from None
        if "concept" not in table.column_names:
            raise CocuError(f"{path}: no column concept, only {', '.join(table.column_names)}")
        entries = [entry or "" for entry in table["concept"].to_pylist()]
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise CocuError(f"{path}: not UTF-8") from None
        try:
            entries = list(_csv_concepts(text, path)) if path.endswith(".csv") else text.splitlines()
        except csv.Error as error:
            raise CocuError(f"{path}: not a csv table ({error})") from None
    unique: dict[tuple[str, ...], str] = {}
    for line, entry in enumerate(entries, 1):
        key = concept_key(entry)
        if not key:
            continue
        if not 1 <= count_words(key) <= LONGEST:
            raise CocuError(f"{path}: entry {line}, {entry.strip()!r}: a concept has 1 to {LONGEST} words")
        unique.setdefault(key, " ".join(entry.split()))
    if not unique:
        raise CocuError(f"{path}: no concepts in it")
    return list(unique.values())


def _csv_concepts(text: str, path: str) -> Iterator[str]:
    rows = csv.DictReader(io.StringIO(text))
    if "concept" not in (rows.fieldnames or ()):
        raise CocuError(f"{path}: no column concept in its first line")
    for row in rows:
        if (row.get("kept") or "true").strip().lower() not in ("false", "0", "no"):
            yield row["concept"] or ""


def embedding_array(embeddings: np.ndarray) -> pa.FixedSizeListArray:
    """(N, D) -> fixed_size_list<halffloat>[D], as every embedding is stored."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(embeddings, dtype=np.float16).reshape(-1)), embeddings.shape[1]
    )


def embedding_matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """fixed_size_list<halffloat>[D] -> (N, D) float32, unit rows: fp16 as stored, renormalised."""
    chunk = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return normalise(chunk.flatten().to_numpy(zero_copy_only=False).reshape(len(chunk), chunk.type.list_size))


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
    """Read ``vocabulary.parquet`` back."""
    with open_parquet(path) as file:
        table = file.read()
    return Vocabulary(
        table["concept"].to_pylist(),
        embedding_matrix(table["embedding"]),
        table["count"].to_numpy(),
        table["visualness"].to_numpy(zero_copy_only=False),
    )


def write_report(path: str, concepts: list[str], counts: np.ndarray, visualness: np.ndarray, kept: np.ndarray) -> None:
    """The table of all candidates, the most visual first, for people to read, edit and give back as ``source``."""
    order = np.lexsort((np.arange(len(concepts)), -np.nan_to_num(visualness, nan=-np.inf)))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["concept", "count", "visualness", "kept"])
    for row in order:
        measured = "" if np.isnan(visualness[row]) else f"{visualness[row]:.4f}"
        writer.writerow([concepts[row], counts[row], measured, str(bool(kept[row])).lower()])
    with files.atomic_write(path) as stream:
        stream.write(text.getvalue().encode())
