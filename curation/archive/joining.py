"""The samples of a tar beside their archives, matched by key; the tar is streamed and never rewritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curation.archive.captions import Unusable, names_in, parse_field, read_captions
from curation.archive.entries import one_chunk
from curation.archive.members import MAX_MEMBER, key_problem, read_members, tar_errors
from curation.archive.reader import ArchiveReader
from curation.archive.sampling import Sampler, choose, seeds
from curation.archive.source import Source, shard_name
from curation.base import files
from curation.base.errors import CocuError

NO_ARCHIVE, REJECTED = -1, -2  # in place of the row of an archive
SHARDS_KEPT = 8  # in memory at once by attach: a shuffle before it mixes the samples of several

RawSample = dict[str, Any]  # as webdataset has them: __key__, and the content of every field


def read_tar(path: str, fields: Iterable[str], max_member: int = MAX_MEMBER) -> Iterator[RawSample]:
    """The samples of a tar, in order, with the named fields: what webdataset's own readers give.

    Of two members of one name the first counts. Samples that curation rejects for their keys are left out; a field that it
    rejects for its size, or as a hard link, is empty. Raises InputError when the file is missing or is not a whole tar.
    """
    wanted = {field.lower() for field in fields}
    last = None
    with files.open_file(path) as stream, tar_errors(path):
        for key, members in read_members(stream, lambda key, extension: extension in wanted, max_member):
            contents = {name: content for name, content in members.items() if name in wanted}
            if key == last or not contents or key_problem(key):
                continue
            last = key
            held = {name: content if isinstance(content, bytes) else b"" for name, content in contents.items()}
            yield {"__key__": key, "__url__": path, **held}


def join(
    samples: Iterable[RawSample],
    archive: ArchiveReader,
    source: Source,
    keys: list[str],
    required: bool = True,
    with_rejected: bool = False,
) -> Iterator[tuple[RawSample, int]]:
    """Each sample of a tar with the row of its archive; NO_ARCHIVE for one that has none, where ``required`` is false.

    keys (N,): the keys of the archives of this shard, in order. Samples that curation rejected are left out, or, where they
    are asked for, come with REJECTED in place of a row.
    Raises CocuError with shard and key when a sample is out of order, has no archive, or is missing from the tar.
    """
    rejected = archive.rejected(source.name)
    rows: dict[str, int] | None = None
    row = 0
    for sample in samples:
        key = sample["__key__"]
        if row < len(keys) and key == keys[row]:
            yield sample, row
            row += 1
            continue
        if key in rejected:
            if with_rejected:
                yield sample, REJECTED
            continue
        rows = {known: number for number, known in enumerate(keys)} if rows is None else rows
        if key in rows:
            raise CocuError(
                f"{source.path}: {key} is out of order: the tar is not the one that was curated into {archive.folder}; "
                "run cocu curate again"
            )
        if required:
            raise CocuError(
                f"{source.path}: {key} has no archive in {archive.path('archives', source.name)}; run cocu curate again, "
                "or set require_archives to false to train on its caption alone"
            )
        yield sample, NO_ARCHIVE
    if row < len(keys):
        raise CocuError(
            f"{source.path}: {keys[row]} is missing, {len(keys) - row} of {len(keys)} archives have no sample: the tar is "
            f"truncated or is not the one that was curated into {archive.folder}"
        )


class _Shard(NamedTuple):
    rows: dict[str, int]  # by key
    concepts: pa.ListArray
    prompts: list[list[str]]  # empty without a sampler


def attach(
    samples: Iterable[RawSample],
    archive: ArchiveReader,
    sampler: Sampler | None = None,
    seed: int = 0,
    epoch: int | Callable[[], int] = 0,
    required: bool = True,
) -> Iterator[RawSample]:
    """Webdataset samples, in any order, with what their archives say, found by ``__url__`` and ``__key__``.

    Each gets ``concepts``, a list of {concept, score, global, local, cluster, support}; with a ``sampler``, ``prompts``
    too, M sentences as the trainer draws them in this epoch. ``epoch`` may be a function, for pipelines that live longer
    than an epoch. Samples that curation rejected, or ``filter(concept=...)``, are left
    out. A sample without an archive raises CocuError; unless
    ``required``, it has no concepts, and its caption (``""`` for none) in place of every prompt. What was rejected may not
    decode, so put ``decode`` after this, with ``partial=True``: it then leaves what is no bytes alone.
    """

    @lru_cache(SHARDS_KEPT)
    def read(name: str, number: int) -> _Shard:
        table = archive.table(name)
        drawn = archive.read(name, sampler.method.of_caption).prompts(sampler, seed, number) if sampler else []
        rows = {key: row for row, key in enumerate(table["key"].to_pylist())}
        return _Shard(rows, one_chunk(table["concepts"]), drawn)

    rejected = lru_cache(SHARDS_KEPT)(archive.rejected)
    left_out = lru_cache(SHARDS_KEPT)(archive.left_out)
    known = set(archive.shards)
    for sample in samples:
        key, name = sample["__key__"], shard_name(sample["__url__"])
        archives = read(name, epoch() if callable(epoch) else epoch) if name in known else None
        if archives and key in archives.rows:
            row = archives.rows[key]
            more: RawSample = {"concepts": archives.concepts[row].as_py()}
            if sampler:
                more["prompts"] = archives.prompts[row]
        elif archives and (key in rejected(name) or key in left_out(name) or key_problem(key)):
            continue
        elif required:
            where = archive.path("archives", name)
            raise CocuError(
                f"{sample['__url__']}: {key} has no archive in {where}; set required to false to leave such samples "
                "without concepts"
            )
        else:
            number = epoch() if callable(epoch) else epoch
            text = _caption(sample, archive, seed, number) if sampler else ""
            more = {"concepts": []} | ({"prompts": [text] * sampler.concepts} if sampler else {})
        yield sample | more


def _caption(sample: RawSample, archive: ArchiveReader, seed: int, epoch: int) -> str:
    config = archive.manifest["config"]
    several = [parse_field(name) for name in config.get("captions") or ()]
    fields = several or [parse_field(name) for name in names_in(config.get("caption", ""))]
    captions = read_captions(sample, fields, union=bool(several))
    if captions is None or isinstance(captions, Unusable):
        return ""
    numbers = seeds([sample["__key__"]], seed, epoch)
    return captions[int(choose(numbers, np.array([len(captions)]))[0])].text
