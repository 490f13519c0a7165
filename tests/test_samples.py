"""Samples of tars, against webdataset; rejects; damaged tars."""

import hashlib
import io
import tarfile

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander, tarfile_samples

from curation import samples
from curation.base import files
from curation.base.errors import CocuError
from curation.samples import Reject, Sample

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def make_tar(members, mode="w", **options) -> bytes:
    """A tar of (name, content) files, in order; content None makes a folder, a string a symbolic link to it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **options) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return stream.getvalue()


def ours(data: bytes):
    return list(samples.read_members(io.BytesIO(data)))


def as_pairs(found):
    return [(item["__key__"], {k: v for k, v in item.items() if k not in ("__key__", "__url__")}) for item in found]


def read(members, image="jpg;png", caption="txt;text"):
    return list(samples.read_samples(io.BytesIO(make_tar(members)), "shard.tar", image, caption))


def one(fields, **options):
    """The only item of a tar whose members are ``fields`` of one key."""
    (item,) = read([(f"k.{name}", content) for name, content in fields.items()], **options)
    return item


# --- members, against webdataset ---------------------------------------------------------------------------------------

LONG = "long/" + "x" * 90 + "/" + "y" * 120
LAYOUTS = {
    "plain": [("1.jpg", b"i"), ("1.txt", b"a"), ("2.jpg", b"j"), ("2.txt", b"b")],
    "sub-folders": [("a/1.jpg", b"i"), ("a/1.txt", b"a"), ("b/1.jpg", b"j"), ("b/1.txt", b"b"), ("./c/2.txt", b"c")],
    "keys with dots": [("1.0.jpg", b"i"), ("1.0.txt", b"a"), ("v1.5/2.seg.png", b"j"), ("v1.5/2.txt", b"b")],
    "upper-case extensions": [("Key.JPG", b"i"), ("Key.Txt", b"a"), ("key.JPEG", b"j")],
    "folders and links": [("d", None), ("d.x", None), ("d/1.jpg", b"i"), ("d/1.txt", "1.jpg"), ("d/1.json", b"{}")],
    "meta files": [
        ("__meta__", b"m"),
        ("__meta__/1.txt", b"m"),
        ("1.jpg", b"i"),
        ("__m__.txt", b"x"),
        ("d/__m__", b"y"),
    ],
    "names without extension": [("README", b"r"), ("1.jpg", b"i"), ("LICENSE", b"l"), ("1.txt", b"a"), (".hid", b"h")],
    "interleaved keys": [("1.jpg", b"i"), ("2.jpg", b"j"), ("1.txt", b"a"), ("2.txt", b"b")],
    "empty and large files": [("1.jpg", b""), ("1.txt", b"a" * 512), ("2.jpg", b"j" * 100_003)],
    "no files at all": [("d", None)],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keys_and_fields_are_those_of_webdataset(layout, tmp_path):
    data = make_tar(LAYOUTS[layout])
    (tmp_path / "a.tar").write_bytes(data)
    assert ours(data) == as_pairs(tarfile_samples([{"url": str(tmp_path / "a.tar")}]))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stem", [LONG, "été/犬🐶", "plain"])
def test_long_and_unicode_names_are_read_from_every_tar_dialect(name, stem, tmp_path):
    if name == "ustar" and stem == LONG:
        pytest.skip("ustar holds no names of this length")
    data = make_tar([(f"{stem}.jpg", b"i"), (f"{stem}.txt", b"a")], format=FORMATS[name])
    assert ours(data) == [(stem, {"jpg": b"i", "txt": b"a"})]
    (tmp_path / "a.tar").write_bytes(data)
    assert ours(data) == as_pairs(tarfile_samples([{"url": str(tmp_path / "a.tar")}]))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_tars_are_read(mode):
    assert ours(make_tar(LAYOUTS["plain"], mode=mode)) == ours(make_tar(LAYOUTS["plain"]))


names = st.text("aB._/", min_size=1, max_size=7).filter(lambda name: name.strip("/.") and not name.endswith("/"))
contents = st.one_of(st.binary(max_size=3), st.none(), st.just("target"))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(names, contents), max_size=8, unique_by=lambda member: member[0].lower()),
    st.sampled_from(sorted(FORMATS)),
)
def test_any_tar_is_read_as_webdataset_reads_it(members, name):
    data = make_tar(members, format=FORMATS[name])
    expected = group_by_keys(tar_file_expander([{"url": "u", "stream": io.BytesIO(data)}]))
    assert ours(data) == as_pairs(expected)


def test_repeated_extension_begins_a_new_sample():
    data = make_tar([("1.jpg", b"i"), ("1.txt", b"a"), ("1.jpg", b"j"), ("1.TXT", b"b")])
    assert ours(data) == [("1", {"jpg": b"i", "txt": b"a"}), ("1", {"jpg": b"j", "txt": b"b"})]


def test_reading_through_a_hashing_reader_gives_the_hash_of_the_whole_tar():
    data = make_tar(LAYOUTS["plain"])
    reader = files.HashingReader(io.BytesIO(data))
    assert len(list(samples.read_samples(reader, "a.tar", "jpg", "txt"))) == 2
    assert reader.finish() == hashlib.blake2b(data, digest_size=16).hexdigest()


# --- samples and rejects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        (["jpg", "png"], b"jpg"),
        (["png", "jpg"], b"jpg"),  # the order of the setting decides, not that of the tar
        (["png"], b"png"),
        (["PNG"], b"PNG"),
    ],
)
def test_first_present_image_field_wins(present, expected):
    item = one({**{name: name.encode() for name in present}, "txt": b"a dog"}, image="jpg;png")
    assert item == Sample("k", expected, "a dog")


def test_first_present_caption_field_wins_and_settings_ignore_case():
    assert one({"jpg": b"i", "text": b"second", "txt": b"first"}, caption="TXT;text").caption == "first"
    assert one({"jpg": b"i", "text": b"second"}, caption="TXT;text").caption == "second"


def test_field_with_dots_can_be_named():
    assert one({"seg.png": b"s", "png": b"i", "txt": b"a"}, image="seg.png;png").image == b"s"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"txt": b"a", "json": b"{}"}, ["image", "jpg;png", "json, txt"]),
        ({"jpg": b"i", "json": b"{}"}, ["caption", "txt;text", "jpg, json"]),
        ({"jpg": b"i", "txt": b""}, ["caption", "empty"]),
        ({"jpg": b"i", "txt": b" \t\r\n "}, ["caption", "empty"]),
        ({"jpg": b"i", "txt": "\u00a0\u2003".encode()}, ["caption", "empty"]),
        ({"jpg": b"i", "txt": "café".encode("latin-1")}, ["caption", "UTF-8"]),
        ({"jpg": b"i", "txt": b"", "text": b"a dog"}, ["caption", "empty"]),  # present, although empty: it wins
    ],
)
def test_unusable_sample_is_rejected_with_its_key_and_reason(fields, words):
    item = one(fields)
    assert isinstance(item, Reject)
    assert item.key == "k"
    assert all(word in item.reason for word in words)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog\non grass", "a dog\non grass"),
        ("a dog\r\non grass\n", "a dog\r\non grass"),
        ("  a dog 🐶‍🦺 ", "a dog 🐶‍🦺"),
        ("犬 \u0301", "犬 \u0301"),
    ],
)
def test_caption_keeps_line_breaks_and_emoji_and_loses_outer_spaces(caption, expected):
    assert one({"jpg": b"i", "txt": caption.encode()}) == Sample("k", b"i", expected)


def test_image_bytes_are_not_looked_at():
    assert one({"jpg": b"not an image", "txt": b"a dog"}).image == b"not an image"


def test_duplicate_key_next_to_the_first_is_rejected():
    found = read([("1.jpg", b"i"), ("1.txt", b"a"), ("1.jpg", b"j"), ("1.txt", b"b")])
    assert found == [Sample("1", b"i", "a"), Reject("1", "duplicate key")]


def test_duplicate_key_far_from_the_first_is_rejected_even_when_the_first_was_unusable():
    pair = [("{}.jpg", b"i"), ("{}.txt", b"a")]
    members = [("1.txt", b"no image")] + [(name.format(key), data) for key in "231" for name, data in pair]
    found = read(members)
    assert [(item.key, type(item)) for item in found] == [("1", Reject), ("2", Sample), ("3", Sample), ("1", Reject)]
    assert found[-1].reason == "duplicate key"


KINDS = {
    "good": {"jpg": b"i", "txt": b"a dog"},
    "no image": {"txt": b"a"},
    "no caption": {"jpg": b"i"},
    "empty": {"jpg": b"i", "txt": b" "},
    "broken": {"png": b"i", "text": b"\xff\xfe"},
}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(sorted(KINDS))), max_size=10))
def test_rows_and_rejects_are_the_samples_of_the_tar_in_order(drawn):
    # Consecutive equal keys would merge into one sample unless a field repeats: number the runs apart.
    drawn = [(key, kind) for at, (key, kind) in enumerate(drawn) if at == 0 or drawn[at - 1][0] != key]
    found = read([(f"{key}.{name}", data) for key, kind in drawn for name, data in KINDS[kind].items()])
    assert [item.key for item in found] == [str(key) for key, _ in drawn]
    first = [key not in [earlier for earlier, _ in drawn[:at]] for at, (key, _) in enumerate(drawn)]
    usable = [new and kind == "good" for new, (_, kind) in zip(first, drawn, strict=True)]
    assert [isinstance(item, Sample) for item in found] == usable


def test_key_that_is_not_utf8_can_be_written_to_parquet_or_is_rejected():
    data = make_tar([("\xe9.jpg", b"i"), ("\xe9.txt", b"a")], format=tarfile.GNU_FORMAT, encoding="latin-1")
    (item,) = samples.read_samples(io.BytesIO(data), "a.tar", "jpg", "txt")
    pa.array([item.key], pa.string())  # every item's key goes into embeddings/ or rejects/


# --- damaged tars ------------------------------------------------------------------------------------------------------

# In make_tar(FOUR) every member takes two blocks: a header of 512 bytes and up to 512 of content.
FOUR = [(f"{key}.{name}", b"x" * 300) for key in (1, 2) for name in ("jpg", "txt")]


def read_bytes(data):
    return list(samples.read_samples(io.BytesIO(data), "data/a.tar", "jpg", "txt"))


def test_the_undamaged_tar_of_the_following_tests_is_read():
    assert len(read_bytes(make_tar(FOUR))) == 2


@pytest.mark.parametrize("length", [0, 100, 511, 512, 700, 1536 + 100, 3 * 1024 + 512, 3 * 1024 + 600, 3 * 1024 + 900])
def test_tar_cut_in_a_first_header_or_in_content_raises_naming_the_path(length):
    with pytest.raises(CocuError, match=r"data/a\.tar") as raised:
        read_bytes(make_tar(FOUR)[:length])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("length", [1024 + 1, 2 * 1024 + 100, 3 * 1024 + 511])
def test_tar_cut_in_a_later_header_raises_naming_the_path(length):
    with pytest.raises(CocuError, match=r"data/a\.tar"):
        read_bytes(make_tar(FOUR)[:length])


@pytest.mark.parametrize("length", [1024, 2 * 1024, 3 * 1024])
def test_tar_cut_between_members_raises_naming_the_path(length):
    with pytest.raises(CocuError, match=r"data/a\.tar"):
        read_bytes(make_tar(FOUR)[:length])


def test_corrupt_header_in_the_middle_raises_naming_the_path():
    data = bytearray(make_tar(FOUR))
    data[2 * 1024] ^= 0xFF  # the name of 2.jpg: the checksum of its header no longer fits
    with pytest.raises(CocuError, match=r"data/a\.tar"):
        read_bytes(bytes(data))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_truncated_compressed_tar_never_silently_loses_samples(mode):
    data, lost = make_tar(FOUR, mode=mode), {}
    for length in range(len(data)):
        try:
            found = read_bytes(data[:length])
        except CocuError:
            continue
        except Exception as error:
            lost[length] = repr(error)
        else:
            if found != read_bytes(data):
                lost[length] = f"{len(found)} samples"
    assert lost == {}


@pytest.mark.parametrize(
    "data", [b"x" * 2000, b"PK\x03\x04" + b"\0" * 2000, b"<html>404</html>", b"\x1f\x8bjunk" * 200]
)
def test_what_is_not_a_tar_raises_naming_the_path(data):
    with pytest.raises(CocuError, match=r"data/a\.tar"):
        read_bytes(data)


def test_samples_before_the_damage_are_yielded_first():
    stream = samples.read_samples(io.BytesIO(make_tar(FOUR)[: 3 * 1024 + 600]), "a.tar", "jpg", "txt")
    assert next(stream).key == "1"
    with pytest.raises(CocuError, match="after 1 samples"):
        next(stream)


# --- sidecars ----------------------------------------------------------------------------------------------------------


def test_sidecars_are_the_members_of_one_extension(tmp_path):
    (tmp_path / "a.tar").write_bytes(make_tar([("1.jpg", b"i"), ("1.json", b"{}"), ("2.jpg", b"j"), ("3.JSON", b"[]")]))
    assert list(samples.read_sidecars(str(tmp_path / "a.tar"))) == [("1", b"{}"), ("3", b"[]")]
