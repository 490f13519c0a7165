"""Pictures of a few samples, found in their tars again: small JPEGs that can be put into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable

from PIL import Image

from curation.archive.members import read_members, tar_errors
from curation.base import files
from curation.base.errors import InputError
from curation.base.images import ImageError, decode

JPEG_QUALITY = 82


def read_fields(path: str, keys: Iterable[str], extensions: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """{key: {extension: content}} of some samples of a tar, for the extensions that they have.

    Members that are not wanted are passed over where the file can be sought in, so that a large local tar is read in no
    time. Of samples with one key the first is meant, as everywhere. Raises InputError when the tar cannot be read.
    """
    wanted, extensions = set(keys), {extension.lower() for extension in extensions}
    samples: dict[str, dict[str, bytes]] = {}
    with files.open_file(path) as stream, tar_errors(path):
        for key, fields in read_members(stream, lambda key, extension: key in wanted and extension in extensions):
            if key in wanted and key not in samples:
                samples[key] = {name: content for name, content in fields.items() if isinstance(content, bytes)}
            if len(samples) == len(wanted):
                break
    return samples


def small_jpeg(image: bytes, side: int) -> bytes:
    """A JPEG of at most ``side`` x ``side`` pixels. Raises InputError where the image cannot be decoded."""
    try:
        small = decode(image, side, rough=True)
    except ImageError as error:
        raise InputError(f"image cannot be decoded ({error})") from None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return out.getvalue()


def thumbnail(image: bytes, side: int) -> str:
    """A ``data:`` URI of :func:`small_jpeg`. Raises InputError where the image cannot be decoded."""
    return "data:image/jpeg;base64," + base64.b64encode(small_jpeg(image, side)).decode()
