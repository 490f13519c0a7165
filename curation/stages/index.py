"""From embeddings to ``index/``: FAISS indexes, and what the captions of the indexed images mention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from curation import encoder, index, storage
from curation.archive import open_parquet
from curation.concepts import Matcher
from curation.errors import CurationError
from curation.outputs import Outputs, blocks, open_outputs, record, recorded, row_count
from curation.similarity import pair_similarities, row_numbers
from curation.stages.work import ROW_GROUP, Work, fingerprint_of, vocabulary_content
from curation.vocabulary import embedding_matrix, read_vocabulary


def index_images(outputs: Outputs) -> None:
    """Index the images: ``index/image.faiss``."""
    _index(outputs, "index", "image", "embeddings", "embed")


def index_captions(outputs: Outputs) -> None:
    """Index the captions, for text-driven expansion: ``index/text.faiss``."""
    _index(outputs, "text index", "text", "captions", "captions")


def _index(outputs: Outputs, stage: str, kind: str, folder: str, embedded_by: str) -> None:
    config, path = outputs.config.retrieval, outputs.index(kind)
    paths = [outputs.of_shard(folder, shard) for shard in outputs.shards]
    parameters = {"factory": index.factory_string(config.index), "train_sample": config.train_sample}
    new = record(parameters, [fingerprint_of(source, embedded_by) for source in paths])
    work = Work(outputs, stage, outputs.index_json, new, whole=_is_whole(outputs, stage, path))
    if work.fresh:
        return
    rows = sum(row_count(source) for source in paths)

    def embeddings() -> Iterator[np.ndarray]:
        for source in paths:
            for block in blocks(source, ["embedding"], ROW_GROUP):
                yield embedding_matrix(block["embedding"])

    with open_parquet(paths[0]) as file:
        dimension = file.schema_arrow.field("embedding").type.list_size
    built = index.build_index(embeddings, rows, dimension, parameters["factory"], config.train_sample)
    index.set_search(built, config.search)  # a wrong parameter is found now rather than in every shard
    index.write_index(built, path)
    _note(
        outputs,
        stage,
        new
        | {"file": f"{kind}.faiss", "rows": rows, "dimension": dimension, "metric": "cosine"}
        | {"bytes": storage.version(path)["size"]},
    )
    work.advance(rows)
    work.done()


def _is_whole(outputs: Outputs, stage: str, path: str) -> bool:
    """Whether a file is as long as index.json says that it was written."""
    return storage.exists(path) and storage.version(path)["size"] == recorded(outputs.index_json, stage).get("bytes")


def _note(outputs: Outputs, stage: str, entry: dict[str, Any]) -> None:
    """Set one entry of index.json."""
    storage.write_json(outputs.index_json, storage.read_note(outputs.index_json) | {stage: entry})


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
    whole = _is_whole(outputs, "mentions", outputs.mentions)
    work = Work(outputs, "mentions", outputs.index_json, record({}, inputs), whole=whole)
    if work.fresh:
        return
    vocabulary = read_vocabulary(outputs.vocabulary)
    matcher = Matcher(vocabulary.concepts)
    lengths, found, similarities = [], [], []
    for path in paths:
        for block in blocks(path, ["caption", "embedding"], ROW_GROUP):
            offsets, concepts = matcher.match_all(block["caption"].to_pylist())
            images = embedding_matrix(block["embedding"])
            lengths.append(np.diff(offsets))
            found.append(concepts)
            similarities.append(pair_similarities(images, vocabulary.embeddings, row_numbers(offsets), concepts))
            work.advance(len(block))
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    index.write_mentions(index.Mentions(offsets, np.concatenate(found), np.concatenate(similarities)), outputs.mentions)
    shards = [{"name": shard.name, "rows": row_count(path)} for shard, path in zip(source.shards, paths, strict=True)]
    _note(
        outputs,
        "mentions",
        work.record | {"file": "mentions.arrow", "shards": shards, "bytes": storage.version(outputs.mentions)["size"]},
    )
    work.done()
