"""A finished run of any size, written at once: what a curation of synthetic data leaves, without curating.

Vectors, captions and the index are those of synthetic.py; what an archive holds is drawn at random, as are scores and
clusters, because only their number matters for looking them up. The first shard has a tar with pictures.
"""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from PIL import Image
from synthetic import DIMENSION, SHARD, VOCABULARY, SyntheticWorld, names, write_clip

from curation.archive import SCHEMA, archive_batch, parquet_writer, write_table
from curation.base import files
from curation.base.embeddings import embedding_array
from curation.base.parquet import ROW_GROUP
from curation.base.ragged import Ragged
from curation.config import CurationConfig, from_mapping
from curation.encoder import encode_concepts, load
from curation.index import build
from curation.index.choose import choose_index
from curation.index.duplicates import COLUMNS, write_duplicates
from curation.mentions import Mentions, write_mentions
from curation.run.run import portable
from curation.run.stages.archives import write_whole
from curation.vocabulary import Vocabulary, table_of, write_report

DRAWN = 22  # concepts of an archive, of which a few are the same
LEFT_OUT = 45_000  # candidates that are not in the vocabulary
REJECTED = 100  # one in so many samples
REASONS = ("caption is empty", "image cannot be decoded (truncated)", "image is missing", "duplicate key")
EMBEDDINGS = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("concepts", pa.list_(pa.int32())),
        ("embedding", pa.list_(pa.float16(), DIMENSION)),
    ]
)


def write_run(folder: Path, rows: int, memory: int = 4 << 30) -> Path:
    """Write a finished run of ``rows`` archives; returns its folder."""
    clip = write_clip(folder / "clip")
    concepts = names(VOCABULARY)
    shards = [f"{number:05d}" for number in range(max(2, -(-rows // SHARD)))]
    config = from_mapping(
        {
            "name": f"synthetic-{rows}",
            "shards": [str(folder / "data" / f"{name}.tar") for name in shards],
            "encoder": {"model": f"local-dir:{clip}", "precision": "fp32"},
            "vocabulary": {"source": "build"},
            "retrieval": {"duplicates": "once"},
        },
        "synthetic",
    )
    encode = load(config.encoder).encode_texts
    world = SyntheticWorld(encode_concepts(encode, concepts, config.vocabulary.prompts))
    out = folder / "out"

    index = untrained_index(world, choose_index(rows, DIMENSION, memory, 0.95).factory)
    counts = np.zeros(VOCABULARY, np.int64)
    parts = []
    for number, name in enumerate(shards):
        first, last = (rows * part // len(shards) for part in (number, number + 1))
        samples = world.samples(last - first, number)
        mentioned = Ragged(samples.offsets, samples.concepts)
        keys = [f"{row:09d}" for row in range(first, last)]
        captions = [
            "a picture of " + " and ".join(concepts[concept] for concept in mentioned.values[start:end])
            for start, end in itertools.pairwise(mentioned.offsets.tolist())
        ]
        write_embeddings(out / "embeddings" / f"{name}.parquet", keys, captions, mentioned, samples.vectors)
        write_archives(out / "archives" / f"{name}.parquet", keys, captions, pa.array(concepts), number)
        write_rejects(out / "rejects" / f"{name}.parquet", name, (last - first) // REJECTED)
        index.add(samples.vectors)
        counts += np.bincount(mentioned.values, minlength=VOCABULARY)
        parts.append(mentioned)
        if not number:
            write_tar(folder / "data" / f"{name}.tar", keys, captions, mentioned, concepts)

    mentions = Ragged.concatenate(parts)
    write_mentions(
        Mentions(mentions, np.full(len(mentions.values), 0.3, np.float32)), str(out / "index/mentions.arrow")
    )
    write_index(out, index, shards, [len(part) for part in parts])
    write_copies(out, rows)
    write_vocabulary(out, concepts, world.texts, counts)
    write_manifest(out, config, shards, rows, len(mentions.values))
    return out


def untrained_index(world: SyntheticWorld, factory: str) -> faiss.Index:
    """An empty index whose lists are around random images: as fast to search as one of trained lists, and made at once."""
    index = build.empty_index(factory, DIMENSION)
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.quantizer.add(world.samples(inverted.nlist, 10**6).vectors)
        inverted.quantizer.is_trained = inverted.is_trained = index.is_trained = True
    return index


def write_embeddings(path: Path, keys: list[str], captions: list[str], mentioned: Ragged, vectors: np.ndarray) -> None:
    """The embeddings of a shard."""
    lists = pa.ListArray.from_arrays(pa.array(mentioned.offsets, pa.int32()), pa.array(mentioned.values, pa.int32()))
    arrays = [pa.array(keys), pa.array(captions), lists, embedding_array(vectors)]
    with parquet_writer(str(path), EMBEDDINGS, {}) as writer:
        writer.write_table(pa.table(arrays, schema=EMBEDDINGS), row_group_size=ROW_GROUP)


def write_archives(path: Path, keys: list[str], captions: list[str], concepts: pa.Array, seed: int) -> None:
    """Archives of random concepts: Zipf's, as many concepts are rare."""
    random = np.random.default_rng([5, seed])
    drawn = np.minimum(random.zipf(1.2, (len(keys), DRAWN)) - 1, VOCABULARY - 1)
    ordered = np.sort(drawn, axis=1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    lists = Ragged.from_lengths((ordered >= 0).sum(axis=1), ordered[ordered >= 0])
    size = len(lists.values)
    score = random.random(size, np.float32) * 2
    order = np.lexsort((-score, lists.owners))
    cluster = random.integers(0, 8, size)
    columns: dict[str, np.ndarray] = {
        "score": score[order],
        "global": score[order] / 2,
        "local": score[order] / 2,
        "cluster": cluster,
    }
    columns["support"] = random.integers(1, 17, size)
    batch = archive_batch(pa.array(keys), pa.array(captions), concepts, lists.offsets, lists.values[order], **columns)
    with parquet_writer(str(path), SCHEMA, {}) as writer:
        write_whole(writer, [batch])


def write_rejects(path: Path, shard: str, count: int) -> None:
    """Rejects of a few reasons."""
    keys = [f"bad-{shard}-{number}" for number in range(count)]
    reasons = [REASONS[number % len(REASONS)] for number in range(count)]
    write_table(str(path), pa.table({"key": pa.array(keys, pa.string()), "reason": pa.array(reasons, pa.string())}), {})


def write_tar(path: Path, keys: list[str], captions: list[str], mentioned: Ragged, concepts: list[str]) -> None:
    """Pictures, captions and sidecars of a shard."""
    stream = io.BytesIO()
    noise = np.random.default_rng(6).integers(0, 256, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", quality=80)
    picture = stream.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for row, (key, caption) in enumerate(zip(keys, captions, strict=True)):
            shown = mentioned.values[mentioned.offsets[row] : mentioned.offsets[row + 1]]
            sidecar = json.dumps({"objects": [concepts[concept] for concept in shown]})
            for name, content in (("jpg", picture), ("txt", caption.encode()), ("json", sidecar.encode())):
                info = tarfile.TarInfo(f"{key}.{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def write_index(out: Path, index: faiss.Index, shards: list[str], rows: list[int]) -> None:
    """The index, and what index.json says of it."""
    path = str(out / "index" / "image.faiss")
    build.write_index(index, path)
    shape = {"rows": index.ntotal, "dimension": DIMENSION, "bytes": files.version(path)["size"]}
    inverted = faiss.try_extract_index_ivf(index)
    search = None if inverted is None else f"nprobe={max(1, inverted.nlist // 80)}"  # as tuning finds it
    of_shards = [{"name": name, "rows": count} for name, count in zip(shards, rows, strict=True)]
    notes = {"index": shape, "tune index": {"search": search}, "mentions": {"shards": of_shards}}
    records = {stage: {"fingerprint": stage, **note} for stage, note in notes.items()}
    files.write_json(str(out / "index" / "index.json"), records)


def write_copies(out: Path, rows: int) -> None:
    """Groups of near-identical images: one row in twenty is a copy, of which a thousand are of the first."""
    row = np.flatnonzero((np.arange(rows) % 100 > 0) & (np.arange(rows) % 100 <= 5))
    first = np.where(row < 20_000, 0, row // 100 * 100)
    shard = pa.array(["00000"] * len(row)).dictionary_encode()
    columns = [pa.array(row), pa.array(first), shard, pa.array([f"{number:09d}" for number in first.tolist()])]
    path = str(out / "index" / "duplicates.arrow")
    write_duplicates(pa.Table.from_arrays(columns, schema=COLUMNS), path)
    note = files.read_json(str(out / "index" / "index.json"))
    note["duplicates"] = {"fingerprint": "duplicates", "rows": rows, "bytes": files.version(path)["size"]}
    files.write_json(str(out / "index" / "index.json"), note)


def write_vocabulary(out: Path, concepts: list[str], texts: np.ndarray, counts: np.ndarray) -> None:
    """The vocabulary, and the table of its candidates."""
    random = np.random.default_rng(7)
    sizes = random.random(len(concepts)).astype(np.float32)
    write_table(str(out / "vocabulary.parquet"), table_of(Vocabulary(concepts, texts, counts, sizes)), {})
    every = [*concepts, *(f"word {number}" for number in range(LEFT_OUT))]
    kept = np.arange(len(every)) < len(concepts)
    more = random.integers(0, 50, LEFT_OUT)
    reasons = ["" if stays else "not a noun" for stays in kept]
    shares = random.random(len(every))
    visual = np.concatenate([sizes, np.full(LEFT_OUT, np.nan)])
    write_report(str(out / "vocabulary.csv"), every, np.concatenate([counts, more]), visual, kept, shares, reasons)


def write_manifest(out: Path, config: CurationConfig, shards: list[str], rows: int, mentions: int) -> None:
    """What makes the run a finished one."""
    rejects = len(shards) * (rows // len(shards) // REJECTED)
    counts = {"rows": rows, "samples": rows + rejects, "rejects": rejects, "shards": len(shards), "empty": 0}
    counts |= {"concepts": VOCABULARY, "caption_concepts": mentions, "archive_concepts": 15 * rows, "gained": rows}
    paths = [f"../data/{name}.tar" for name in shards]
    manifest = {"config": portable(config, str(out)), "shards": shards, "paths": paths, "counts": counts}
    files.write_json(str(out / "manifest.json"), manifest)
