"""``python -m curation.verify OUT``: is a finished run what it says it is?

Checks that every file is there and whole, counts, schemas, order, score bounds and fingerprints, and computes a random
sample of archives again by the plain formulas of METHOD.md parts 2 and 3, one anchor and one concept at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from rich.console import Console

from curation import storage
from curation.archive import SCHEMA, open_parquet, read_archive, read_metadata
from curation.errors import CurationError
from curation.forecast import forecast
from curation.manifest import request
from curation.outputs import Outputs, open_outputs, row_count
from curation.plain import PlainCurator
from curation.samples import Shard
from curation.stages.embeddings import REJECTS
from curation.stages.embeddings import schema as embedding_schema
from curation.vocabulary import embedding_matrix, read_vocabulary

TOLERANCE = 2e-3  # relative, of recomputed scores: stored fp16 embeddings leave ties and the last digits open


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be."""

    path: str
    what: str


def verify(outputs: Outputs, sample: int, seed: int = 0) -> list[Problem]:
    """Every problem of a finished run, in the order of the checks; none when all is well.

    ``sample``: how many archives are computed again.
    """
    problems = list(check_manifest(outputs))
    vocabulary = read_vocabulary(outputs.vocabulary)
    for shard in outputs.shards:
        try:
            problems += check_shard(outputs, shard, set(vocabulary.concepts))
        except CurationError as error:
            problems.append(Problem(outputs.path("archives"), str(error)))
    if problems:
        return problems  # the rest reads the same files
    return problems + check_fingerprints(outputs) + recompute(outputs, sample, seed)


def check_manifest(outputs: Outputs) -> Iterator[Problem]:
    """The manifest's counts are the sums of the shards'; its request is the one that the inputs make now."""
    manifest = storage.read_json(outputs.manifest)
    totals = {"rows": 0, "rejects": 0}
    for shard in outputs.shards:
        for name in totals:
            totals[name] += (
                read_metadata(outputs.of_shard("embeddings", shard)).get("embed", {}).get("counts", {}).get(name, 0)
            )
    for name, total in totals.items():
        if manifest["counts"].get(name) != total:
            yield Problem(outputs.manifest, f"counts {manifest['counts'].get(name)} {name}, the shards have {total}")
    if manifest["fingerprint"] != request(outputs):
        yield Problem(outputs.manifest, "input files have changed since; run make curate again")


def check_shard(outputs: Outputs, shard: Shard, known: set[str]) -> list[Problem]:
    """Schemas, counts, order and bounds of one shard's files."""
    paths = {kind: outputs.of_shard(kind, shard) for kind in ("embeddings", "archives", "rejects")}
    problems = []
    with open_parquet(paths["embeddings"]) as file:
        embeddings = file.read(["key", "caption", "concepts"])
        width = file.schema_arrow.field("embedding").type.list_size
        if not file.schema_arrow.remove_metadata().equals(embedding_schema(width)):
            problems.append(Problem(paths["embeddings"], "has another schema than the documented one"))
    with open_parquet(paths["rejects"]) as file:
        rejects = file.read()
    if not rejects.schema.remove_metadata().equals(REJECTS):
        problems.append(Problem(paths["rejects"], "has another schema than the documented one"))
    archives = read_archive(paths["archives"])
    if not archives.schema.remove_metadata().equals(SCHEMA):
        return [*problems, Problem(paths["archives"], "has another schema than the documented one")]
    counts = read_metadata(paths["embeddings"])["embed"]["counts"]
    if (counts["rows"], counts["rejects"]) != (len(embeddings), len(rejects)):
        problems.append(
            Problem(paths["embeddings"], f"{len(embeddings)} rows and {len(rejects)} rejects, not {counts}")
        )
    for column in ("key", "caption"):
        if not archives[column].equals(embeddings[column]):
            problems.append(Problem(paths["archives"], f"{column}s differ from those of {paths['embeddings']}"))
    if len(set(archives["key"].to_pylist())) != len(archives):
        problems.append(Problem(paths["archives"], "a key occurs twice"))
    problems += [Problem(paths["archives"], what) for what in check_scores(outputs, archives, known)]
    return problems


def check_scores(outputs: Outputs, archives: pa.Table, known: set[str]) -> Iterator[str]:
    """Bounds of scores, clusters and support, and descending order, for all archives of a shard at once."""
    lists = archives["concepts"].combine_chunks()
    entries = lists.flatten()
    if not len(entries):
        return
    values = {
        name: entries.field(name).to_numpy(zero_copy_only=False)
        for name in ("score", "global", "local", "cluster", "support")
    }
    owner = np.repeat(np.arange(len(lists)), np.diff(lists.offsets.to_numpy()))
    same = owner[1:] == owner[:-1]
    config = outputs.config
    if not all(np.isfinite(values[name]).all() for name in ("score", "global", "local")):
        yield "a score is not finite"
    if (values["score"][1:] > values["score"][:-1])[same].any():
        yield "an archive is not in descending score"
    if not ((values["global"] > 0) & (values["global"] <= 1)).all():
        yield "a global score is not in (0, 1]"
    if not (values["local"] > 0).all():
        yield "a local score is not positive"
    if config.archive.ranking_name == "cocu" and not np.allclose(
        values["score"], values["global"] + values["local"], rtol=1e-5
    ):
        yield "a score is not global + local"
    retrieved = config.archive.expansion in ("vision", "text")
    if (values["support"] > (config.retrieval.neighbors if retrieved else 1)).any() or (values["support"] < 0).any():
        yield "a support is larger than the number of neighbours"
    sizes = np.bincount(owner, minlength=len(lists))
    clusters = np.zeros(len(lists), np.int64)
    np.maximum.at(clusters, owner, values["cluster"].astype(np.int64) + 1)
    expected = np.where(sizes > 2, (sizes + 1) // 2, sizes) if config.archive.clusters else sizes
    if (clusters != expected).any() or (values["cluster"] < 0).any():
        yield "an archive has another number of clusters than ceil(n / 2)"
    unknown = set(entries.field("concept").dictionary_decode().to_pylist()) - known
    if unknown:
        yield f"concept {sorted(unknown)[0]!r} is not in the vocabulary"


def check_fingerprints(outputs: Outputs) -> list[Problem]:
    """Everything that a run over these inputs would compute again, though it is said to be finished."""
    return [
        Problem(outputs.folder, f"stage {step.stage} of {step.part} would be computed again: {step.reason}")
        for step in forecast(outputs)
        if not step.kept
    ]


def recompute(outputs: Outputs, sample: int, seed: int) -> list[Problem]:
    """Compute random archives again, one anchor at a time, and compare concepts and scores."""
    curator = PlainCurator(outputs)
    counts = [row_count(outputs.of_shard("embeddings", shard)) for shard in outputs.shards]
    chosen = np.random.default_rng(seed).choice(sum(counts), min(sample, sum(counts)), replace=False)
    problems, start = [], 0
    for shard, count in zip(outputs.shards, counts, strict=True):
        rows = np.sort(chosen[(chosen >= start) & (chosen < start + count)]) - start
        if len(rows):
            archives = read_archive(outputs.of_shard("archives", shard)).take(rows).to_pylist()
            with open_parquet(outputs.of_shard("embeddings", shard)) as file:
                table = file.read(["concepts", "embedding"]).take(rows)
            images = embedding_matrix(table["embedding"]).astype(np.float64)
            said = table["concepts"].to_pylist()
            for row, written, image, own in zip(rows, archives, images, said, strict=True):
                anchor = -1 if outputs.config.retrieval.data else start + int(row)
                expected, certain = curator.archive(image, anchor, own)
                found = {item["concept"]: item["score"] for item in written["concepts"]}
                what = difference(found, expected) if certain else ""
                if what:
                    problems.append(Problem(outputs.of_shard("archives", shard), f"key {written['key']}: {what}"))
        start += count
    return problems


def difference(found: dict[str, float], expected: dict[str, float]) -> str:
    """How two archives differ, in a few words; empty when they agree."""
    if found.keys() != expected.keys():
        return f"concepts {sorted(found.keys() ^ expected.keys())} are in only one of archive and formula"
    for concept, score in expected.items():
        if abs(found[concept] - score) > TOLERANCE * max(abs(score), 1):
            return f"{concept} has score {found[concept]:.5f}, by the formula {score:.5f}"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code: 0 when all is well."""
    parser = argparse.ArgumentParser(
        prog="python -m curation.verify",
        description="Check counts, schemas, order, bounds and fingerprints, and compute a sample of archives again.",
    )
    parser.add_argument("folder", help="output folder of a finished curation")
    parser.add_argument("--sample", type=int, default=100, help="archives to compute again (default: 100)")
    given = parser.parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    try:
        outputs = open_outputs(given.folder)
        problems = verify(outputs, given.sample)
    except CurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for problem in problems:
        console.print(f"{problem.path}: {problem.what}", markup=False)
    if problems:
        print(f"{len(problems)} problems", file=sys.stderr)
        return 1
    rows = storage.read_json(outputs.manifest)["counts"]["rows"]
    print(f"{given.folder}: {rows:,} archives are well; {min(given.sample, rows)} of them computed again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
