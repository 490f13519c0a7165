"""Image-text samples of a shard: a webdataset or img2dataset tar, streamed, never unpacked, never rewritten."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from curation.archive.captions import (
    Caption,
    Unusable,
    json_names,
    json_remedy,
    members_of,
    names_in,
    parse_column,
    parse_field,
    read_captions,
)
from curation.archive.forward import Readable
from curation.archive.members import (
    MAX_KEY,
    MAX_MEMBER,
    MAX_NAME,
    Fields,
    Unread,
    key_problem,
    read_members,
    tar_errors,
)
from curation.archive.source import matching, shard_name
from curation.base import files
from curation.base.addresses import redacted
from curation.base.embeddings import has_direction
from curation.base.errors import CocuError, InputError, listed, one_line

NO_KEY = "key is missing"
NOT_ADJACENT = "files of one sample are not adjacent in the tar"


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
    fields: tuple[str, ...] = field(default=(), compare=False)  # of the tar
    captions: tuple[Caption, ...] = ()  # all of them, where several fields are read
    remedy: str = field(default="", compare=False)  # a field to name in place of one that is JSON
    thumbnail: bytes = field(default=b"", compare=False)  # of the image, once it is decoded


@dataclass(frozen=True)
class Reject:
    """A sample that cannot be used, and why."""

    key: str
    reason: str
    fields: tuple[str, ...] = field(default=(), compare=False)  # of the tar
    remedy: str = field(default="", compare=False)  # as of a sample


def list_shards(patterns: str | list[str]) -> list[Shard]:
    """The shards that patterns name, in order: braces, globs, several joined by ``::``, or a list of them.

    Raises CocuError when a pattern matches nothing or two shards share a stem (files of a run are named by it).
    """
    by_name: dict[str, str] = {}
    for path in matching([patterns] if isinstance(patterns, str) else patterns):
        name = shard_name(path)
        if name in by_name:
            raise CocuError(
                f"shards: {redacted(by_name[name])} and {redacted(path)} are both called {name}; curate them as two data "
                "sets, or rename one"
            )
        by_name[name] = path
    return [Shard(index, name, path) for index, (name, path) in enumerate(by_name.items())]


def check_sample(
    key: str, fields: Fields, image_fields: Sequence[str], caption_fields: Sequence[str], union: bool = False
) -> Sample | Reject:
    """A sample from the members of one key, or the reason why there is none. The image is not decoded here.

    ``union``: all caption fields count, not only the first that is present.
    """
    names = _names(fields)
    image_field = next((name for name in image_fields if name in fields), None)
    if image_field is None and len(dotted_images(names, image_fields)) > 1:
        return Reject(key, _several_images(names, image_fields), names)
    if image_field is None:
        return Reject(key, f"no image field ({';'.join(image_fields)}), only {listed(sorted(names))}", names)

    sought = [parse_field(name) for name in caption_fields]
    captions = read_captions(fields, sought, union)
    if captions is None:
        there = listed(sorted(names)) + json_names(fields, sought)
        return Reject(key, f"no caption field ({';'.join(caption_fields)}), only {there}", names)
    image = fields[image_field]
    if isinstance(image, Unread):
        return Reject(key, f"{image_field} {image.reason}", names)
    if isinstance(captions, Unusable):
        return Reject(key, captions.reason, names, captions.remedy)
    if not union:
        return Sample(key, image, captions[0].text, names)
    return Sample(key, image, captions[0].text, names, tuple(captions), json_remedy(fields, sought))


def _names(fields: Fields) -> tuple[str, ...]:
    """The fields that a key has, cut where a hostile tar would have us keep long ones."""
    return tuple(name[:MAX_NAME] for name in fields)


def dotted_images(names: Iterable[str], image_fields: Sequence[str]) -> list[str]:
    """Fields such as ``1.jpg``: images whose file names have dots, so that they share a key.

    >>> dotted_images(["jpg", "1.jpg", "1.txt", "2.png"], ["jpg", "png"])
    ['1.jpg', '2.png']
    """
    return [name for name in names if name not in image_fields and name.rpartition(".")[2] in image_fields]


def hidden_images(names: Sequence[str], image_fields: Sequence[str], caption_fields: Sequence[str]) -> list[str]:
    """The images of one key that nobody would see, because a sample has one image: fields such as ``1.jpg``.

    Beside an image of the key itself, one such as ``mask.png`` is part of the sample, unless it has a caption of its own.

    >>> hidden_images(["jpg", "txt", "mask.png", "1.jpg", "1.txt"], ["jpg", "png"], ["txt"])
    ['1.jpg']
    """
    dotted = dotted_images(names, image_fields)
    if not any(name in image_fields for name in names):
        return dotted[1:]  # the first stands for the key
    return [name for name in dotted if any(f"{name.rpartition('.')[0]}.{field}" in names for field in caption_fields)]


def _several_images(names: Sequence[str], image_fields: Sequence[str]) -> str:
    dotted = dotted_images(names, image_fields)
    shown = ", ".join(dotted[:3]) + (", ..." if len(dotted) > 3 else "")
    return f"several images under one key ({shown}), which ends at the first dot of a file name"


def read_samples(
    stream: Readable, path: str, image: str, caption: str, max_member: int = MAX_MEMBER, captions: Sequence[str] = ()
) -> Iterator[Sample | Reject]:
    """Every sample of a tar, in order, usable or not.

    ``image`` and ``caption`` are field names separated by semicolons; the first that is present wins. ``captions``: fields
    that count all, in place of ``caption``. A sample whose image or caption has more than ``max_member`` bytes is a Reject.
    Raises InputError naming ``path`` when the tar cannot be read to its end.
    """
    image_fields, caption_fields = image.lower().split(";"), list(captions) or names_in(caption)
    caption_members = members_of(caption_fields)
    wanted = {*image_fields, *caption_members}
    seen: dict[str, int] = {}  # by key: 1 where it had an image, 2 where it had a caption, 3 where both

    try:
        for key, fields in read_members(stream, lambda key, extension: extension in wanted, max_member):
            names = _names(fields)
            problem = key_problem(key)
            if problem:
                yield Reject(readable_key(key), problem, names)
                continue
            parts = any(name in fields for name in image_fields) + 2 * any(name in fields for name in caption_members)
            if key in seen:
                # The rest of a sample has what its other part lacks.
                is_rest = seen[key] != 3 and not seen[key] & parts and (seen[key] | parts)
                yield Reject(key, NOT_ADJACENT if is_rest else "duplicate key", names)
                seen[key] |= parts
                continue
            seen[key] = parts
            yield check_sample(key, fields, image_fields, caption_fields, bool(captions))
            for name in hidden_images(names, image_fields, caption_members):
                yield Reject(f"{key}.{name.rpartition('.')[0]}", _several_images(names, image_fields), ())
    except InputError:  # of the storage, which says what happened itself
        raise
    except Exception as error:  # a damaged header or compressed stream makes tarfile raise nearly anything
        reason = one_line(error) or type(error).__name__
        raise InputError(
            f"{path}: cannot be read as a tar after {len(seen)} samples ({reason}); repair it or take it out of shards, "
            "or set on_error: skip to leave it out"
        ) from None


def readable_key(key: str) -> str:
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


def read_import(path: str, captions: Sequence[str] = ()) -> tuple[list[str | None], list[Any], np.ndarray]:
    """Keys, captions and embeddings (N, D) of one part of a clip-retrieval folder, in order.

    The key is the column ``key`` where there is one (img2dataset's), else ``image_path``; the caption is the column
    ``caption``, or, where columns are named as ``captions``, what :func:`read_captions` finds in all of them.
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
    fields = [parse_column(name) for name in captions]
    columns = list(dict.fromkeys(field.member for field in fields)) or ["caption"]
    missing = [name for name in columns if name not in table.column_names]
    if key is None or missing:
        raise InputError(
            f"{metadata}: needs the columns {' and '.join(missing or columns)} and key (or image_path), has "
            f"{listed(table.column_names)}"
        )
    if embeddings.ndim != 2 or len(embeddings) != table.num_rows:
        raise InputError(f"{path}: shape {embeddings.shape} does not fit the {table.num_rows} rows of {metadata}")
    if not fields:
        return table[key].to_pylist(), table["caption"].to_pylist(), embeddings
    texts = [read_captions(row, fields, union=True) for row in table.select(columns).to_pylist()]
    return table[key].to_pylist(), texts, embeddings


def check_import(keys: list[Any], captions: list[Any], embeddings: np.ndarray, seen: set[str]) -> list[Sample | Reject]:
    """The rows of an import as samples or rejects: the checks of a tar's samples, on arrays.

    captions: a text a row, or what :func:`read_captions` gives; embeddings (N, D); ``seen``: keys of the rows before, to
    which these are added.
    """
    usable = has_direction(embeddings)
    checked: list[Sample | Reject] = []
    for value, caption, is_usable in zip(keys, captions, usable, strict=True):
        key = "" if value is None else str(value)
        several = isinstance(caption, list) and bool(caption)
        if not key:
            checked.append(Reject("", NO_KEY))
        elif key in seen:
            checked.append(Reject(key, "duplicate key"))
        elif isinstance(caption, Unusable):
            checked.append(Reject(key, caption.reason))
        elif not several and (not isinstance(caption, str) or not caption.strip()):
            checked.append(Reject(key, "caption is empty"))
        elif not is_usable:
            checked.append(Reject(key, "embedding is zero or not finite"))
        elif several:
            checked.append(Sample(key, b"", caption[0].text, captions=tuple(caption)))
        else:
            checked.append(Sample(key, b"", caption.strip()))
        seen.add(key)
    return checked
