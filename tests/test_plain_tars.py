"""Where members of tars lie: a look at headers alone finds what a whole reader finds, or leaves it to that."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hostile_tars import END, member

from curation.archive.members import locate_members
from curation.archive.plain_tars import plain_members

LINK, FOLDER, EXTENDED = tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE
PAIR = member("a.jpg", b"image") + member("a.txt", b"red")


def tar_of(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    return path


def by_headers(path):
    with open(path, "rb") as stream:
        return plain_members(stream.fileno())


def located(stream):
    """What is located, or that it is refused."""
    try:
        return list(locate_members(stream))
    except tarfile.ReadError as error:
        return str(error)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mtime", [0, 1_700_000_000.25], ids=["whole", "fraction"])
def test_ordinary_tars_are_read_by_their_headers(form, mtime, tmp_path):
    numbers = random.Random(0)
    contents = {}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = FOLDER
        tar.addfile(folder)
        for number in range(200):
            for extension in ("jpg", "txt", "json"):
                info = tarfile.TarInfo(f"folder/{number:04d}.{extension}")
                content = numbers.randbytes(numbers.choice((0, 1, 511, 512, 513, 5000)))
                info.size, info.mtime = len(content), mtime
                tar.addfile(info, io.BytesIO(content))
                contents[info.name] = content

    found = {name: (offset, size) for name, offset, size in by_headers(path) if name in contents}
    whole = path.read_bytes()
    assert {name: whole[offset : offset + size] for name, (offset, size) in found.items()} == contents
    with open(path, "rb") as stream:
        assert list(locate_members(stream)) == list(locate_members(io.BytesIO(whole)))


@pytest.mark.parametrize(
    "content",
    [
        PAIR,  # no end
        PAIR[:-900] + END,
        PAIR + END + PAIR + END,
        PAIR + END + b"more",
        PAIR + member("b.jpg", b"", type=LINK, linkname="a.jpg") + END,
        PAIR + member("b.jpg", b"", type=tarfile.LNKTYPE, linkname="a.jpg") + END,
        PAIR + member("b" * 120 + ".jpg", b"image") + END,
        PAIR.replace(b"a.txt", b"b.txt", 1) + END,  # a checksum that is another's
        member("PaxHeaders/a", b"14 path=b.jpg\n", type=EXTENDED) + PAIR + END,
        member("PaxHeaders/a", b"19 mtime=1.5\n", type=EXTENDED) + PAIR + END,
        b"\x1f\x8b\x08" + PAIR + END,
        b"no tar",
    ],
)
def test_what_is_out_of_the_ordinary_is_left_to_the_whole_reader(content, tmp_path):
    path = tar_of(tmp_path, content)
    assert by_headers(path) is None
    with open(path, "rb") as stream:
        assert located(stream) == located(io.BytesIO(content))


def test_damage_anywhere_is_no_other_member(tmp_path):
    whole = bytearray(PAIR + member("b.jpg", b"image" * 200) + member("b.txt", b"blue") + END)
    numbers = random.Random(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[numbers.randrange(len(damaged))] ^= 1 << numbers.randrange(8)
        path = tar_of(tmp_path, damaged)
        plain = by_headers(path)
        refused += plain is None
        with open(path, "rb") as stream:
            assert located(stream) == located(io.BytesIO(bytes(damaged)))
    assert 20 < refused < 150


def test_the_position_stays(tmp_path):
    with open(tar_of(tmp_path, PAIR + END), "rb") as stream:
        assert [name for name, *_ in plain_members(stream.fileno())] == ["a.jpg", "a.txt"]
        assert stream.tell() == 0
