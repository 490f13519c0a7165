"""``cocu verify OUT``: is a finished run what it says it is?

Checks that every file is there and whole, counts, schemas, order, score bounds and fingerprints, and computes a random
sample of archives again by the plain formulas of docs/method.md §2 and §3, one anchor and one concept at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from curation.archive import archive_schema, read_archive
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import open_parquet, read_metadata, row_count
from curation.base.ragged import Ragged
from curation.base.terminal import FAILED, print_error, printable
from curation.clustering import LAST_CLUSTER
from curation.expansion import EXPANSIONS
from curation.ranking import RANKINGS
from curation.run.forecast import forecast
from curation.run.inputs import request
from curation.run.rejects import read_rejects
from curation.run.run import Run
from curation.run.stages.embeddings import REJECTS
from curation.run.stages.embeddings import schema as embedding_schema
from curation.samples import Shard
from curation.tools.commands.verify import main
from curation.tools.plain import PlainCurator
from curation.vocabulary import read_vocabulary

TOLERANCE = 2e-3  # relative, of recomputed scores: stored fp16 embeddings leave ties and the last digits open


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be."""

    path: str
    what: str


def verify(run: Run, sample: int, seed: int = 0) -> list[Problem]:
    """Every problem of a finished run, in the order of the checks; none when all is OK.

    ``sample``: how many archives are computed again.
    """
    problems = list(check_manifest(run))
    vocabulary = read_vocabulary(run.vocabulary)
    for shard in run.shards:
        try:
            problems += check_shard(run, shard, set(vocabulary.concepts))
        except CocuError as error:
            problems.append(Problem(run.path("archives"), str(error)))
    if problems:
        return problems  # the rest reads the same files
    return problems + check_fingerprints(run) + recompute(run, sample, seed)


def check_manifest(run: Run) -> Iterator[Problem]:
    """The manifest's counts are the sums of the shards'; its request is the one that the inputs make now."""
    manifest = files.read_json(run.manifest)
    totals = {"rows": 0, "rejects": 0}
    for shard in run.shards:
        for name in totals:
            totals[name] += (
                read_metadata(run.of_shard("embeddings", shard)).get("embed", {}).get("counts", {}).get(name, 0)
            )
    for name, total in totals.items():
        if manifest["counts"].get(name) != total:
            yield Problem(run.manifest, f"counts {manifest['counts'].get(name)} {name}, but the shards have {total}")
    if manifest["fingerprint"] != request(run):
        yield Problem(run.manifest, "input files have changed since; run cocu curate again")


def check_shard(run: Run, shard: Shard, known: set[str]) -> list[Problem]:
    """Schemas, counts, order and bounds of one shard's files."""
    paths = {kind: run.of_shard(kind, shard) for kind in ("embeddings", "archives", "rejects")}
    problems = []
    several = bool(run.config.captions)
    texts = ["key", "caption", *(["captions"] if several else [])]
    with open_parquet(paths["embeddings"]) as file:
        width = file.schema_arrow.field("embedding").type.list_size
        is_ours = file.schema_arrow.remove_metadata().equals(embedding_schema(width, several))
        embeddings = file.read(texts)
        if not is_ours:
            problems.append(Problem(paths["embeddings"], "its schema differs from the documented one"))
    with open_parquet(paths["rejects"]) as file:
        rejects = file.read()
    if not rejects.schema.remove_metadata().equals(REJECTS):
        problems.append(Problem(paths["rejects"], "its schema differs from the documented one"))
    archives = read_archive(paths["archives"])
    if not archives.schema.remove_metadata().equals(archive_schema(several, run.config.retrieval.counts_once)):
        return [*problems, Problem(paths["archives"], "its schema differs from the documented one")]
    counts = read_metadata(paths["embeddings"])["embed"]["counts"]
    if (counts["rows"], counts["rejects"]) != (len(embeddings), len(rejects)):
        problems.append(
            Problem(paths["embeddings"], f"{len(embeddings)} rows and {len(rejects)} rejects, not {counts}")
        )
    for column in texts:
        if not archives[column].equals(embeddings[column]):
            problems.append(Problem(paths["archives"], f"{column}s differ from those of {paths['embeddings']}"))
    if len(set(archives["key"].to_pylist())) != len(archives):
        problems.append(Problem(paths["archives"], "a key occurs twice"))
    problems += [Problem(paths["archives"], what) for what in check_scores(run, archives, known)]
    return problems


def check_scores(run: Run, table: pa.Table, known: set[str]) -> Iterator[str]:
    """Bounds of scores, clusters and support, and descending order, for all archives of a shard at once."""
    lists = table["concepts"].combine_chunks()
    entries = lists.flatten()
    if not len(entries):
        return
    values = {
        name: entries.field(name).to_numpy(zero_copy_only=False)
        for name in ("score", "global", "local", "cluster", "support")
    }
    archives = Ragged(lists.offsets.to_numpy() - lists.offsets[0].as_py(), np.arange(len(entries)))
    owners, sizes = archives.owners, archives.lengths
    same = owners[1:] == owners[:-1]
    config = run.config
    if not all(np.isfinite(values[name]).all() for name in ("score", "global", "local")):
        yield "a score is not finite"
    if (values["score"][1:] > values["score"][:-1])[same].any():
        yield "an archive is not in descending score"
    if not ((values["global"] > 0) & (values["global"] <= 1)).all():
        yield "a global score is not in (0, 1]"
    if not (values["local"] > 0).all():
        yield "a local score is not positive"
    ranking = RANKINGS[config.archive.ranking_name]
    if ranking.of_columns and not np.allclose(values["score"], ranking.of_columns(values), rtol=1e-5):
        yield f"a score is not {ranking.sentence}"
    retrieves = EXPANSIONS[config.archive.expansion].retrieves
    if (values["support"] > (config.retrieval.neighbors if retrieves else 1)).any() or (values["support"] < 0).any():
        yield "a support is larger than the number of neighbours"
    if config.captions:
        lengths = entries.field("sources").value_lengths().to_numpy(zero_copy_only=False)
        if ((lengths > 0) != (values["support"] > 0)).any():
            yield "a concept has sources without support, or support without sources"
    clusters = np.zeros(len(lists), np.int64)
    np.maximum.at(clusters, owners, values["cluster"].astype(np.int64) + 1)
    expected = np.where(sizes > 2, (sizes + 1) // 2, sizes) if config.archive.clusters else sizes
    if (clusters != np.minimum(expected, LAST_CLUSTER + 1)).any() or (values["cluster"] < 0).any():
        yield "an archive does not have ceil(n / 2) clusters"
    unknown = set(entries.field("concept").dictionary_decode().to_pylist()) - known
    if unknown:
        yield f"concept {sorted(unknown)[0]!r} is not in the vocabulary"


def check_fingerprints(run: Run) -> list[Problem]:
    """Everything that a run over these inputs would compute again, though it is said to be finished."""
    return [
        Problem(run.folder, f"stage {step.stage} of {step.part} would be computed again: {step.reason}")
        for step in forecast(run)
        if not step.kept
    ]


def recompute(run: Run, sample: int, seed: int) -> list[Problem]:
    """Compute random archives again, one anchor at a time, and compare concepts and scores."""
    curator = PlainCurator(run)
    counts = [row_count(run.of_shard("embeddings", shard)) for shard in run.shards]
    chosen = np.random.default_rng(seed).choice(sum(counts), min(sample, sum(counts)), replace=False)
    problems, start = [], 0
    for shard, count in zip(run.shards, counts, strict=True):
        rows = np.sort(chosen[(chosen >= start) & (chosen < start + count)]) - start
        if len(rows):
            archives = read_archive(run.of_shard("archives", shard)).take(rows).to_pylist()
            with open_parquet(run.of_shard("embeddings", shard)) as file:
                table = file.read(["concepts", "embedding"]).take(rows)
            images = embedding_matrix(table["embedding"]).astype(np.float64)
            said = table["concepts"].to_pylist()
            for row, written, image, own in zip(rows, archives, images, said, strict=True):
                anchor = -1 if run.config.retrieval.data else start + int(row)
                expected, certain = curator.archive(image, anchor, own)
                scores = {item["concept"]: item["score"] for item in written["concepts"]}
                what = difference(scores, expected) if certain else ""
                if certain and not what and run.config.captions and EXPANSIONS[run.config.archive.expansion].retrieves:
                    what = other_sources(written["concepts"], curator.sources(anchor, image))
                if what:
                    problems.append(Problem(run.of_shard("archives", shard), f"key {written['key']}: {what}"))
        start += count
    return problems


def difference(written: dict[str, float], expected: dict[str, float]) -> str:
    """How two archives differ, in a few words; empty when they agree."""
    if written.keys() != expected.keys():
        return f"concepts {sorted(written.keys() ^ expected.keys())} are only in the archive or only in the formula"
    for concept, score in expected.items():
        if abs(written[concept] - score) > TOLERANCE * max(abs(score), 1):
            return f"{concept} has score {written[concept]:.5f}, by the formula {score:.5f}"
    return ""


def other_sources(written: list[dict[str, Any]], expected: dict[str, set[str]]) -> str:
    """Which concept of an archive names other fields of captions than those that mention it; empty where none does."""
    for entry in written:
        if set(entry["sources"]) != expected[entry["concept"]]:
            return f"{entry['concept']} is mentioned by {sorted(expected[entry['concept']])}, not {entry['sources']}"
    return ""


def report(run: Run, sample: int) -> int:
    """Verify a run and print what was found; returns the exit code."""
    problems = verify(run, sample)
    console = Console(highlight=False, soft_wrap=True)
    for problem in problems:
        console.print(printable(f"{problem.path}: {problem.what}"), markup=False)
    if problems:
        print_error(f"{len(problems)} problems", label=run.folder)
        return FAILED
    manifest = files.read_json(run.manifest)
    rows = manifest["counts"]["rows"]
    print(f"{printable(run.folder)}: {rows:,} archives are OK; {min(sample, rows)} of them computed again")
    for group in read_rejects(run):
        print(f"could not be used: {printable(group.line())}")
    repeated = manifest["counts"].get("repeated_keys", 0)
    if repeated:
        print(f"{repeated:,} keys occur in several shards: look them up as (shard, key)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
