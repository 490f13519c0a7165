"""Images inside Parquet files, as img2dataset and Hugging Face datasets write them: a row, an image."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from curation.base.errors import CocuError
from curation.base.parquet import open_parquet
from curation.tools.pack.entry import (
    EXTENSIONS,
    LARGEST,
    CaptionColumns,
    Content,
    Entry,
    Unusable,
    content_of,
)
from curation.tools.pack.tables import DAMAGED, NAMES, Columns, choose_captions

IMAGES = (*EXTENSIONS, "image", "img", "bytes")  # columns with the bytes of an image
BLOCK = 256  # rows in memory at once


def image_column(schema: pa.Schema, asked: str | None = None) -> str | None:
    """The column with the bytes of images; None where there is none."""
    columns = {field.name.lower(): field for field in schema if _holds_bytes(field.type)}
    name = next((name for name in ((asked.lower(),) if asked else IMAGES) if name in columns), None)
    return str(columns[name].name) if name else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def holds_images(path: Path, asked: str | None = None) -> bool:
    """Whether a Parquet file has a column with the bytes of images. Raises CocuError for a file that is damaged."""
    with open_parquet(str(path), remedy=DAMAGED) as file:
        return image_column(file.schema_arrow, asked) is not None


class ParquetImages:
    """The images of Parquet files."""

    def __init__(self, paths: list[Path], columns: Columns) -> None:
        self.paths = paths
        self._columns = columns

    def entries(self) -> Iterator[Entry]:
        """An entry for every row; some hundred rows are in memory at a time."""
        for path in self.paths:
            with open_parquet(str(path), remedy=DAMAGED) as file:
                schema = file.schema_arrow
                image = image_column(schema, self._columns.image)
                if image is None:
                    raise CocuError(f"{path}: no column with images; the columns are {', '.join(schema.names)}")
                texts = [name for name in schema.names if name != image]
                captions = choose_captions(path, texts, self._columns)
                name = next((column for column in NAMES if column in texts), None)
                scalars = [field.name for field in schema if field.name != image and not pa.types.is_nested(field.type)]
                wanted = [image, *dict.fromkeys([*captions, *scalars])]
                number = 0
                for block in file.iter_batches(batch_size=BLOCK, columns=wanted):
                    for row in block.to_pylist():
                        values = {column: row.pop(column) for column in captions}
                        caption = CaptionColumns(values) if self._columns.captions else values[captions[0]]
                        yield _entry(path, number, row, image, caption, name)
                        number += 1


def _entry(path: Path, number: int, row: dict[str, Any], image: str, caption: Any, name: str | None) -> Entry:
    content: Any = row.pop(image)
    inner = None
    if isinstance(content, dict):
        inner = content.get("path")
        content = content.get("bytes")
    own = (row.get(name) if name else None) or inner or f"{number:06d}"

    def load() -> Content:
        if not content:
            raise Unusable(f"no image ({row['status']})" if row.get("status") else "no image")
        if len(content) > LARGEST:
            raise Unusable(f"larger than {LARGEST >> 20} MB")
        return content_of(content, caption, json.loads(json.dumps(row, default=str)))

    return Entry(f"{path.stem}/{own}", f"{number}:{len(content or b'')}", load)
