"""Image-text samples of a shard: a webdataset or img2dataset tar, streamed, never unpacked, never rewritten."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from curation.archive.forward import Readable
from curation.archive.members import MAX_KEY, MAX_MEMBER, Fields, Unread, key_problem, read_members, tar_errors
from curation.archive.source import matching, shard_name
from curation.base import files
from curation.base.embeddings import has_direction
from curation.base.errors import CocuError, InputError, listed, one_line

MAX_CAPTION = 1 << 20  # bytes


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
    """The shards that patterns name, in order: braces, globs or a list of both.

    Raises CocuError when a glob matches nothing or two shards share a stem (run are named by it).
    """
    by_name: dict[str, str] = {}
    for path in matching([patterns] if isinstance(patterns, str) else patterns):
        name = shard_name(path)
        if name in by_name:
            raise CocuError(
                f"shards: {by_name[name]} and {path} are both called {name}; curate them as two data sets, or rename one"
            )
        by_name[name] = path
    return [Shard(index, name, path) for index, (name, path) in enumerate(by_name.items())]


def check_sample(
    key: str, fields: Fields, image_fields: Iterable[str], caption_fields: Iterable[str]
) -> Sample | Reject:
    """A sample from the members of one key, or the reason why there is none. The image is not decoded here."""
    image_field = next((name for name in image_fields if name in fields), None)
    caption_field = next((name for name in caption_fields if name in fields), None)
    if image_field is None:
        return Reject(key, f"no image field ({';'.join(image_fields)}), only {listed(sorted(fields))}")
    if caption_field is None:
        return Reject(key, f"no caption field ({';'.join(caption_fields)}), only {listed(sorted(fields))}")

    image = fields[image_field]
    caption = fields[caption_field]
    if isinstance(image, Unread):
        return Reject(key, f"{image_field} {image.reason}")
    if isinstance(caption, Unread):
        return Reject(key, f"{caption_field} {caption.reason}")
    if len(caption) > MAX_CAPTION:
        return Reject(key, f"caption is longer than {MAX_CAPTION >> 20} MiB")
    try:
        text = caption.decode("utf-8").strip()
    except UnicodeDecodeError:
        return Reject(key, "caption is not UTF-8")
    return Sample(key, image, text) if text else Reject(key, "caption is empty")


def read_samples(
    stream: Readable, path: str, image: str, caption: str, max_member: int = MAX_MEMBER
) -> Iterator[Sample | Reject]:
    """Every sample of a tar, in order, usable or not.

    ``image`` and ``caption`` are field names separated by semicolons; the first that is present wins. A sample whose image
    or caption has more than ``max_member`` bytes is a Reject. Raises InputError naming ``path`` when the tar cannot be read
    to its end.
    """
    image_fields, caption_fields = image.lower().split(";"), caption.lower().split(";")
    wanted = {*image_fields, *caption_fields}
    seen: set[str] = set()

    try:
        for key, fields in read_members(stream, lambda key, extension: extension in wanted, max_member):
            problem = key_problem(key)
            if problem:
                yield Reject(printable(key), problem)
                continue
            if key in seen:
                yield Reject(key, "duplicate key")
                continue
            seen.add(key)
            yield check_sample(key, fields, image_fields, caption_fields)
    except Exception as error:  # a damaged header or compressed stream makes tarfile raise nearly anything
        reason = one_line(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as a tar after {len(seen)} samples ({reason}); repair it or take it out of shards, "
            "or set on_error: skip to leave it out"
        ) from None


def printable(key: str) -> str:
    """A key of any kind as text that can be written, and read: what is not UTF-8 is escaped, what is long is cut."""
    text = key.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_KEY else text[:100] + "..."


def read_sidecars(path: str, extension: str = "json") -> Iterator[tuple[str, bytes]]:
    """Yield (key, content) of one kind of member of a tar, such as the json sidecars. Raises InputError naming it."""
    with files.open_file(path) as stream, tar_errors(path):
        for key, fields in read_members(stream, lambda key, name: name == extension):
            content = fields.get(extension)
            if isinstance(content, bytes):
                yield key, content


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
            f"{metadata}: needs the columns caption and key (or image_path), has {listed(table.column_names)}"
        )
    if embeddings.ndim != 2 or len(embeddings) != table.num_rows:
        raise InputError(f"{path}: shape {embeddings.shape} does not fit the {table.num_rows} rows of {metadata}")
    return table[key].to_pylist(), table["caption"].to_pylist(), embeddings


def check_import(keys: list[Any], captions: list[Any], embeddings: np.ndarray, seen: set[str]) -> list[Sample | Reject]:
    """The rows of an import as samples or rejects: the checks of a tar's samples, on arrays.

    embeddings (N, D); ``seen``: keys of the rows before, to which these are added.
    """
    usable = has_direction(embeddings)
    checked: list[Sample | Reject] = []
    for value, caption, is_usable in zip(keys, captions, usable, strict=True):
        key = "" if value is None else str(value)
        if not key:
            checked.append(Reject("", "key is missing"))
        elif key in seen:
            checked.append(Reject(key, "duplicate key"))
        elif not isinstance(caption, str) or not caption.strip():
            checked.append(Reject(key, "caption is empty"))
        elif not is_usable:
            checked.append(Reject(key, "embedding is zero or not finite"))
        else:
            checked.append(Sample(key, b"", caption.strip()))
        seen.add(key)
    return checked
