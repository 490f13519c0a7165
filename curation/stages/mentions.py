"""From embeddings and captions to ``index/mentions.arrow``: what the captions of all indexed images mention."""

from __future__ import annotations

import numpy as np

from curation import encoder, storage
from curation.concepts import Matcher
from curation.errors import CurationError
from curation.mentions import Mentions, write_mentions
from curation.outputs import Outputs, blocks, open_outputs, record, row_count
from curation.similarity import pair_similarities
from curation.stages.index import is_whole, note
from curation.stages.work import ROW_GROUP, Work, csr, fingerprint_of, vocabulary_content
from curation.vocabulary import embedding_matrix, read_vocabulary


def mentions(outputs: Outputs) -> None:
    """What the captions of all indexed images mention, and how similar each image is to it: ``index/mentions.arrow``.

    With ``retrieval.data`` the images are another run's, their captions read with this run's vocabulary.
    """
    config = outputs.config
    source = open_outputs(config.retrieval.data) if config.retrieval.data else outputs
    if source is not outputs:
        ours, theirs = (encoder.identity(run.config.encoder) for run in (outputs, source))
        if ours != theirs:
            raise CurationError(
                f"retrieval.data: {source.folder} was embedded by another encoder ({theirs['model']}) than encoder.model "
                f"({ours['model']}); curate both with the same one"
            )
    paths = [source.of_shard("embeddings", shard) for shard in source.shards]
    inputs = [fingerprint_of(path, "embed") for path in paths] + [vocabulary_content(outputs.vocabulary)]
    whole = is_whole(outputs, "mentions", outputs.mentions)
    work = Work(outputs, "mentions", outputs.index_json, record({}, inputs), whole=whole)
    if work.fresh:
        return
    vocabulary = read_vocabulary(outputs.vocabulary)
    matcher = Matcher(vocabulary.concepts) if source is not outputs else None
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
    write_mentions(Mentions(offsets, np.concatenate(found), np.concatenate(similarities)), outputs.mentions)
    shards = [{"name": shard.name, "rows": row_count(path)} for shard, path in zip(source.shards, paths, strict=True)]
    note(
        outputs,
        "mentions",
        work.record | {"file": "mentions.arrow", "shards": shards, "bytes": storage.version(outputs.mentions)["size"]},
    )
    work.done()
