"""Pictures of a few samples, found in their tars again: small JPEGs that can be put into a page."""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Iterable

from PIL import Image

from curation.base import files
from curation.base.errors import InputError
from curation.base.images import ImageError, decode

JPEG_QUALITY = 82


def read_fields(path: str, keys: Iterable[str], extensions: Iterable[str]) -> dict[str, dict[str, bytes]]:
    """{key: {extension: content}} of some samples of a tar, for the extensions that they have.

    Members that are not wanted are passed over where the file can be sought in, so that a large local tar is read in no
    time. Of samples with one key the first is meant, as everywhere. Raises InputError when the tar cannot be read.
    """
    from webdataset.tariterators import base_plus_ext

    wanted, extensions = set(keys), {extension.lower() for extension in extensions}
    samples: dict[str, dict[str, bytes]] = {}
    last = None
    with files.open_file(path) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r") as tar:
                for member in tar:
                    key, extension = base_plus_ext(member.name)
                    if key != last and len(samples) == len(wanted):
                        break
                    last = key
                    if key in wanted and member.isreg():
                        fields = samples.setdefault(key, {})
                        if extension.lower() in extensions and extension.lower() not in fields:
                            content = tar.extractfile(member)
                            fields[extension.lower()] = content.read() if content else b""
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(f"{path}: cannot be read as a tar ({' '.join(str(error).split())})") from None
    return samples


def thumbnail(image: bytes, side: int) -> str:
    """A ``data:`` URI of a JPEG of at most ``side`` x ``side`` pixels. Raises InputError where it cannot be decoded."""
    try:
        small = decode(image, side, rough=True)
    except ImageError as error:
        raise InputError(f"image cannot be decoded ({error})") from None
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()
