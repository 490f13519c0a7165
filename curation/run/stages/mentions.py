"""From embeddings and captions to ``index/mentions.arrow``: what the captions of all indexed images mention."""

from __future__ import annotations

import numpy as np

from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.parquet import blocks, row_count
from curation.base.ragged import Ragged
from curation.mentions import Mentions, write_mentions
from curation.run.captions import block_captions, caption_column
from curation.run.progress import Progress
from curation.run.records import (
    Reader,
    Record,
    fingerprints,
    is_as_long_as_noted,
    note,
    record,
    recorded,
    vocabulary_content,
)
from curation.run.run import Run
from curation.run.settings import check_encoders
from curation.run.stages.nouns import noun_positions
from curation.run.stages.stage import Stage
from curation.similarity import pair_similarities
from curation.vocabulary import read_vocabulary


def _expected(run: Run, read: Reader) -> Record:
    source = check_encoders(run)
    inputs = [*fingerprints(source.of_shards("embeddings"), "embed", read), vocabulary_content(run, read)]
    if source is not run and run.config.vocabulary.built:
        inputs += [recorded(path, "nouns").get("fingerprint", "") for path in source.of_shards("tags")]
    parameters = {"sources": source.config.caption_sources} if run.config.captions else {}
    return record(parameters, inputs)


def _write(run: Run, expected: Record, progress: Progress) -> None:
    """What the captions of all indexed images mention, and how similar each image is to it: ``index/mentions.arrow``.

    With ``retrieval.data`` the images are another run's, their captions read with this run's vocabulary. With ``captions``
    the fields whose captions mention a concept are noted too: all of one where the other run reads one caption.
    """
    source = check_encoders(run)
    paths = source.of_shards("embeddings")
    vocabulary = read_vocabulary(run.vocabulary)
    matcher = vocabulary.matcher() if source is not run else None
    own = ["caption", "concepts", *(["sources"] if run.config.captions else [])]
    columns = [caption_column(source.config)] if matcher else own
    concepts, similarities, sources = [], [], []
    for shard, path in zip(source.shards, paths, strict=True):
        nouns = noun_positions(run, source, shard) if matcher else None
        start = 0
        for block in blocks(path, [*columns, "embedding"]):
            if matcher:
                stop = start + len(block)
                known = nouns[start:stop] if nouns is not None else None
                lists, bits = block_captions(block, source.config).mentioned(matcher, known)
                start = stop
            else:
                lists = Ragged.from_arrow(block["concepts"])
                bits = block["sources"].flatten().to_numpy() if run.config.captions else None
            sources.append(np.ones(len(lists.values), np.int32) if bits is None else bits)
            images = embedding_matrix(block["embedding"])
            concepts.append(lists)
            similarities.append(pair_similarities(images, vocabulary.embeddings, lists))
            progress.advance(len(block))

    noted = np.concatenate(sources) if run.config.captions else None
    write_mentions(Mentions(Ragged.concatenate(concepts), np.concatenate(similarities), noted), run.mentions)
    shards = [{"name": shard.name, "rows": row_count(path)} for shard, path in zip(source.shards, paths, strict=True)]
    facts = {"file": "mentions.arrow", "shards": shards, "bytes": files.version(run.mentions)["size"]}
    note(run, "mentions", expected | facts)


MENTIONS = Stage(
    name="mentions",
    per_shard=False,
    output=lambda run: run.index_json,
    expected=_expected,
    compute=_write,
    is_whole=lambda run: is_as_long_as_noted(run, "mentions", run.mentions),
)
