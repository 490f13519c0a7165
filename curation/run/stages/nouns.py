"""From captions to ``tags/<shard>.parquet``, which words are nouns, and ``nouns/<shard>.parquet``, counts of nouns."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import blocks, parquet_writer, read_columns, write_table
from curation.nouns import Candidate, Fact, candidates, facts, tag
from curation.run.captions import block_captions, caption_column
from curation.run.progress import Progress
from curation.run.records import Reader, Record, record
from curation.run.run import Run
from curation.run.stages.stage import Stage
from curation.samples import Shard

RULES = 2  # of what counts as a noun; 1: whatever the tagger said, and no word of a caption was noted
TAGS = pa.schema([("nouns", pa.list_(pa.int32()))])


def _expected(run: Run, shard: Shard, read: Reader) -> Record:
    embedded = read(run.of_shard("embeddings", shard), "embed")
    return record({"tagger": run.config.vocabulary.tagger, "rules": RULES}, embedded["fingerprint"])


def _write(run: Run, shard: Shard, expected: Record, progress: Progress) -> None:
    """Tag a shard's captions: positions of the nouns of each, and how many images' captions say each fact about a noun."""
    counts: Counter[Fact] = Counter()
    tags = _tags(run)
    with parquet_writer(run.of_shard("tags", shard), tags, {"nouns": expected}) as writer:
        for block in blocks(run.of_shard("embeddings", shard), [caption_column(run.config)]):
            captions = block_captions(block, run.config)
            tagged = tag(captions.texts, run.config.vocabulary.tagger)
            positions: list[Any] = []
            for length in captions.lengths.tolist():
                own = list(islice(tagged, length))
                counts.update(set().union(*map(facts, own)))  # an image counts once, however many captions say so
                nouns = [caption.nouns for caption in own]
                positions.append(nouns if run.config.captions else nouns[0])
            writer.write_batch(pa.record_batch([pa.array(positions, tags.field("nouns").type)], schema=tags))
            progress.advance(len(block))

    names = sorted(counts)
    columns = {field: pa.array([fact[at] for fact in names], pa.string()) for at, field in enumerate(Fact._fields)}
    columns["count"] = pa.array([counts[fact] for fact in names], pa.int64())
    write_table(run.of_shard("nouns", shard), pa.table(columns), {"nouns": expected})


def _tags(run: Run) -> pa.Schema:
    """Columns of ``tags/<shard>.parquet``: positions of the nouns of the caption, or a list for each of several."""
    return pa.schema([("nouns", pa.list_(TAGS.field("nouns").type))]) if run.config.captions else TAGS


def frequent_nouns(run: Run) -> list[Candidate]:
    """The nouns that are in ``vocabulary.min_count`` captions of all shards. Raises CocuError where there is none."""
    smallest = run.config.vocabulary.smallest_count
    mentioned: Counter[str] = Counter()
    for path in run.of_shards("nouns"):
        table = _read_facts(path).filter(pc.field("kind") == "")
        mentioned.update(dict(zip(table["noun"].to_pylist(), table["count"].to_pylist(), strict=True)))
    frequent = pa.array([noun for noun, count in mentioned.items() if count >= smallest], pa.string())

    counts: Counter[Fact] = Counter()  # of the frequent ones only: most facts are about a noun that occurs once
    for path in run.of_shards("nouns"):
        table = _read_facts(path)
        for row in table.filter(pc.is_in(table["noun"], frequent)).to_pylist():
            counts[Fact(row["noun"], row["kind"], row["value"])] += row["count"]

    nouns = candidates(counts, smallest)
    if not nouns:
        raise CocuError(
            f"vocabulary.min_count: no noun is in {smallest} captions (the most frequent is in "
            f"{max(mentioned.values(), default=0)}); lower it, or give a file of concepts as vocabulary.source"
        )
    return nouns


def _read_facts(path: str) -> pa.Table:
    return read_columns(path, dict.fromkeys(Fact._fields, pa.string()) | {"count": pa.int64()})


def noun_positions(run: Run, source: Run, shard: Shard) -> list[Any] | None:
    """Positions of the nouns in every caption of a shard of ``source``, where parts of speech are known to ``run``: a list
    for each row, or a list of lists where ``source`` has several captions an image.

    They are not where its vocabulary is a file, whose words are matched whatever they are, and where the captions are
    another run's that did not tag them.
    """
    path = source.of_shard("tags", shard)
    if not run.config.vocabulary.built or not files.exists(path):
        return None
    return read_columns(path, {"nouns": _tags(source).field("nouns").type})["nouns"].to_pylist()


NOUNS = Stage(
    "nouns",
    True,
    lambda run, shard: run.of_shard("nouns", shard),
    _expected,
    _write,
    is_whole=lambda run, shard: files.exists(run.of_shard("tags", shard)),
)
