"""Image-text samples of a shard: a webdataset or img2dataset tar, streamed, never unpacked, never rewritten."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple, Self

import numpy as np
import pyarrow.parquet as pq

from curation.archive.source import matching, shard_name
from curation.base import files
from curation.base.errors import CocuError, InputError
from curation.base.remote import shown

META_FILE = re.compile(r"__[^/]*__($|/)")


class Shard(NamedTuple):
    """One input file. Elements of a pipeline are shards, never samples."""

    index: int  # type: ignore[assignment]  # in place of the method of tuples
    name: str  # file stem; the name of everything that is written for this shard
    path: str  # the tar, or the img_emb_*.npy of a clip-retrieval folder


@dataclass(frozen=True)
class Sample:
    """A usable image-text pair."""

    key: str
    image: bytes
    caption: str


@dataclass(frozen=True)
class Reject:
    """A sample that cannot be used, and why."""

    key: str
    reason: str


def list_shards(patterns: str | list[str]) -> list[Shard]:
    """The shards that patterns name, in order: braces, globs, several joined by ``::``, or a list of them.

    Raises CocuError when a pattern matches nothing or two shards share a stem (files of a run are named by it).
    """
    by_name: dict[str, str] = {}
    for path in matching([patterns] if isinstance(patterns, str) else patterns):
        name = shard_name(path)
        if name in by_name:
            raise CocuError(
                f"shards: {shown(by_name[name])} and {shown(path)} are both called {name}; curate them as two data sets, "
                "or rename one"
            )
        by_name[name] = path
    return [Shard(index, name, path) for index, (name, path) in enumerate(by_name.items())]


class _Header(tarfile.TarInfo):
    """Remembers why reading stopped: Python's tarfile takes any damaged header but the first for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            tar.stopped_by = error  # type: ignore[attr-defined]
            raise


def read_members(stream: IO[bytes] | files.HashingReader) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {extension: content}) for runs of tar members with one key, as webdataset defines keys.

    A key ends at the first dot of the file name; extensions are lower-cased; folders, links and ``__meta__`` files are
    skipped. A repeated extension begins a new sample with the same key. Raises tarfile.ReadError for a tar that does not
    come to its proper end.
    """
    from webdataset.tariterators import base_plus_ext  # imports torch, which only reading needs

    key: str | None = None
    fields: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # the streaming reader would keep every header otherwise
            prefix, extension = base_plus_ext(member.name)
            if not member.isreg() or META_FILE.match(member.name) or prefix is None:
                continue
            extension = extension.lower()
            if key is not None and (prefix != key or extension in fields):
                yield key, fields
                fields = {}
            key = prefix
            fields[extension] = tar.extractfile(member).read()
        if not isinstance(tar.stopped_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"no end-of-archive marker: {tar.stopped_by}")
    if key is not None:
        yield key, fields


def check_sample(
    key: str, fields: dict[str, bytes], image_fields: Iterable[str], caption_fields: Iterable[str]
) -> Sample | Reject:
    """A sample from the members of one key, or the reason why there is none. The image is not decoded here."""
    image = next((fields[name] for name in image_fields if name in fields), None)
    caption = next((fields[name] for name in caption_fields if name in fields), None)
    if image is None:
        return Reject(key, f"no image field ({';'.join(image_fields)}), only {', '.join(sorted(fields))}")
    if caption is None:
        return Reject(key, f"no caption field ({';'.join(caption_fields)}), only {', '.join(sorted(fields))}")
    try:
        text = caption.decode("utf-8").strip()
    except UnicodeDecodeError:
        return Reject(key, "caption is not UTF-8")
    return Sample(key, image, text) if text else Reject(key, "caption is empty")


def read_samples(
    stream: IO[bytes] | files.HashingReader, path: str, image: str, caption: str
) -> Iterator[Sample | Reject]:
    """Every sample of a tar, in order, usable or not.

    ``image`` and ``caption`` are field names separated by semicolons; the first that is present wins.
    Raises InputError naming ``path`` when the tar cannot be read to its end.
    """
    image_fields, caption_fields = image.lower().split(";"), caption.lower().split(";")
    seen: set[str] = set()

    try:
        for key, fields in read_members(stream):
            if not key.isprintable() and key != (printable := key.encode("utf-8", "backslashreplace").decode()):
                yield Reject(printable, "key is not UTF-8")
                continue
            if key in seen:
                yield Reject(key, "duplicate key")
                continue
            seen.add(key)
            yield check_sample(key, fields, image_fields, caption_fields)
    except InputError:  # of the storage, which says what happened itself
        raise
    except Exception as error:  # a damaged header or compressed stream makes tarfile raise nearly anything
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: cannot be read as a tar after {len(seen)} samples ({reason}); repair it or take it out of shards, "
            "or set on_error: skip to leave it out"
        ) from None


def read_sidecars(path: str, extension: str = "json") -> Iterator[tuple[str, bytes]]:
    """Yield (key, content) of one kind of member of a tar, such as the json sidecars. Raises InputError naming it."""
    with files.open_file(path) as stream:
        try:
            for key, fields in read_members(stream):
                if extension in fields:
                    yield key, fields[extension]
        except tarfile.TarError as error:
            raise InputError(f"{path}: cannot be read as a tar ({error})") from None


def list_imports(folder: str) -> list[Shard]:
    """The parts of a clip-retrieval folder, as shards named by their number.

    Raises CocuError when the folder does not hold ``img_emb/img_emb_*.npy`` with a ``metadata_*.parquet`` for each.
    """
    names = [name for name in files.files_in(files.join(folder, "img_emb")) if re.fullmatch(r"img_emb_\d+\.npy", name)]
    if not names:
        raise CocuError(f"embeddings: {folder} has no img_emb/img_emb_*.npy; give a folder written by clip-retrieval")
    numbers = sorted((re.findall(r"\d+", name)[0] for name in names), key=int)
    shards = [
        Shard(index, number, files.join(folder, "img_emb", f"img_emb_{number}.npy"))
        for index, number in enumerate(numbers)
    ]
    for shard in shards:
        if not files.exists(metadata_path(shard.path)):
            raise CocuError(f"embeddings: {metadata_path(shard.path)} is missing")
    return shards


def metadata_path(embedding_path: str) -> str:
    """The ``metadata/metadata_N.parquet`` that belongs to an ``img_emb/img_emb_N.npy``."""
    folder, _, name = embedding_path.rpartition("/img_emb/")
    return f"{folder}/metadata/{name.replace('img_emb_', 'metadata_').replace('.npy', '.parquet')}"


def read_import(path: str) -> tuple[list[str | None], list[str | None], np.ndarray]:
    """Keys, captions and embeddings (N, D) of one part of a clip-retrieval folder, in order.

    The key is the column ``key`` where there is one (img2dataset's), else ``image_path``.
    Raises InputError when a file is damaged, columns are missing, or the two files disagree in length.
    """
    metadata = metadata_path(path)
    file = metadata
    try:
        with files.open_file(metadata) as stream:
            table = pq.read_table(stream)
        file = path
        if files.is_remote(path):  # read once, and not worth a copy on disk
            with files.open_file(path) as stream:
                embeddings = np.load(stream, allow_pickle=False)
        else:
            embeddings = np.load(files.local_path(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: cannot be read ({' '.join(str(error).split())})") from None
    key = next((name for name in ("key", "image_path") if name in table.column_names), None)
    if key is None or "caption" not in table.column_names:
        raise InputError(
            f"{metadata}: needs the columns caption and key (or image_path), has {', '.join(table.column_names)}"
        )
    if embeddings.ndim != 2 or len(embeddings) != table.num_rows:
        raise InputError(f"{path}: shape {embeddings.shape} does not fit the {table.num_rows} rows of {metadata}")
    return table[key].to_pylist(), table["caption"].to_pylist(), embeddings


def check_import(keys: list[Any], captions: list[Any], embeddings: np.ndarray, seen: set[str]) -> list[Sample | Reject]:
    """The rows of an import as samples or rejects: the checks of a tar's samples, on arrays.

    embeddings (N, D); ``seen``: keys of the rows before, to which these are added.
    """
    norms = np.linalg.norm(embeddings.astype(np.float32), axis=1)
    checked: list[Sample | Reject] = []
    for value, caption, norm in zip(keys, captions, norms, strict=True):
        key = "" if value is None else str(value)
        if not key:
            checked.append(Reject("", "key is missing"))
        elif key in seen:
            checked.append(Reject(key, "duplicate key"))
        elif not isinstance(caption, str) or not caption.strip():
            checked.append(Reject(key, "caption is empty"))
        elif not (np.isfinite(norm) and norm > 0):
            checked.append(Reject(key, "embedding is zero or not finite"))
        else:
            checked.append(Sample(key, b"", caption.strip()))
        seen.add(key)
    return checked
