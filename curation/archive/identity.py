"""What the samples of a tar can be known by in another download of the same data: address, and hashes of the picture."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from curation.archive.joining import read_tar
from curation.archive.source import Source
from curation.base.errors import CocuError

# url and original are what img2dataset writes into json sidecars: where a picture was fetched, and the SHA-256 of what
# came, before it was resized. content is that of the file in the tar, which another way of resizing changes.
IDENTITIES = ("url", "original", "content")
SCHEMA = pa.schema([("key", pa.string()), ("caption", pa.string()), *((name, pa.string()) for name in IDENTITIES)])


def read_identities(source: Source) -> pa.Table:
    """The samples of a tar, in order, one row each: SCHEMA, null for what is unknown.

    Of samples without a picture or a caption only the key is known. Raises InputError when the tar cannot be read.
    """
    images = source.image.lower().split(";")
    fields = [*images, "json", *source.caption_members]
    rows = []
    for sample in read_tar(source.path, fields, source.max_member):
        image = next((sample[name] for name in images if sample.get(name)), None)
        captions = source.read_captions(sample)
        if image is None or not captions:
            rows.append({"key": sample["__key__"]})
            continue
        sidecar = _sidecar(sample.get("json", b""))
        rows.append(
            {
                "key": sample["__key__"],
                "caption": captions[0],
                "url": _text(sidecar.get("url")),
                "original": _text(sidecar.get("sha256")),
                "content": hashlib.sha256(image).hexdigest(),
            }
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def of_keys(identities: pa.Table, keys: Sequence[str], where: str) -> pa.Table:
    """The rows of these keys, in their order. Raises CocuError, naming ``where`` it should be, for one that is missing."""
    rows = pc.index_in(pa.array(keys, pa.string()), identities["key"].combine_chunks())
    if rows.null_count:
        missing = keys[rows.is_null().to_pylist().index(True)]
        raise CocuError(f"{where}: {missing} is missing: these are not the samples that were curated")
    return identities.take(rows)


def _sidecar(content: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value.strip() or None if isinstance(value, str) else None
