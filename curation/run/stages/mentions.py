"""From embeddings and captions to ``index/mentions.arrow``: what the captions of all indexed images mention."""

from __future__ import annotations

import numpy as np

from curation import encoder
from curation.base import files
from curation.base.embeddings import embedding_matrix
from curation.base.errors import CocuError
from curation.base.parquet import ROW_GROUP, blocks, row_count
from curation.concepts import Matcher
from curation.mentions import Mentions, write_mentions
from curation.run.run import Run, open_run, record
from curation.run.stages.index import is_whole, note
from curation.run.stages.work import Work, csr, fingerprint_of, vocabulary_content
from curation.similarity import pair_similarities
from curation.vocabulary import read_vocabulary


def mentions(run: Run) -> None:
    """What the captions of all indexed images mention, and how similar each image is to it: ``index/mentions.arrow``.

    With ``retrieval.data`` the images are another run's, their captions read with this run's vocabulary.
    """
    config = run.config
    source = open_run(config.retrieval.data) if config.retrieval.data else run
    if source is not run:
        ours, theirs = (encoder.identity(run.config.encoder) for run in (run, source))
        if ours != theirs:
            raise CocuError(
                f"retrieval.data: {source.folder} was embedded by another encoder ({theirs['model']}) than encoder.model "
                f"({ours['model']}); curate both with the same one"
            )
    paths = [source.of_shard("embeddings", shard) for shard in source.shards]
    inputs = [fingerprint_of(path, "embed") for path in paths] + [vocabulary_content(run.vocabulary)]
    whole = is_whole(run, "mentions", run.mentions)
    work = Work(run, "mentions", run.index_json, record({}, inputs), whole=whole)
    if work.fresh:
        return
    vocabulary = read_vocabulary(run.vocabulary)
    matcher = Matcher(vocabulary.concepts) if source is not run else None
    lengths, found, similarities = [], [], []
    for path in paths:
        for block in blocks(path, ["caption", "concepts", "embedding"], ROW_GROUP):
            mentioned = matcher.match_all(block["caption"].to_pylist()) if matcher else csr(block["concepts"])
            lengths.append(np.diff(mentioned[0]))
            found.append(mentioned[1])
            similarities.append(
                pair_similarities(embedding_matrix(block["embedding"]), vocabulary.embeddings, *mentioned)
            )
            work.advance(len(block))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    write_mentions(Mentions(offsets, np.concatenate(found), np.concatenate(similarities)), run.mentions)
    shards = [{"name": shard.name, "rows": row_count(path)} for shard, path in zip(source.shards, paths, strict=True)]
    note(
        run,
        "mentions",
        work.record | {"file": "mentions.arrow", "shards": shards, "bytes": files.version(run.mentions)["size"]},
    )
    work.done()
