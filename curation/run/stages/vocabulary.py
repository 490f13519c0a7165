"""From captions to ``vocabulary.parquet``: nouns, candidates, their visualness, and the choice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from curation import visualness, vocabulary
from curation.base import files
from curation.base.embeddings import embedding_array, embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import blocks, open_parquet, row_count, write_table
from curation.concepts import Matcher
from curation.expansion import EXPANSIONS
from curation.run.progress import Progress
from curation.run.records import Reader, Record, fingerprints, record
from curation.run.run import Run
from curation.run.stages.stage import Stage
from curation.run.texts import concept_parameters, embed_concepts
from curation.samples import Shard
from curation.wordlists import read_concepts

# --- nouns ----------------------------------------------------------------------------------------------------------------


def _nouns_expected(run: Run, shard: Shard, read: Reader) -> Record:
    embedded = read(run.of_shard("embeddings", shard), "embed")
    return record({"tagger": run.config.vocabulary.tagger}, embedded["fingerprint"])


def _nouns(run: Run, shard: Shard, expected: Record, progress: Progress) -> None:
    """Count the nouns of a shard's captions: ``nouns/<shard>.parquet`` (noun, count)."""
    counts: Counter[str] = Counter()
    for block in blocks(run.of_shard("embeddings", shard), ["caption"]):
        counts.update(vocabulary.count_nouns(block["caption"].to_pylist(), run.config.vocabulary.tagger))
        progress.advance(len(block))
    names = sorted(counts)
    columns = {"noun": pa.array(names, pa.string()), "count": pa.array([counts[name] for name in names], pa.int64())}
    write_table(run.of_shard("nouns", shard), pa.table(columns), {"nouns": expected})


# --- candidates -----------------------------------------------------------------------------------------------------------


def _candidates_expected(run: Run, read: Reader) -> Record:
    config = run.config.vocabulary
    parameters = {
        "source": "build" if config.built else "file",
        "min_count": config.smallest_count if config.built else None,
        **concept_parameters(run.config),
    }
    if config.built:
        return record(parameters, fingerprints(run.of_shards("nouns"), "nouns", read))
    return record(parameters, read_concepts(config.source))


def _candidates(run: Run, expected: Record, progress: Progress) -> None:
    """The concepts that may enter the vocabulary, with text embeddings: frequent nouns, or the concepts of a file."""
    _require_samples(run)
    config = run.config.vocabulary
    names = _frequent_nouns(run) if config.built else read_concepts(config.source)
    names, embeddings = embed_concepts(run.config, names)
    table = pa.table({"concept": pa.array(names, pa.string()), "embedding": embedding_array(embeddings)})
    write_table(run.candidates, table, {"candidates": expected})


def _require_samples(run: Run) -> None:
    """Raises CocuError when not one sample can be used."""
    if not any(map(row_count, run.of_shards("embeddings"))):
        raise CocuError(f"shards: not one usable sample in {len(run.shards)} shards; {run.path('rejects')} says why")


def _frequent_nouns(run: Run) -> list[str]:
    smallest = run.config.vocabulary.smallest_count
    counts: Counter[str] = Counter()
    for path in run.of_shards("nouns"):
        with open_parquet(path) as file:
            table = file.read()
        counts.update(dict(zip(table["noun"].to_pylist(), table["count"].to_pylist(), strict=True)))
    names = vocabulary.choose_candidates(counts, smallest)
    if not names:
        raise CocuError(
            f"vocabulary.min_count: no noun is in {smallest} captions (the most frequent is in "
            f"{max(counts.values(), default=0)}); lower it, or give a file of concepts as vocabulary.source"
        )
    return names


def _read_candidates(run: Run) -> tuple[list[str], np.ndarray]:
    with open_parquet(run.candidates) as file:
        table = file.read()
    return table["concept"].to_pylist(), embedding_matrix(table["embedding"])


# --- visualness -----------------------------------------------------------------------------------------------------------


def _sample_share(run: Run) -> int:
    """Images of the random sample that each shard gives."""
    return -(-run.config.vocabulary.sample // len(run.shards))


def _visualness_expected(run: Run, shard: Shard, read: Reader) -> Record:
    candidates = read(run.candidates, "candidates")
    embedded = read(run.of_shard("embeddings", shard), "embed")
    inputs = [candidates["fingerprint"], embedded["fingerprint"], shard.index]
    return record({"sample": _sample_share(run)}, inputs)


def _visualness(run: Run, shard: Shard, expected: Record, progress: Progress) -> None:
    """Sums of t_c · f(x) over a shard, from which visualness and calibration follow: ``visualness/<shard>.parquet``."""
    source = run.of_shard("embeddings", shard)
    names, texts = _read_candidates(run)
    matcher = Matcher(names)
    rows = row_count(source)
    sample = np.sort(np.random.default_rng(shard.index).choice(rows, min(_sample_share(run), rows), replace=False))

    sums = np.zeros((len(names), 3, 3))
    start = 0
    for block in blocks(source, ["caption", "embedding"]):
        mentioned = matcher.match_all(block["caption"].to_pylist())
        first, last = np.searchsorted(sample, [start, start + len(block)])
        images = embedding_matrix(block["embedding"])
        sums += visualness.image_text_sums(images, texts, mentioned, sample[first:last] - start)
        start += len(block)
        progress.advance(len(block))

    column = pa.FixedSizeListArray.from_arrays(pa.array(sums.reshape(-1)), sums[0].size)
    write_table(run.of_shard("visualness", shard), pa.table({"sums": column}), {"visualness": expected})


# --- vocabulary -----------------------------------------------------------------------------------------------------------


def _vocabulary_expected(run: Run, read: Reader) -> Record:
    config = run.config.vocabulary
    parameters = {"min_count": config.smallest_count, "visualness": config.smallest_visualness}
    return record(parameters, fingerprints(run.of_shards("visualness"), "visualness", read))


def _choose_vocabulary(run: Run, expected: Record, progress: Progress) -> None:
    """Keep the frequent and visual candidates: vocabulary.parquet, and vocabulary.csv for people to read and edit."""
    _require_samples(run)
    config = run.config.vocabulary
    names, texts = _read_candidates(run)
    sums = np.zeros((len(names), 3, 3))
    for path in run.of_shards("visualness"):
        with open_parquet(path) as file:
            sums += file.read()["sums"].combine_chunks().flatten().to_numpy().reshape(sums.shape)

    counts = sums[:, 0, 0].astype(np.int64)
    sizes = visualness.effect_sizes(sums)
    kept = visualness.keep(counts, sizes, config.smallest_count, config.smallest_visualness)
    report = run.path("vocabulary.csv")
    if not files.is_same(report, config.source):  # a person's table, with what they left out, stays as it is
        vocabulary.write_report(report, names, counts, sizes, kept)
    if not counts.any() and EXPANSIONS[run.config.archive.expansion].of_captions:
        raise CocuError(
            f"vocabulary: no caption mentions any of {len(names)} concepts; does {config.source} fit the captions' "
            "subject and language?"
        )
    if not kept.any():
        raise CocuError(
            f"vocabulary: none of {len(names)} candidates has min_count {config.smallest_count} and visualness "
            f"{config.smallest_visualness}; read {report} and lower one of the two"
        )

    chosen = vocabulary.Vocabulary([names[row] for row in np.flatnonzero(kept)], texts[kept], counts[kept], sizes[kept])
    # What later stages depend on: a shard more may change counts, but seldom the concepts themselves.
    content = files.digest(chosen.concepts, embedding_array(chosen.embeddings).flatten().tolist())
    noted = expected | {"content": content, "embedded by": concept_parameters(run.config)}
    noted["unmentioned"] = [names[row] for row in np.flatnonzero(counts == 0)]
    mean, deviation = visualness.calibration(sums[kept]).T
    calibration = pa.table({"concept": chosen.concepts, "mean": mean, "deviation": deviation})
    write_table(run.calibration, calibration, {"vocabulary": noted})
    write_table(run.vocabulary, vocabulary.table_of(chosen), {"vocabulary": noted})


NOUNS = Stage("nouns", True, lambda run, shard: run.of_shard("nouns", shard), _nouns_expected, _nouns)
CANDIDATES = Stage("candidates", False, lambda run: run.candidates, _candidates_expected, _candidates)
VISUALNESS = Stage(
    "visualness", True, lambda run, shard: run.of_shard("visualness", shard), _visualness_expected, _visualness
)
VOCABULARY = Stage(
    "vocabulary",
    False,
    lambda run: run.vocabulary,
    _vocabulary_expected,
    _choose_vocabulary,
    is_whole=lambda run: files.exists(run.calibration),
)
