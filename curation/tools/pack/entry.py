"""An image with its caption, wherever it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curation.base.images import ImageError, format_of

EXTENSIONS = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
OTHERS = ("heic", "heif", "jp2", "jxl", "svg", "eps", "psd", "dng", "cr2", "nef", "arw", "raw", "ico", "tga", "ppm")
CAPTIONS = ("caption", "text", "title", "description", "prompt", "txt")  # names of columns and fields, the best first
LARGEST = 256 << 20  # bytes of an image


class Unusable(Exception):
    """An image that is left out; the message says why."""


@dataclass(frozen=True)
class Content:
    """What a sample is made of."""

    image: bytes
    caption: str
    sidecar: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An image that is to be packed.

    ``name``: by which its owner knows it; ``mark``: changes when the image does; ``load`` raises Unusable.
    """

    name: str
    mark: str
    load: Callable[[], Content]


def unusable(name: str, reason: str) -> Entry:
    """An entry of which it is known already that it cannot be packed."""

    def load() -> Content:
        raise Unusable(reason)

    return Entry(name, reason, load)


def extension_of(name: str) -> str:
    """The extension of a file name, in lower case.

    >>> extension_of("folder.x/IMG.1.JPG"), extension_of("README")
    ('jpg', '')
    """
    return name.rpartition("/")[2].rpartition(".")[2].lower() if "." in name.rpartition("/")[2] else ""


def field_of(image: bytes) -> str:
    """The field for an image, by its content: jpg, png, ... Its header is read, not its pixels. Raises Unusable."""
    try:
        name = format_of(image)
    except ImageError as error:
        raise Unusable(str(error)) from None
    return "jpg" if name == "JPEG" else name.lower()


def clean_caption(value: Any) -> str:
    """A caption as text. A list of captions becomes lines. Raises Unusable where there is none."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Unusable("caption is not UTF-8") from None
    if isinstance(value, list | tuple):
        value = "\n".join(str(item).strip() for item in value if item is not None)
    if value is None:
        raise Unusable("no caption")
    text = str(value).strip()
    if not text:
        raise Unusable("caption is empty")
    return text.encode("utf-8", "replace").decode("utf-8")


class CaptionColumns(dict[str, Any]):
    """The values of several columns that hold captions, by name."""


def content_of(image: bytes, caption: Any, sidecar: dict[str, Any]) -> Content:
    """A sample. Of several columns the first text is its caption, and all are in its sidecar, as ``captions``, by column.

    Raises Unusable where there is no caption.
    """
    if not isinstance(caption, CaptionColumns):
        return Content(image, clean_caption(caption), sidecar)
    texts = {name: cleaned for name, value in caption.items() if (cleaned := _clean_captions(value))}
    if not texts:
        raise Unusable("caption is empty")
    first = next(iter(texts.values()))
    return Content(image, first if isinstance(first, str) else first[0], sidecar | {"captions": texts})


def _clean_captions(value: Any) -> str | list[str]:
    """The text of a column, or the texts of a list; empty where there is none."""
    if isinstance(value, list | tuple):
        return [text for item in value if (text := _clean_captions(item)) and isinstance(text, str)]
    try:
        return clean_caption(value)
    except Unusable:
        return ""


def caption_in(sidecar: Mapping[str, Any], names: Iterable[str] = CAPTIONS) -> Any:
    """The caption among the fields of a json sidecar; None where there is none."""
    by_name = {str(name).lower(): value for name, value in sidecar.items()}
    return next((by_name[name.lower()] for name in names if by_name.get(name.lower())), None)


def read_sidecar(content: bytes) -> dict[str, Any]:
    """A json sidecar that holds an object; empty for any other."""
    try:
        sidecar = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return sidecar if isinstance(sidecar, dict) else {}
