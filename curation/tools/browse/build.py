"""Building a catalogue of a run: one pass over its shards, then a counting sort into files that are mapped.

Memory holds one shard, the words, and the rows of the most frequent concept, however many archives there are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curation.archive import read_archive
from curation.archive.entries import entries, one_chunk
from curation.base import files
from curation.base.errors import CocuError
from curation.base.parquet import blocks, read_columns
from curation.base.ragged import Ragged, is_in
from curation.diagnosis import kind_of
from curation.run.rejects import UNREADABLE
from curation.run.run import Run
from curation.samples import NO_KEY
from curation.tools.browse.postings import companions, slots, starts_of, words_of

POSTINGS: dict[
    str, np.dtype[Any]
] = {  # of an entry of an archive: what stands beside its row in the list of its concept
    "row": np.dtype(np.int32),
    "score": np.dtype(np.float32),
    "support": np.dtype(np.int16),
    "companion": np.dtype(np.int32),  # best other concept of its cluster; -1 for none
    "said": np.dtype(np.bool_),  # the caption mentions the concept
}
ROWS = pa.schema([("key", pa.string()), ("caption", pa.string())])
REJECTS = pa.schema(
    [("kind", pa.string()), ("shard", pa.int32()), ("row", pa.int32()), ("key", pa.string()), ("reason", pa.string())]
)

Advance = Callable[[int], object]  # is told how many shards are done


def build(run: Run, folder: str, advance: Advance = lambda shards: None) -> dict[str, Any]:
    """Write the files of a catalogue into an empty folder; returns what its ``catalogue.json`` says."""
    concepts = read_columns(run.vocabulary, {"concept": pa.string()})["concept"].combine_chunks()
    parts = os.path.join(folder, "parts")
    os.mkdir(parts)
    rows: list[int] = []
    words: dict[str, int] = {}
    concept_counts = np.zeros(len(concepts), np.int64)
    word_counts: list[np.ndarray] = []
    with pa.OSFile(os.path.join(folder, "rows.arrow"), "wb") as stream, pa.ipc.new_file(stream, ROWS) as writer:
        for number, shard in enumerate(run.shards):
            table = read_archive(run.of_shard("archives", shard))
            batch = pa.record_batch([one_chunk(table["key"]), one_chunk(table["caption"])], schema=ROWS)
            writer.write_batch(batch)
            entry = shard_postings(table, concepts, captions_of(run, number, batch["key"]), sum(rows))
            word, row = shard_words(batch["caption"], words, sum(rows))
            columns: dict[str, Any] = {"word": word, "at": row, **entry}
            np.savez(os.path.join(parts, f"{number}.npz"), **columns)

            rows.append(len(table))
            concept_counts += np.bincount(entry["concept"], minlength=len(concepts))
            word_counts.append(np.bincount(word, minlength=len(words)))
            advance(number + 1)

    _merge_concepts(folder, len(rows), concept_counts)
    _merge_words(folder, words, word_counts)
    _sort_keys(folder)
    write_rejects(run, os.path.join(folder, "rejects.arrow"))
    for number in range(len(rows)):
        os.remove(os.path.join(parts, f"{number}.npz"))
    os.rmdir(parts)
    return {"rows": rows}


# --- one shard ----------------------------------------------------------------------------------------------------------


def captions_of(run: Run, number: int, keys: pa.Array) -> Ragged:
    """What the captions of a shard mention: N lists of concept ids. Raises CocuError where its rows are others."""
    path = run.of_shard("embeddings", run.shards[number])
    table = read_columns(path, {"key": pa.string(), "concepts": pa.list_(pa.int32())})
    if not one_chunk(table["key"]).equals(keys):
        raise CocuError(f"{path}: its keys are not those of the archives; run cocu curate again")
    return Ragged.from_arrow(one_chunk(table["concepts"]))


def shard_postings(table: pa.Table, concepts: pa.Array, captions: Ragged, first: int) -> dict[str, np.ndarray]:
    """The entries of a shard's archives, as columns of POSTINGS and ``concept``, an id each.

    concepts: names by id; captions: what each caption mentions; first: the row of the shard's first archive. Entries
    whose concept has no name in the vocabulary are left out.
    """
    archives, structs = entries(table)
    names = structs.field("concept")
    ids = pc.index_in(names.dictionary, concepts).fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    lists = archives.with_values(ids[names.indices.to_numpy()] if len(ids) else np.zeros(0, np.int64))
    columns = {
        "row": first + lists.owners,
        "score": structs.field("score").to_numpy(),
        "support": structs.field("support").to_numpy(),
        "companion": companions(lists, structs.field("cluster").to_numpy()),
        "said": is_in(lists.with_values(np.maximum(lists.values, 0)), captions),
    }
    named = lists.values >= 0
    shown = {name: values[named].astype(POSTINGS[name]) for name, values in columns.items()}
    return {"concept": lists.values[named].astype(np.int32), **shown}


def shard_words(captions: pa.Array, words: dict[str, int], first: int) -> tuple[np.ndarray, np.ndarray]:
    """Number and row of every word of a shard's captions, once a caption, rows ascending; ``words`` takes new ones up."""
    every, owners = words_of(captions)
    encoded = every.dictionary_encode()
    numbers = [words.setdefault(word, len(words)) for word in encoded.dictionary.to_pylist()]
    if not numbers:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    of_word = np.array(numbers, np.int64)[encoded.indices.to_numpy()]
    row, word = np.divmod(np.unique(owners * len(words) + of_word), len(words))
    return word.astype(np.int32), (first + row).astype(np.int32)


# --- all shards ---------------------------------------------------------------------------------------------------------


def _merge_concepts(folder: str, shards: int, counts: np.ndarray) -> None:
    """The entries of all shards by concept, the best score first."""
    starts = starts_of(counts)
    np.save(os.path.join(folder, "concept-starts.npy"), starts)
    columns = {name: _mapped(folder, f"concept-{name}", kind, starts[-1]) for name, kind in POSTINGS.items()}
    cursors = starts[:-1].copy()
    for number in range(shards):
        with np.load(os.path.join(folder, "parts", f"{number}.npz")) as part:
            targets = slots(part["concept"], cursors)
            for name, column in columns.items():
                column[targets] = part[name]

    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        order = np.argsort(-columns["score"][start:stop], kind="stable")  # of equal scores the first row
        for column in columns.values():
            column[start:stop] = column[start:stop][order]
    for column in columns.values():
        column.flush()


def _merge_words(folder: str, words: dict[str, int], counts: list[np.ndarray]) -> None:
    """The rows of every word, words and rows ascending."""
    names = pa.array(list(words), pa.string())
    order = pc.sort_indices(names).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    total = np.zeros(len(words), np.int64)
    for of_shard in counts:
        total[: len(of_shard)] += of_shard

    starts = starts_of(total[order])
    np.save(os.path.join(folder, "word-starts.npy"), starts)
    rows = _mapped(folder, "word-row", np.dtype(np.int32), starts[-1])
    cursors = starts[:-1].copy()
    for number in range(len(counts)):
        with np.load(os.path.join(folder, "parts", f"{number}.npz")) as part:
            if len(part["word"]):
                rows[slots(rank[part["word"]], cursors)] = part["at"]
    rows.flush()
    _write(os.path.join(folder, "words.arrow"), pa.table({"word": names.take(pa.array(order))}))


def _sort_keys(folder: str) -> None:
    """The rows in the order of their keys."""
    with pa.memory_map(os.path.join(folder, "rows.arrow")) as stream:
        keys = pa.ipc.open_file(stream).read_all()["key"]
        order = pc.sort_indices(keys).to_numpy()
    np.save(os.path.join(folder, "key-order.npy"), order.astype(np.int32))


def write_rejects(run: Run, path: str) -> None:
    """What could not be used, in the order of the shards, with its kind of reason; a shard without a file has none."""
    with pa.OSFile(path, "wb") as stream, pa.ipc.new_file(stream, REJECTS) as writer:
        for number, shard in enumerate(run.shards):
            source = run.of_shard("rejects", shard)
            if not files.exists(source):
                continue
            start = 0
            for block in blocks(source, ["key", "reason"]):
                keys, reasons = block["key"].to_pylist(), block["reason"].to_pylist()
                kinds = [
                    kind_of(reason) if key or reason == NO_KEY else UNREADABLE
                    for key, reason in zip(keys, reasons, strict=True)
                ]
                rows = np.arange(start, start + len(keys))
                columns = [kinds, np.full(len(keys), number), rows, keys, reasons]
                arrays = [pa.array(values, field.type) for values, field in zip(columns, REJECTS, strict=True)]
                writer.write_batch(pa.record_batch(arrays, schema=REJECTS))
                start += len(keys)


def _write(path: str, table: pa.Table) -> None:
    with pa.OSFile(path, "wb") as stream, pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table)


def _mapped(folder: str, name: str, kind: np.dtype[Any], size: int) -> np.memmap[Any, Any]:
    """A new array file, mapped for writing; numpy cannot map an empty one, so that it has one element then."""
    shape = (max(int(size), 1),)
    return files.mapped_array(os.path.join(folder, f"{name}.npy"), kind, shape)
