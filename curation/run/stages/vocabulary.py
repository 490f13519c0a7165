"""From captions to ``vocabulary.parquet``: nouns, candidates, their visualness, and the choice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from curation import encoder, vocabulary
from curation.base import files
from curation.base.embeddings import embedding_array, embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import ROW_GROUP, blocks, open_parquet, row_count, write_table
from curation.concepts import Matcher
from curation.run.run import Run, record
from curation.run.stages.work import Work, fingerprint_of
from curation.samples import Shard
from curation.visualness import calibration, effect_sizes, image_text_sums, keep


def nouns(run: Run, shard: Shard) -> None:
    """Count the nouns of a shard's captions: ``nouns/<shard>.parquet`` (noun, count)."""
    path, source = run.of_shard("nouns", shard), run.of_shard("embeddings", shard)
    tagger = run.config.vocabulary.tagger
    work = Work(run, "nouns", path, record({"tagger": tagger}, fingerprint_of(source, "embed")), shard)
    if work.fresh:
        return
    counts: Counter[str] = Counter()
    for block in blocks(source, ["caption"], ROW_GROUP):
        counts.update(vocabulary.count_nouns(block["caption"].to_pylist(), tagger))
        work.advance(len(block))
    names = sorted(counts)
    columns = {"noun": pa.array(names, pa.string()), "count": pa.array([counts[name] for name in names], pa.int64())}
    write_table(path, pa.table(columns), {"nouns": work.record})
    work.done()


def candidates(run: Run) -> None:
    """The concepts that may enter the vocabulary, with text embeddings: frequent nouns, or the concepts of a file."""
    config = run.config.vocabulary
    parameters = {
        "source": "build" if config.built else "file",
        "min_count": config.smallest_count if config.built else None,
        "prompts": config.prompts,
        "encoder": encoder.identity(run.config.encoder),
    }
    if config.built:
        inputs = [fingerprint_of(run.of_shard("nouns", shard), "nouns") for shard in run.shards]
    else:
        inputs = vocabulary.read_concepts(config.source)
    work = Work(run, "candidates", run.candidates, record(parameters, inputs))
    if not any(row_count(run.of_shard("embeddings", shard)) for shard in run.shards):
        raise CocuError(f"shards: not one usable sample in {len(run.shards)} shards; {run.path('rejects')} says why")
    if work.fresh:
        return
    names = _frequent_nouns(run) if config.built else inputs
    embeddings = encoder.encode_concepts(encoder.load(run.config.encoder).encode_texts, names, config.prompts)
    table = pa.table({"concept": pa.array(names, pa.string()), "embedding": embedding_array(embeddings)})
    write_table(run.candidates, table, {"candidates": work.record})
    work.done()


def _frequent_nouns(run: Run) -> list[str]:
    smallest = run.config.vocabulary.smallest_count
    counts: Counter[str] = Counter()
    for shard in run.shards:
        with open_parquet(run.of_shard("nouns", shard)) as file:
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


def visualness(run: Run, shard: Shard) -> None:
    """Sums of t_c · f(x) over a shard, from which visualness and calibration follow: ``visualness/<shard>.parquet``."""
    path, source = run.of_shard("visualness", shard), run.of_shard("embeddings", shard)
    share = -(-run.config.vocabulary.sample // len(run.shards))  # of the random sample that this shard gives
    inputs = [fingerprint_of(run.candidates, "candidates"), fingerprint_of(source, "embed"), shard.index]
    work = Work(run, "visualness", path, record({"sample": share}, inputs), shard)
    if work.fresh:
        return
    names, texts = _read_candidates(run)
    matcher = Matcher(names)
    rows = row_count(source)
    sample = np.sort(np.random.default_rng(shard.index).choice(rows, min(share, rows), replace=False))
    sums, start = np.zeros((len(names), 3, 3)), 0
    for block in blocks(source, ["caption", "embedding"], ROW_GROUP):
        offsets, found = matcher.match_all(block["caption"].to_pylist())
        first, last = np.searchsorted(sample, [start, start + len(block)])
        images = embedding_matrix(block["embedding"])
        sums += image_text_sums(images, texts, offsets, found, sample[first:last] - start)
        start += len(block)
        work.advance(len(block))
    column = pa.FixedSizeListArray.from_arrays(pa.array(sums.reshape(-1)), sums[0].size)
    write_table(path, pa.table({"sums": column}), {"visualness": work.record})
    work.done()


def choose_vocabulary(run: Run) -> None:
    """Keep the frequent and visual candidates: vocabulary.parquet, and vocabulary.csv for people to read and edit."""
    config = run.config.vocabulary
    paths = [run.of_shard("visualness", shard) for shard in run.shards]
    parameters = {"min_count": config.smallest_count, "visualness": config.smallest_visualness}
    new = record(parameters, [fingerprint_of(path, "visualness") for path in paths])
    work = Work(run, "vocabulary", run.vocabulary, new, whole=files.exists(run.calibration))
    if work.fresh:
        return
    names, texts = _read_candidates(run)
    sums = np.zeros((len(names), 3, 3))
    for path in paths:
        with open_parquet(path) as file:
            sums += file.read()["sums"].combine_chunks().flatten().to_numpy().reshape(sums.shape)
    counts, sizes = sums[:, 0, 0].astype(np.int64), effect_sizes(sums)
    kept = keep(counts, sizes, config.smallest_count, config.smallest_visualness)
    report = run.path("vocabulary.csv")
    vocabulary.write_report(report, names, counts, sizes, kept)
    if not counts.any() and run.config.archive.expansion != "tagging":
        raise CocuError(
            f"vocabulary: no caption mentions any of {len(names)} concepts; does {run.config.vocabulary.source} fit "
            "the captions' subject and language?"
        )
    if not kept.any():
        raise CocuError(
            f"vocabulary: none of {len(names)} candidates has min_count {config.smallest_count} and visualness "
            f"{config.smallest_visualness}; read {report} and lower one of the two"
        )
    chosen = vocabulary.Vocabulary([names[row] for row in np.flatnonzero(kept)], texts[kept], counts[kept], sizes[kept])
    # What later stages depend on: a shard more may change counts, but seldom the concepts themselves.
    new = new | {"content": files.digest(chosen.concepts, embedding_array(chosen.embeddings).flatten().tolist())}
    mean, deviation = calibration(sums[kept]).T
    moments = pa.table({"concept": chosen.concepts, "mean": mean, "deviation": deviation})
    write_table(run.calibration, moments, {"vocabulary": new})
    write_table(run.vocabulary, vocabulary.table_of(chosen), {"vocabulary": new})
    work.done()
