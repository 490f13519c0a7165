"""From shards to ``embeddings/<shard>.parquet``: image embeddings, and the concepts that each caption mentions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curation import encoder, samples
from curation.archive.parquet import CAPTION
from curation.base import files
from curation.base.configuration import parse_bytes
from curation.base.embeddings import embedding_array, normalise
from curation.base.errors import CocuError, InputError
from curation.base.parquet import (
    FORMAT,
    ROW_GROUP,
    blocks,
    open_parquet,
    parquet_writer,
    read_metadata,
    write_table,
)
from curation.base.ragged import Ragged
from curation.config import CurationConfig
from curation.diagnosis import HEAD, HEAD_BYTES, check_head, check_shard
from curation.run.captions import block_captions, caption_array, caption_column
from curation.run.progress import Progress
from curation.run.records import Reader, Record, record, recorded, vocabulary_content
from curation.run.run import Run
from curation.run.stages.nouns import noun_positions
from curation.run.stages.stage import Stage
from curation.run.texts import caption_part, check_width, embed_captions, gives_captions
from curation.samples import Reject, Sample, Shard
from curation.thumbnails import SIDE
from curation.vocabulary import read_vocabulary
from curation.wordlists import read_embeddings

THUMBNAILS = pa.schema([("thumbnail", pa.binary(SIDE * SIDE))])
REJECTS = pa.schema([("key", pa.string()), ("reason", pa.string())])

Batch = tuple[list[Sample], np.ndarray]  # samples and their (B, D) float32 embeddings


def schema(width: int, several: bool = False) -> pa.Schema:
    """Columns of ``embeddings/<shard>.parquet`` for D = ``width``; ``several``: images may have several captions."""
    columns = [
        ("key", pa.string()),
        ("caption", pa.string()),  # the first one
        ("concepts", pa.list_(pa.int32())),  # null until there is a vocabulary
        ("embedding", pa.list_(pa.float16(), width)),
    ]
    more = [("captions", pa.list_(CAPTION)), ("sources", pa.list_(pa.int32()))]  # sources of concepts, as bits
    return pa.schema(columns + more if several else columns)


def _embeddings(run: Run, shard: Shard) -> str:
    return run.of_shard("embeddings", shard)


# --- embed ----------------------------------------------------------------------------------------------------------------


def _embed_parameters(config: CurationConfig) -> dict[str, Any]:
    fields = {"captions": config.caption_sources} if config.captions else {"caption": config.caption}
    return {
        "image": config.image,
        **fields,
        "max_member": parse_bytes(config.max_member, "max_member"),
        "encoder": encoder.identity(config.encoder),
    }


def _embed_expected(run: Run, shard: Shard, read: Reader) -> Record:
    try:
        _, content = _input_version(run, shard)
    except InputError:
        if run.config.on_error != "skip":
            raise
        content = None
    return record(_embed_parameters(run.config), content)


def _input_version(run: Run, shard: Shard) -> tuple[list[Any], list[str] | None]:
    """Size and date of a shard's files, and their content hash as far as it is known."""
    inputs = _inputs(run.config, shard)
    version = [files.version(path) for path in inputs]
    old = recorded(_embeddings(run, shard), "embed")
    if old and old["version"] != version:  # touched or copied: has the content changed?
        return version, [files.file_digest(path) for path in inputs]
    return version, old.get("content")


def _inputs(config: CurationConfig, shard: Shard) -> list[str]:
    return [shard.path, samples.metadata_path(shard.path)] if config.embeddings else [shard.path]


def _is_embedded(run: Run, shard: Shard) -> bool:
    """Whether the rejects are there too, and the shard could be read; one that could not is tried again."""
    old = recorded(_embeddings(run, shard), "embed")
    return files.exists(run.of_shard("rejects", shard)) and not old.get("counts", {}).get("unreadable")


def _embed(run: Run, shard: Shard, expected: Record, progress: Progress) -> dict[str, int]:
    """Read a tar, or a part of a clip-retrieval folder, and write its embeddings and rejects.

    With ``on_error: skip`` a shard that cannot be read gets an empty embeddings file and one reject, without a key, that
    says why.
    """
    config = run.config
    try:
        version, _ = _input_version(run, shard)
        source = _Import(config, shard) if config.embeddings else _Tar(config, shard)
        with closing(source):
            return _write(run, shard, source, version, expected, progress)
    except InputError as error:
        if config.on_error != "skip":
            raise
        return _write(run, shard, _Unreadable(config, error), [], expected, progress)


def _write(
    run: Run,
    shard: Shard,
    source: _Tar | _Import | _Unreadable,
    version: list[Any],
    expected: Record,
    progress: Progress,
) -> dict[str, int]:
    """Write embeddings and rejects of one source; returns its counts. ``version``: of its files before they were read."""
    rejects: list[Reject] = []
    ending: dict[str, Any] = {}
    columns = schema(source.width, bool(run.config.captions))
    with parquet_writer(_embeddings(run, shard), columns, {"format": FORMAT}, ending) as writer:
        rows = 0
        pictures: list[bytes] = []
        for batch in _row_groups(source.batches(rejects), columns, progress, pictures):
            writer.write_batch(batch)
            rows += len(batch)
        if source.is_limited:
            check_shard(shard.path, rejects, rows, run.config.max_rejects)

        content = source.content()  # known only when all is read
        counts = {"samples": rows + len(rejects), "rows": rows, "rejects": len(rejects)} | source.more_counts
        ending["embed"] = record(expected["parameters"], content) | {
            "content": content,
            "version": version,
            "weights": source.weights,
            "counts": counts,
        }
        # Thumbnails and rejects first: the embeddings file is the sign that the shard is done.
        if pictures:
            write_table(run.of_shard("thumbnails", shard), pa.table([pictures], schema=THUMBNAILS), ending)
        else:  # an import, or nothing that could be used
            files.remove(run.of_shard("thumbnails", shard))
        texts = [pa.array([reject.key for reject in rejects]), pa.array([reject.reason for reject in rejects])]
        table = pa.table([column.cast(pa.string()) for column in texts], schema=REJECTS)
        write_table(run.of_shard("rejects", shard), table, ending)
    return counts


class _Tar:
    """Samples of a tar, embedded; hashes the tar as it streams by."""

    is_limited = True  # by max_rejects
    more_counts: ClassVar[dict[str, int]] = {}

    def __init__(self, config: CurationConfig, shard: Shard) -> None:
        """Read the first samples. Raises InputError where they are plainly wrong, before the encoder is loaded."""
        self._config, self._shard = config, shard
        self._stream = files.open_file(shard.path)
        try:
            self._reader = files.HashingReader(self._stream)
            largest = parse_bytes(config.max_member, "max_member")
            self._samples = samples.read_samples(
                self._reader, shard.path, config.image, config.caption, largest, config.captions
            )
            self._head = _read_head(self._samples)
            fields = ";".join(config.caption_sources)
            check_head(shard.path, self._head, config.image, fields, config.max_rejects)
            self._encoder = encoder.load(config.encoder)
            check_width(config, self._encoder.width, f"encoder.model {config.encoder.model}")
        except BaseException:
            self._stream.close()
            raise
        self.width, self.weights = self._encoder.width, self._encoder.weights

    def close(self) -> None:
        self._stream.close()

    def batches(self, rejects: list[Reject]) -> Iterator[Batch]:
        rows = 0
        for item in self._encoder.encode_samples(self._all()):
            if isinstance(item, Reject):
                rejects.append(item)
                check_shard(self._shard.path, rejects, rows, self._config.max_rejects, self._encoder.batch_size)
            else:
                rows += len(item[0])
                yield item

    def _all(self) -> Iterator[Sample | Reject]:
        while self._head:
            yield self._head.popleft()
        yield from self._samples

    def content(self) -> list[str]:
        return [self._reader.finish()]


def _read_head(stream: Iterator[Sample | Reject]) -> deque[Sample | Reject]:
    """The first samples of a tar, HEAD of them unless they are large."""
    head: deque[Sample | Reject] = deque()
    size = 0
    for item in stream:
        head.append(item)
        size += len(item.image) if isinstance(item, Sample) else 0
        if len(head) == HEAD or size >= HEAD_BYTES:
            break
    return head


class _Unreadable:
    """A shard that cannot be read: no samples, one reject without a key."""

    is_limited = False
    more_counts: ClassVar[dict[str, int]] = {"samples": 0, "rejects": 0, "unreadable": 1}
    weights = None

    def __init__(self, config: CurationConfig, error: InputError) -> None:
        self.width, self._error = _expected_width(config), error

    def batches(self, rejects: list[Reject]) -> Iterator[Batch]:
        rejects.append(Reject("", str(self._error)))
        yield from ()

    def content(self) -> list[str]:
        return ["unreadable"]


def _expected_width(config: CurationConfig) -> int:
    """D of the encoder, or of given text embeddings where none is named."""
    if config.concept_embeddings and not config.encoder.is_named:
        return read_embeddings(config.concept_embeddings).width
    return encoder.load(config.encoder).width


class _Import:
    """Rows of a part of a clip-retrieval folder."""

    is_limited = True
    more_counts: ClassVar[dict[str, int]] = {}
    weights = None  # of a model that we have not seen

    def __init__(self, config: CurationConfig, shard: Shard) -> None:
        self._config, self._shard = config, shard
        self._keys, self._captions, self._embeddings = samples.read_import(shard.path, config.captions)
        self.width = self._embeddings.shape[1]
        check_width(config, self.width, shard.path)
        expected = _expected_width(config)
        if self.width != expected:
            raise CocuError(
                f"{shard.path}: embeddings have {self.width} dimensions, but encoder.model {config.encoder.model} has "
                f"{expected}; name the model that made them"
            )

    def close(self) -> None:
        """Nothing is held open."""

    def batches(self, rejects: list[Reject]) -> Iterator[Batch]:
        seen: set[str] = set()
        for start in range(0, len(self._keys), ROW_GROUP):
            part = slice(start, start + ROW_GROUP)
            checked = samples.check_import(self._keys[part], self._captions[part], self._embeddings[part], seen)
            rejects.extend(item for item in checked if isinstance(item, Reject))
            good = [row for row, item in enumerate(checked) if isinstance(item, Sample)]
            yield [item for item in checked if isinstance(item, Sample)], normalise(self._embeddings[part][good])

    def content(self) -> list[str]:
        return [files.file_digest(file) for file in _inputs(self._config, self._shard)]


def _row_groups(
    batches: Iterator[Batch], columns: pa.Schema, progress: Progress, pictures: list[bytes]
) -> Iterator[pa.RecordBatch]:
    """Collect batches of the encoder into record batches of at least ROW_GROUP rows, noting progress by batch.

    Thumbnails go to ``pictures``.
    """
    collected: list[Sample] = []
    parts: list[np.ndarray] = []
    for more, embeddings in batches:
        progress.advance(len(more))
        collected.extend(more)
        parts.append(embeddings)
        pictures.extend(sample.thumbnail for sample in more if sample.thumbnail)
        if len(collected) >= ROW_GROUP:
            yield _record_batch(collected, np.concatenate(parts), columns)
            collected, parts = [], []
    if collected:
        yield _record_batch(collected, np.concatenate(parts), columns)


def _record_batch(collected: list[Sample], embeddings: np.ndarray, columns: pa.Schema) -> pa.RecordBatch:
    arrays = [
        pa.array([sample.key for sample in collected]),
        pa.array([sample.caption for sample in collected]),
        pa.nulls(len(collected), pa.list_(pa.int32())),
        embedding_array(embeddings),
    ]
    if "captions" in columns.names:
        captions = caption_array([sample.captions for sample in collected])
        arrays += [captions, pa.nulls(len(collected), pa.list_(pa.int32()))]
    return pa.record_batch(arrays, schema=columns)


# --- concepts -------------------------------------------------------------------------------------------------------------


def _concepts_expected(run: Run, shard: Shard, read: Reader) -> Record:
    embedded = read(_embeddings(run, shard), "embed")
    return record({}, [vocabulary_content(run, read), embedded["fingerprint"]])


def _concepts(run: Run, shard: Shard, expected: Record, progress: Progress) -> dict[str, int]:
    """Fill in the column ``concepts`` of a shard's embeddings: the ids of what each caption mentions."""
    path = _embeddings(run, shard)
    metadata = {"format": FORMAT, "embed": read_metadata(path)["embed"]}
    matcher, nouns = read_vocabulary(run.vocabulary).matcher(), noun_positions(run, run, shard)
    start = total = 0
    ending: dict[str, Any] = {}
    with open_parquet(path) as file, parquet_writer(path, file.schema_arrow, metadata, ending) as writer:
        for block in file.iter_batches(batch_size=ROW_GROUP):
            stop = start + len(block)
            captions = block_captions(block, run.config)
            mentioned, sources = captions.mentioned(matcher, nouns[start:stop] if nouns is not None else None)
            start = stop
            writer.write_batch(_with_concepts(block, file.schema_arrow, mentioned, sources))
            progress.advance(len(block))
            total += len(mentioned.values)
        ending["concepts"] = expected | {"counts": {"caption_concepts": total}}
    return {"caption_concepts": total}


def _with_concepts(
    block: pa.RecordBatch, columns: pa.Schema, mentioned: Ragged, sources: np.ndarray | None
) -> pa.RecordBatch:
    """Rows with the ids of their concepts, and, where images may have several captions, the sources of each."""
    offsets = pa.array(mentioned.offsets, pa.int32())
    lists = {"concepts": mentioned.values} | ({} if sources is None else {"sources": sources})
    for name, values in lists.items():
        column = pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))
        block = block.set_column(columns.get_field_index(name), columns.field(name), column)
    return block


# --- captions -------------------------------------------------------------------------------------------------------------


def _captions_expected(run: Run, shard: Shard, read: Reader) -> Record:
    embedded = read(_embeddings(run, shard), "embed")
    if gives_captions(run.config):
        return record({}, [embedded["fingerprint"], files.file_digest(caption_part(run, shard))])
    return record({"encoder": encoder.identity(run.config.encoder)}, embedded["fingerprint"])


def _captions(run: Run, shard: Shard, expected: Record, progress: Progress) -> None:
    """Embeddings of a shard's captions, for text-driven expansion: ``captions/<shard>.parquet``."""
    columns = pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float16(), _expected_width(run.config)))])
    with parquet_writer(run.of_shard("captions", shard), columns, {"captions": expected}) as writer:
        for block in blocks(_embeddings(run, shard), ["key", caption_column(run.config)]):
            embeddings = embed_captions(run, shard, block)
            writer.write_batch(pa.record_batch([block["key"], embedding_array(embeddings)], schema=columns))
            progress.advance(len(block))


EMBED = Stage("embed", True, _embeddings, _embed_expected, _embed, _is_embedded)
CONCEPTS = Stage("concepts", True, _embeddings, _concepts_expected, _concepts)
CAPTIONS = Stage("captions", True, lambda run, shard: run.of_shard("captions", shard), _captions_expected, _captions)
