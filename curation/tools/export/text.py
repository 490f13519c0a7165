"""Archives as lines of JSON, and as sidecars of webdataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from curation.base import files
from curation.base.errors import CocuError, quoted
from curation.base.recorded import leaves_folder

if TYPE_CHECKING:
    from curation.tools.export.export import Export


def write_lines(export: Export, name: str) -> int:
    """``<shard>.jsonl``; returns the number of samples."""
    rows = export.archive.table(name).to_pylist()
    with files.atomic_write(files.join(export.folder, f"{name}.jsonl")) as stream:
        stream.writelines(_json(row) + b"\n" for row in rows)
    return len(rows)


def write_sidecars(export: Export, name: str) -> int:
    """``<shard>.concepts.tar``; returns the number of samples. Raises CocuError for a key that no tar should hold."""
    rows = export.archive.table(name).to_pylist()
    with (
        files.atomic_write(files.join(export.folder, f"{name}.concepts.tar")) as stream,
        tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        for row in rows:
            if leaves_folder(row["key"]):
                raise CocuError(
                    f"{export.archive.path('archives', name)}: the key {quoted(row['key'])} would be a file outside "
                    "of the folder that the tar is unpacked into; use --format jsonl"
                )
            content = _json(row["concepts"])
            member = tarfile.TarInfo(row["key"] + ".concepts.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return len(rows)


def count(export: Export, shards: Iterator[int]) -> int:
    """The samples of all shards."""
    return sum(shards)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
