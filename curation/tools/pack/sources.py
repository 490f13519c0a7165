"""Which kind of source something is: a folder, a table, a list, Parquet with images, or tars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from curation.base.errors import CocuError
from curation.tools.pack.entry import EXTENSIONS, Entry, extension_of
from curation.tools.pack.folder import ImageFolder
from curation.tools.pack.rows import ParquetImages, holds_images
from curation.tools.pack.tables import FOUND, LISTS, TABLES, Columns, Table
from curation.tools.pack.tars import Tars

NO_COLUMNS = Columns()


class ImageSource(Protocol):
    """Anything that has images with captions."""

    def entries(self) -> Iterator[Entry]:
        """Every image, in an order that is always the same."""


def open_source(
    path: Path, output: Path, captions: Path | None = None, images: Path | None = None, columns: Columns = NO_COLUMNS
) -> ImageSource:
    """The source at ``path``: a folder, a table, a list, a Parquet file or a tar.

    ``captions``: a table for a folder; ``images``: the folder of a table's file names (default: that of the table);
    ``output``: passed over. Raises CocuError where it is missing or nothing of these.
    """
    if not path.exists():
        raise CocuError(f"{path}: no such file or folder")
    if path.is_dir():
        return _open_folder(path, output, captions, columns)
    if path.is_file() and not path.stat().st_size:
        raise CocuError(f"{path}: is empty; give a file with images, or with their names and captions")
    suffix = path.suffix.lower()
    if suffix == ".tar":
        return Tars([path], columns.caption, columns.captions)
    if suffix == ".parquet" and holds_images(path, columns.image):
        return ParquetImages([path], columns)
    if suffix in LISTS and columns.captions:
        raise CocuError(f"{path}: a list has one caption a line; give --caption-column once at most, or a table")
    if suffix in (*TABLES, *LISTS):
        folder = images or path.parent
        if not folder.is_dir():
            raise CocuError(f"{folder}: no such folder of images")
        return Table(path, ImageFolder(folder, output.resolve()), columns, with_others=False)
    if suffix in (".zip", ".7z", ".rar"):
        raise CocuError(f"{path}: is packed already, in another way; unpack it, and give the folder")
    raise CocuError(
        f"{path}: not a folder, a table ({', '.join(TABLES)}), a list ({', '.join(LISTS)}) or a tar, which can be packed"
    )


def _open_folder(path: Path, output: Path, captions: Path | None, columns: Columns) -> ImageSource:
    folder = ImageFolder(path, output.resolve(), columns.captions)
    table = captions or next((path / name for name in FOUND if (path / name).is_file()), None)
    if table is not None and not table.is_file():
        raise CocuError(f"{table}: no such file")
    if table is not None and not (table.suffix.lower() == ".parquet" and holds_images(table, columns.image)):
        return Table(table, folder, columns, with_others=True)
    if any(extension_of(entry.name) in EXTENSIONS for entry in folder.entries()):
        return folder

    parquet = sorted(
        file for file in path.rglob("*.parquet") if not file.is_symlink() and holds_images(file, columns.image)
    )
    if parquet:
        return ParquetImages(parquet, columns)
    tars = sorted(file for file in path.glob("*.tar") if file.is_file() and not file.is_symlink())
    if tars:
        return Tars(tars, columns.caption, columns.captions)
    raise CocuError(f"{path}: no images in it ({', '.join(EXTENSIONS)}), nor Parquet files or tars with images")
