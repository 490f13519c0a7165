"""From nouns to ``vocabulary.parquet``: candidates, their visualness, and the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from curation import visualness, vocabulary
from curation.base import files
from curation.base.embeddings import embedding_array, embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import blocks, open_parquet, row_count, write_table
from curation.choice import NounFacts, listed, reasons_to_drop
from curation.concepts import Matcher
from curation.expansion import EXPANSIONS
from curation.nouns import Candidate
from curation.run.captions import block_captions, caption_column
from curation.run.progress import Progress
from curation.run.records import Reader, Record, fingerprints, record
from curation.run.rejects import check_rejects, main_reasons
from curation.run.run import Run
from curation.run.stages.nouns import RULES, frequent_nouns, noun_positions
from curation.run.stages.stage import Stage
from curation.run.texts import concept_parameters, embed_concepts
from curation.samples import Shard
from curation.wordlists import read_concepts

# --- candidates -----------------------------------------------------------------------------------------------------------


def _candidates_expected(run: Run, read: Reader) -> Record:
    config = run.config.vocabulary
    parameters = {
        "source": "build" if config.built else "file",
        "min_count": config.smallest_count if config.built else None,
        **concept_parameters(run.config),
    }
    if config.keep:
        parameters["keep"] = config.keep
    if config.built:
        return record(parameters, fingerprints(run.of_shards("nouns"), "nouns", read))
    return record(parameters, read_concepts(config.source))


def _candidates(run: Run, expected: Record, progress: Progress) -> None:
    """The concepts that may enter the vocabulary, with text embeddings: frequent nouns, or the concepts of a file."""
    _require_samples(run)
    config = run.config.vocabulary
    nouns = frequent_nouns(run) if config.built else []
    listed_names = [noun.name for noun in nouns] if config.built else read_concepts(config.source)
    exact = frozenset(noun.name for noun in nouns if noun.exact)
    unknown = [concept for concept in config.keep if not listed(listed_names, [concept], exact).any()]
    names, embeddings = embed_concepts(run.config, listed_names + unknown)
    columns = {"concept": pa.array(names, pa.string()), "embedding": embedding_array(embeddings)}
    if config.built:
        by_name = {concept: Candidate(concept, 0, 1.0, "", exact=False) for concept in unknown}
        by_name |= {noun.name: noun for noun in nouns}
        nouns = [by_name[name] for name in names]  # given embeddings may lack some
        columns["head_share"] = pa.array([noun.head_share for noun in nouns], pa.float64())
        columns["part_of"] = pa.array([noun.part_of for noun in nouns], pa.string())
        columns["exact"] = pa.array([noun.exact for noun in nouns], pa.bool_())
    write_table(run.candidates, pa.table(columns), {"candidates": expected})


def _require_samples(run: Run) -> None:
    """Raises CocuError when not one sample can be used, or fewer than ``max_rejects`` asks for."""
    if not any(map(row_count, run.of_shards("embeddings"))):
        reasons = main_reasons(run)
        raise CocuError(
            f"shards: not one usable sample in {len(run.shards)} shards; {run.path('rejects')} says why"
            + (f": {reasons}" if reasons else "")
        )
    check_rejects(run)


def _read_candidates(run: Run) -> pa.Table:
    with open_parquet(run.candidates) as file:
        return file.read()


def _exact(candidates: pa.Table) -> frozenset[str]:
    """The candidates that are matched as they are written."""
    if "exact" not in candidates.column_names:
        return frozenset()
    return frozenset(candidates.filter(candidates["exact"])["concept"].to_pylist())


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
    candidates = _read_candidates(run)
    names, texts = candidates["concept"].to_pylist(), embedding_matrix(candidates["embedding"])
    matcher = Matcher(names, _exact(candidates))
    nouns = noun_positions(run, run, shard)
    rows = row_count(source)
    sample = np.sort(np.random.default_rng(shard.index).choice(rows, min(_sample_share(run), rows), replace=False))

    sums = np.zeros((len(names), 3, 3))
    written = np.zeros(len(names), np.int64)  # images whose captions hold the words of a concept, noun or not
    start = 0
    for block in blocks(source, [caption_column(run.config), "embedding"]):
        captions, stop = block_captions(block, run.config), start + len(block)
        mentioned, _ = captions.mentioned(matcher, nouns[start:stop] if nouns is not None else None)
        if nouns is not None:
            written += np.bincount(captions.mentioned(matcher)[0].values, minlength=len(names))
        first, last = np.searchsorted(sample, [start, stop])
        images = embedding_matrix(block["embedding"])
        sums += visualness.image_text_sums(images, texts, mentioned, sample[first:last] - start)
        start = stop
        progress.advance(len(block))

    columns = {"sums": pa.FixedSizeListArray.from_arrays(pa.array(sums.reshape(-1)), sums[0].size)}
    if nouns is not None:
        columns["written"] = pa.array(written)
    write_table(run.of_shard("visualness", shard), pa.table(columns), {"visualness": expected})


# --- vocabulary -----------------------------------------------------------------------------------------------------------


def _vocabulary_expected(run: Run, read: Reader) -> Record:
    config = run.config.vocabulary
    parameters: dict[str, Any] = {"min_count": config.smallest_count, "visualness": config.smallest_visualness}
    if config.built:
        parameters |= {"noun_share": config.noun_share, "head_share": config.head_share, "kinds": config.kinds}
    if config.keep:
        parameters["keep"] = config.keep
    return record(parameters, fingerprints(run.of_shards("visualness"), "visualness", read))


def _choose_vocabulary(run: Run, expected: Record, progress: Progress) -> None:
    """Keep the frequent and visual candidates: vocabulary.parquet, and vocabulary.csv for people to read and edit."""
    _require_samples(run)
    config = run.config.vocabulary
    candidates = _read_candidates(run)
    names, texts = candidates["concept"].to_pylist(), embedding_matrix(candidates["embedding"])
    sums, written = _read_sums(run, len(names))
    counts = sums[:, 0, 0].astype(np.int64)
    sizes = visualness.effect_sizes(sums)

    exact = _exact(candidates)
    facts = None
    if config.built:
        shares = np.where(written > 0, counts / np.maximum(written, 1), np.nan)
        heads, part_of = candidates["head_share"].to_numpy(), candidates["part_of"].to_pylist()
        facts = NounFacts(shares, heads, part_of, exact)
    reasons = reasons_to_drop(names, counts, sizes, facts, config)
    kept = np.array([not reason for reason in reasons], bool)
    report = run.path("vocabulary.csv")
    if not files.is_same(report, config.source):  # a person's table, with what they left out, stays as it is
        vocabulary.write_report(report, names, counts, sizes, kept, facts.noun_share if facts else None, reasons)
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

    concepts = [names[row] for row in np.flatnonzero(kept)]
    chosen = vocabulary.Vocabulary(concepts, texts[kept], counts[kept], sizes[kept], exact.intersection(concepts))
    # What later stages depend on: a shard more may change counts, but seldom the concepts themselves.
    content = files.digest(concepts, embedding_array(chosen.embeddings).flatten().tolist(), *_matched_by(run, chosen))
    noted = expected | {"content": content, "embedded by": concept_parameters(run.config)}
    noted["unmentioned"] = [names[row] for row in np.flatnonzero(counts == 0)]
    mean, deviation = visualness.calibration(sums[kept]).T
    calibration = pa.table({"concept": chosen.concepts, "mean": mean, "deviation": deviation})
    write_table(run.calibration, calibration, {"vocabulary": noted})
    write_table(run.vocabulary, vocabulary.table_of(chosen), {"vocabulary": noted})


def _read_sums(run: Run, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Over all shards: the sums (V, 3, 3), and in how many captions (V,) the words of a concept are, nouns or not."""
    sums, written = np.zeros((width, 3, 3)), np.zeros(width, np.int64)
    for path in run.of_shards("visualness"):
        with open_parquet(path) as file:
            table = file.read()
        sums += table["sums"].combine_chunks().flatten().to_numpy().reshape(sums.shape)
        if "written" in table.column_names:
            written += table["written"].to_numpy()
    return sums, written


def _matched_by(run: Run, chosen: vocabulary.Vocabulary) -> list[list[str]]:
    """What decides which words mention a concept, beside its name; nothing for the concepts of a file."""
    config = run.config.vocabulary
    return [[config.tagger, str(RULES), *sorted(chosen.exact)]] if config.built else []


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
