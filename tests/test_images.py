"""One decoder: what becomes of every kind of image, against Pillow on plain ones and against numbers worked out by hand."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_world import jpeg

from curation.base import images
from curation.base.images import LARGE, MAX_RESIZED, ImageError, decode, decode_stored

rng = np.random.default_rng(0)
NOISE = Image.fromarray(rng.integers(0, 256, (30, 50, 3), np.uint8))
ORIENTATION = 274


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes, **options) -> np.ndarray:
    return np.asarray(decode(content, **options)).astype(int)


# --- what stays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"quality": 95}, {"progressive": True}, {"subsampling": 0}])
def test_plain_jpegs_have_the_pixels_that_pillow_gives_them(mode, options):
    content = encoded(NOISE.convert(mode), "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for short in (None, 24, 224):
        np.testing.assert_array_equal(pixels(content, short=short), expected)


def test_files_and_bytes_are_decoded_alike(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(NOISE, "PNG"))
    np.testing.assert_array_equal(np.asarray(decode(str(tmp_path / "a.png"))), np.asarray(NOISE))
    with pytest.raises(ImageError, match=r"^no such file$"):
        decode(str(tmp_path / "b.png"))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_back_what_was_stored(kind):
    np.testing.assert_array_equal(pixels(encoded(NOISE, kind)), np.asarray(NOISE))


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "AVIF"])
def test_the_other_formats_are_decoded_and_of_an_animation_the_first_frame(kind):
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    content = encoded(red, kind, save_all=True, append_images=[blue])
    assert abs(pixels(content) - [255, 0, 0]).max() <= 3


# --- what is not opened ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["EPS", "PPM", "TGA", "ICO", "PCX", "DDS", "JPEG2000"])
def test_formats_that_are_not_on_the_list_are_not_opened(kind, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: pytest.fail("a program was started"))
    with pytest.raises(ImageError, match="not an image in JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF"):
        decode(encoded(NOISE, kind))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("no <_io.BytesIO object at 0x7f01234567>"), "RuntimeError: no ..."),
        (IndexError(), "IndexError"),
        (NotImplementedError("type 7"), "NotImplementedError: type 7"),
        (MemoryError(), "not enough memory"),
        (RecursionError("maximum depth"), "nested too deeply"),
        (OSError("broken\ndata"), "broken data"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_whatever_a_decoder_raises_is_one_kind_of_error_with_a_reason(error, reason, monkeypatch):
    def fail(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    for read in (decode, decode_stored):
        with pytest.raises(ImageError) as raised:
            read(encoded(NOISE, "PNG"))
        assert str(raised.value) == reason


# --- orientation ----------------------------------------------------------------------------------------------------------

# Where the first row and the first column of the stored image are, as EXIF says it: "visual top", "visual left", ...
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),  # the camera was turned clockwise
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def turned(orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(STORED[orientation](np.asarray(NOISE)))
    return encoded(Image.fromarray(stored), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_turned_upright(orientation, kind, monkeypatch):
    expected = np.asarray(NOISE)
    np.testing.assert_array_equal(pixels(turned(orientation, kind)), expected)
    monkeypatch.setattr(images, "STRIP", 150)  # a few rows: strips must come to their places
    np.testing.assert_array_equal(pixels(turned(orientation, kind)), expected)


@pytest.mark.parametrize("orientation", STORED)
def test_images_stay_as_they_are_stored_if_asked(orientation):
    expected = STORED[orientation](np.asarray(NOISE))
    np.testing.assert_array_equal(pixels(turned(orientation), upright=False), expected)
    np.testing.assert_array_equal(np.asarray(decode_stored(turned(orientation))), expected)


def test_damaged_exif_data_cost_nothing():
    content = encoded(NOISE, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(content).size == NOISE.size


# --- colour, depth and transparency ---------------------------------------------------------------------------------------


def test_what_is_transparent_is_white():
    drawing = np.zeros((4, 4, 4), np.uint8)  # black everywhere, in its alpha channel only
    drawing[0, :, 3] = 255
    drawing[1, :, 3] = 128
    expected = np.array([0, 127, 255, 255])
    for kind in ("PNG", "TIFF", "WEBP"):
        content = encoded(
            Image.fromarray(drawing), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})
        )
        np.testing.assert_array_equal(pixels(content)[:, 0, 0], expected)
    grey = encoded(Image.fromarray(drawing[:, :, 2:]), "PNG")
    np.testing.assert_array_equal(pixels(grey)[:, 0, 0], expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((3, 3), 0)
    found = pixels(encoded(image, kind, transparency=0))
    assert found[3, 3].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [255, 0, 0]


def test_a_transparent_colour_of_a_picture_without_alpha_is_white():
    content = encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels(content).min() == 255


RAMP = np.arange(0, 256, 5, dtype=np.uint8)[None].repeat(3, 0)  # (3, 52)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(np.int32), "TIFF"),  # 8 bits in 32
        (RAMP.astype(np.int32) * 257, "TIFF"),  # 16 bits in 32
        (RAMP.astype(np.int32) * 8421504, "TIFF"),  # 31 bits
        (RAMP / np.float32(255), "TIFF"),
        (RAMP.astype(np.float32), "TIFF"),
        (RAMP.astype(np.float32) * 257, "TIFF"),
    ],
)
def test_deep_images_are_the_picture_that_8_bits_show(values, kind):
    found = pixels(encoded(Image.fromarray(values), kind))
    assert abs(found - RAMP[:, :, None]).max() <= 1
    assert (found == found[:, :, :1]).all()


def test_a_float_that_is_not_finite_is_black_and_negative_ones_are_stretched():
    values = np.array([[np.nan, np.inf, 0.5, 1.0]], np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 0, 128, 255]
    values = np.array([[-1.0, 0.0, 3.0]], np.float32)
    assert pixels(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 64, 255]


def test_cmyk_has_its_colours_in_jpegs_which_adobe_inverts_and_in_tiffs():
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink are red
    jpeg_content = encoded(picture, "JPEG", quality=95)
    assert b"Adobe" in jpeg_content
    for content in (jpeg_content, encoded(picture, "TIFF")):
        assert abs(pixels(content) - [255, 0, 0]).max() <= 4


# --- size -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8000, 1), (1, 30000), (1, 1_000_000), (3, 5000)])
def test_thin_images_are_cropped_to_their_middle(size):
    width, height = size
    values = np.arange(width * height).reshape(height, width) * 255 // (width * height)
    picture = decode(encoded(Image.fromarray(values.astype(np.uint8)), "PNG"), short=224)
    short, long = sorted(picture.size)
    assert short == min(size)
    assert 224 * 224 * long / short <= MAX_RESIZED * 1.05
    assert abs(np.asarray(picture).mean() - 127) < 4
    assert decode(encoded(Image.fromarray(values.astype(np.uint8)), "PNG")).size == size


def test_images_up_to_16_to_1_are_never_cropped():
    for short in (64, 224, 1024, 5000):
        assert decode(encoded(Image.new("RGB", (160, 10)), "PNG"), short).size == (160, 10)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_very_large_images_are_shrunk_where_they_will_be_resized_anyway(kind):
    side = 4200
    assert side * side > LARGE
    halves = Image.new("RGB", (side, side), "red")
    halves.paste("blue", (0, 0, side, side // 2))
    content = encoded(halves, kind)
    picture = decode(content, short=224)
    assert 448 <= picture.width == picture.height < 1100
    found = np.asarray(picture).astype(int)
    assert abs(found[0, 0] - [0, 0, 255]).max() <= 3
    assert abs(found[-1, -1] - [255, 0, 0]).max() <= 3
    assert decode(content).size == (side, side)


def test_rough_pictures_of_jpegs_are_decoded_small():
    content = encoded(Image.new("RGB", (1600, 1200), "red"), "JPEG")
    assert decode(content, 100, rough=True).size == (200, 150)
    assert decode(content, 100).size == (1600, 1200)


def test_a_small_file_may_not_ask_for_much_memory_and_a_large_one_may():
    black = Image.new("RGB", (7000, 7000))
    with pytest.raises(
        ImageError, match=r"7000 x 7000 pixels in \d+ bytes would take 373 MiB, could be a decompression bomb"
    ):
        decode(encoded(black, "PNG"))
    assert decode(encoded(black, "PNG") + bytes(3 << 20)).size == (7000, 7000)


# --- mutations ------------------------------------------------------------------------------------------------------------


def test_no_mutated_image_raises_anything_else_or_takes_much_memory():
    script = Path(__file__).with_name("mutated_images.py")
    run = subprocess.run([sys.executable, str(script), "--images", "400"], capture_output=True, text=True, check=True)
    outcome = json.loads(run.stdout.splitlines()[-1])
    assert len(outcome["kinds"]) == len(images.FORMATS)
    for counts in outcome["kinds"].values():
        assert counts["used"] + counts["rejected"] == counts["tried"] > 10
        assert counts["leaked"] == 0
    assert outcome["mib"] < 300


def test_the_encoder_rejects_what_cannot_be_decoded_and_goes_on(tiny_clip):
    from curation.config import EncoderConfig
    from curation.encoder import identity, load
    from curation.samples import Reject, Sample

    config = EncoderConfig(model=f"local-dir:{tiny_clip}", precision="fp32", batch_size=4)
    assert identity(config)["decoding"] == images.VERSION
    samples = [Sample("thin", encoded(Image.new("L", (9000, 1)), "PNG"), "x"), Sample("bad", b"%!PS-Adobe", "x")]
    bad, (used, _) = load(config).encode_samples([*samples, Sample("good", jpeg(), "x")])
    assert isinstance(bad, Reject)
    assert [sample.key for sample in used] == ["thin", "good"]
