"""Images of strangers: bytes to upright RGB pictures, or one clear reason why not; pixels and memory are bounded.

Everything that decodes an image does it here, so that curation, training, evaluation and reports see the same pixels.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from curation.base.errors import CocuError

VERSION = 2  # of the pixels, part of an encoder's identity; 1 was Pillow's convert("RGB") of whatever it opened
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # never EPS, which starts Ghostscript

MEMORY = 256 << 20  # bytes that decoding may take, and ...
MEMORY_PER_BYTE = 64  # ... bytes more for each byte of the file: a bomb is small, a large photograph is not
LARGE = 1 << 24  # pixels from which an image is shrunk while it is decoded, if the caller shrinks it anyway
MAX_RESIZED = 1 << 22  # pixels of an image whose short side is resized
STRIP = 1 << 20  # pixels that are converted at once

# What a decoder holds at its peak for every pixel, besides the image itself, in bytes: measured.
DECODER_BYTES = {"JPEG": 0, "MPO": 0, "PNG": 0, "GIF": 2, "BMP": 4, "TIFF": 5, "WEBP": 12, "AVIF": 12}
PROGRESSIVE_BYTES = 6  # coefficients of a progressive JPEG, which is not decoded row by row
STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}  # of a pixel; 4 in other modes
WIDE = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # modes of more than 8 bits, which Pillow would clip
RANGES = (255, 65535, 2**31 - 1, 2**32 - 1)  # what 8, 16 and 32 bits reach, with and without a sign

TRANSPOSED = {  # EXIF orientation -> what turns the stored image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
BACKWARDS = (3, 4, 6, 7)  # orientations in which the first stored rows are the last rows, or columns, of the picture

TILE_WIDTH, TILE_LENGTH, BITS_PER_SAMPLE, SAMPLE_FORMAT = 322, 323, 258, 339  # tags of TIFF

Box = tuple[int, int, int, int]  # left, top, right, bottom

_large_images = threading.Lock()  # one at a time, so that threads do not multiply the memory

# What Pillow finds odd about an image is not for the terminal: an image is used, or there is a reason.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ImageError(CocuError):
    """An image that cannot be decoded. The message is the reason: no address in memory, no path."""


def decode(content: bytes | str, short: int | None = None, rough: bool = False, upright: bool = True) -> Image.Image:
    """An RGB picture of the bytes, or of the file, of an image in one of FORMATS; the first frame of several.

    It is turned as its EXIF orientation says, unless ``upright`` is false. What is transparent becomes white; 16 and 32
    bits and floating point are scaled to 8.

    ``short``: the caller will resize the short side to so many pixels. A thin image is then cropped to its middle, so that
    resizing makes at most MAX_RESIZED pixels; one of more than LARGE pixels is shrunk, but not below twice ``short``.
    ``rough``: a JPEG of any size may be shrunk while it is decoded, not below ``short``.

    Raises ImageError, whatever the decoder raised, and for images that take more memory than MEMORY and MEMORY_PER_BYTE
    allow.

        >>> stream = io.BytesIO()
        >>> Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(stream, "PNG")
        >>> decode(stream.getvalue()).getpixel((0, 0))
        (255, 255, 255)
    """
    with _opened(content) as image:
        full = image.width * image.height
        if short is not None and (rough or full > LARGE):
            smallest = short if rough else 2 * short
            image.draft(None, (smallest, smallest))  # JPEG decodes at 1/2, 1/4 or 1/8 of its size

        needed = _check_memory(image, full, content, _factor(image.size, short))
        with _large_images if needed > 4 * LARGE else nullcontext():
            image.load()
            orientation = _orientation(image) if upright else 1
            return _picture(image, _thin_box(image.size, short), _factor(image.size, short), orientation)


def decode_stored(content: bytes | str) -> Image.Image:
    """The image as it is stored, in its own mode and not turned: for masks, whose values are labels. Raises ImageError."""
    with _opened(content) as image:
        _check_memory(image, image.width * image.height, content, 1)
        image.load()
        return image


# --- opening and limits ---------------------------------------------------------------------------------------------------


@contextmanager
def _opened(content: bytes | str) -> Iterator[Image.Image]:
    """The image, open, of which no pixel is decoded. Every exception of the block becomes an ImageError."""
    try:
        with Image.open(content if isinstance(content, str) else io.BytesIO(content), formats=_formats()) as image:
            yield image
    except ImageError:
        raise
    except Exception as error:  # decoders raise nearly anything: OSError, RuntimeError, IndexError, MemoryError, ...
        raise ImageError(_reason(error)) from None


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """The allowed formats that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _reason(error: Exception) -> str:
    """What went wrong, for people: one line without addresses and without the names of our own files."""
    if isinstance(error, UnidentifiedImageError):
        *others, last = _formats()
        return f"not an image in {', '.join(others)} or {last}, or its header is damaged"
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, FileNotFoundError):
        return "no such file"

    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    message = " ".join(re.sub(r"<[^<>]* at 0x[0-9a-f]+>|0x[0-9a-f]{8,}", "...", text).split())[:200]
    explains = message and isinstance(error, (OSError, ValueError, SyntaxError, Image.DecompressionBombError))
    return message if explains else f"{type(error).__name__}{': ' if message else ''}{message}"


def _check_memory(image: Image.Image, full: int, content: bytes | str, factor: int) -> int:
    """The bytes that decoding takes. Raises ImageError where they are more than a file of its size may ask for.

    full: its pixels before JPEG's decoder shrinks it; factor: by how much it is shrunk afterwards.
    """
    pixels = image.width * image.height
    if image.info.get("progressive"):
        decoder = PROGRESSIVE_BYTES * full
    else:
        decoder = DECODER_BYTES.get(image.format or "", 0) * max(pixels, _tile_pixels(image))

    picture = 4 * pixels // factor**2
    needed = STORED_BYTES.get(image.mode, 4) * pixels + decoder + picture
    size = os.path.getsize(content) if isinstance(content, str) else len(content)
    if needed > MEMORY + MEMORY_PER_BYTE * size:
        raise ImageError(
            f"{image.width} x {image.height} pixels in {size} bytes would take {needed >> 20} MiB, could be a "
            "decompression bomb"
        )
    return needed


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of a tile of a TIFF, which may be larger than the image; 0 for other images."""
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))


def _factor(size: tuple[int, int], short: int | None) -> int:
    """By how much a large image is shrunk whose short side will be resized to ``short``: a whole number, 1 for not.

    >>> _factor((12000, 9000), 224), _factor((1200, 900), 224)
    (20, 1)
    """
    if short is None or size[0] * size[1] <= LARGE:
        return 1
    return max(1, min(size) // (2 * short))


def _thin_box(size: tuple[int, int], short: int | None) -> Box:
    """The middle of an image of which resizing the short side to ``short`` makes no more than MAX_RESIZED pixels.

    Images of up to 16 times their short side stay whole in any case.

    >>> _thin_box((640, 480), 224), _thin_box((8000, 1), 224)
    ((0, 0, 640, 480), (3958, 0, 4041, 1))
    """
    width, height = size
    if short is None:
        return 0, 0, width, height
    aspect = max(MAX_RESIZED / short**2, 16)
    longest = int(aspect * min(size))
    left = max(0, width - longest) // 2
    top = max(0, height - longest) // 2
    return left, top, left + min(width, longest), top + min(height, longest)


# --- pixels ---------------------------------------------------------------------------------------------------------------


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, 1 (upright) to 8; 1 where its EXIF data are damaged."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # the pixels are good: damaged remarks about them are no reason to lose them
        return 1
    return orientation if orientation in TRANSPOSED else 1


def _picture(image: Image.Image, box: Box, factor: int, orientation: int) -> Image.Image:
    """The box of a loaded image, shrunk by ``factor``, upright and in RGB.

    It is made from strips, so that there are never three large copies in memory.
    """
    left, top, right, bottom = box
    if image.mode == "RGB" and box == (0, 0, *image.size) and factor == orientation == 1 and not _transparent(image):
        return image

    width = -(-(right - left) // factor)
    height = -(-(bottom - top) // factor)
    sideways = orientation in SIDEWAYS
    picture = Image.new("RGB", (height, width) if sideways else (width, height))
    unsigned = getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT) == (1,)
    extremes = _value_range(image, unsigned) if image.mode in WIDE else None
    rows = factor * max(1, STRIP // (factor * (right - left)))
    for start in range(top, bottom, rows):
        strip = image.crop((left, start, right, min(start + rows, bottom)))
        strip = _scaled(_values(strip, unsigned), *extremes) if extremes else _on_white(strip)
        if factor > 1:
            strip = strip.reduce(factor)

        first = (start - top) // factor
        position = height - first - strip.height if orientation in BACKWARDS else first
        if orientation in TRANSPOSED:
            strip = strip.transpose(TRANSPOSED[orientation])
        picture.paste(strip, (position, 0) if sideways else (0, position))
    return picture


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _on_white(image: Image.Image) -> Image.Image:
    """An image of 8 bits in RGB; white shines through where it is transparent."""
    if not _transparent(image):
        return image.convert("RGB")
    layer = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _value_range(image: Image.Image, unsigned: bool) -> tuple[float, float]:
    """The values of an image of more than 8 bits, or of floating point, that become black and white.

    Those are 0 and what its bits reach. Integers of 32 bits and floats are often stored in less than they could hold:
    they reach the first of 1 (floats), 255, 65535, 2^31 - 1 and 2^32 - 1 that none exceeds. Negative values are stretched.
    """
    if image.mode.startswith("I;16"):
        bits = getattr(image, "tag_v2", {}).get(BITS_PER_SAMPLE)
        return 0, 4095 if bits == (12,) else 65535

    rows = max(1, STRIP // image.width)
    strips = [(start, min(start + rows, image.height)) for start in range(0, image.height, rows)]
    values = (_values(image.crop((0, start, image.width, stop)), unsigned) for start, stop in strips)
    extremes = np.array([(strip.min(), strip.max()) for strip in values], np.float64)
    lowest = extremes[:, 0].min()
    highest = extremes[:, 1].max()
    if lowest < 0:
        return lowest, highest
    reached = (1, *RANGES) if image.mode == "F" else RANGES
    return 0, next((limit for limit in reached if highest <= limit), highest)


def _values(image: Image.Image, unsigned: bool) -> np.ndarray:
    """The values (H, W) of an image of one channel; what is not finite is 0. Pillow takes all of 32 bits for signed."""
    values: np.ndarray = np.asarray(image)
    if image.mode == "I" and unsigned:
        return values.view(np.uint32)
    if image.mode == "F":
        values = np.where(np.isfinite(values), values, 0)
    return values


def _scaled(values: np.ndarray, lowest: float, highest: float) -> Image.Image:
    """Values (H, W) of one channel as an RGB image: ``lowest`` is black, ``highest`` white."""
    unit = (values.astype(np.float64) - lowest) / max(highest - lowest, 1e-30)  # (H, W) in 0..1
    return Image.fromarray(np.round(255 * unit).astype(np.uint8)).convert("RGB")
