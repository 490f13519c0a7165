"""Tars that mean harm, or are not what they seem: used, rejected with a reason, or refused with one line.

What training reads of each is compared with what curation uses of it.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hostile_tars import BLOCK, END, member, pair

from curation import samples
from curation.archive import read_tar
from curation.archive.members import MAX_HEADER, key_problem
from curation.archive.thumbnails import read_fields
from curation.base.configuration import build
from curation.base.errors import CocuError
from curation.base.files import HashingReader
from curation.config import CurationConfig
from curation.samples import Reject, Sample

COMPRESSED = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


def curated(tar: bytes, max_member: int = 1000) -> list[Sample | Reject]:
    return list(samples.read_samples(HashingReader(io.BytesIO(tar)), "a.tar", "jpg", "txt", max_member))


def trained(tar: bytes, folder, max_member: int = 1000) -> dict[str, tuple[bytes, bytes]]:
    """What training can use of a tar: samples of which both fields have content."""
    path = folder / "a.tar"
    path.write_bytes(tar)
    fields = read_tar(str(path), ["jpg", "txt"], max_member)
    return {one["__key__"]: (one["jpg"], one["txt"]) for one in fields if one.get("jpg") and one.get("txt")}


def check(tar: bytes, folder, used: list[str], reasons: dict[str, str]) -> None:
    """Curation uses and rejects these, and training uses the same."""
    found = curated(tar)
    assert [item.key for item in found if isinstance(item, Sample)] == used
    rejects = {item.key: item.reason for item in found if isinstance(item, Reject)}
    assert rejects.keys() == reasons.keys()
    for key, reason in reasons.items():
        assert reason in rejects[key]
    assert list(trained(tar, folder)) == used
    by_key = read_fields(str(folder / "a.tar"), used, ["jpg"])
    assert {key: fields["jpg"] for key, fields in by_key.items()} == dict.fromkeys(used, b"image")


# --- two tars -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 17, 4000])
def test_two_tars_one_behind_the_other_are_both_read(padding, tmp_path):
    tar = pair("a") + END + bytes(padding * BLOCK) + pair("b") + END
    check(tar, tmp_path, ["a", "b"], {})
    check(gzip.compress(tar), tmp_path, ["a", "b"], {})


@pytest.mark.parametrize("compress", COMPRESSED.values(), ids=COMPRESSED)
def test_two_compressed_tars_one_behind_the_other_are_both_read(compress, tmp_path):
    check(compress(pair("a") + END) + compress(pair("b") + END), tmp_path, ["a", "b"], {})


def test_a_damaged_or_cut_second_tar_is_refused():
    second = bytearray(pair("b") + END)
    second[0] ^= 1
    for tar in (pair("a") + END + bytes(second), pair("a") + END + pair("b"), pair("a") + END + pair("b")[:700]):
        with pytest.raises(CocuError, match=r"a\.tar: cannot be read as a tar after"):
            curated(tar)


def test_what_is_no_tar_behind_the_end_is_ignored(tmp_path):
    for junk in (b"\n", b"signature" * 200, bytes(3 * BLOCK) + b"x" * BLOCK):
        check(pair("a") + END + junk, tmp_path, ["a"], {})


# --- members --------------------------------------------------------------------------------------------------------------


def test_a_member_above_the_limit_costs_its_sample_only(tmp_path):
    large = member("b.jpg", b"x" * 1001) + member("b.txt", b"a cat")
    check(pair("a") + large + pair("c") + END, tmp_path, ["a", "c"], {"b": "jpg has 1,001 bytes, max_member is 1,000"})


def test_a_member_that_nobody_asked_for_may_be_of_any_size(tmp_path):
    check(pair("a") + member("a.npy", b"x" * 5000) + pair("b") + END, tmp_path, ["a", "b"], {})


def test_a_sparse_member_is_read_up_to_the_limit_and_otherwise_rejected(tmp_path):
    def sparse(key: str, size: int) -> bytes:
        header = bytearray(member(f"{key}.jpg", b"image", type=tarfile.GNUTYPE_SPARSE)[:BLOCK])
        header[386:410] = b"%011o\0%011o\0" % (0, 5)  # one piece of data, at the beginning
        header[483:495] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return bytes(header) + b"image".ljust(BLOCK, b"\0") + member(f"{key}.txt", b"a dog")

    tar = sparse("a", 5) + sparse("b", 8 << 30) + pair("c") + END
    check(tar, tmp_path, ["a", "c"], {"b": "jpg has 8,589,934,592 bytes, max_member"})


def test_a_hard_link_is_named(tmp_path):
    link = member("b.jpg", type=tarfile.LNKTYPE, linkname="a.jpg") + member("b.txt", b"a cat")
    check(
        pair("a") + link + END, tmp_path, ["a"], {"b": "jpg is a hard link to a.jpg: write the tar with --hard-deref"}
    )


def test_a_caption_of_megabytes_is_rejected():
    (item,) = curated(member("a.jpg", b"image") + member("a.txt", b"x" * (2 << 20)) + END, 4 << 20)
    assert item == Reject("a", "caption is longer than 1 MiB")


# --- keys -----------------------------------------------------------------------------------------------------------------


def with_pax(key: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in ((f"{key}.jpg", b"image"), (f"{key}.txt", b"a dog")):
            info = tarfile.TarInfo("x")
            info.size = len(content)
            info.pax_headers = {"path": name}
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("../a", "leaves its folder"),
        ("a/../../b", "leaves its folder"),
        ("/etc/a", "leaves its folder"),
        ("x\0y", "NUL"),
        ("x" * 300, "longer than"),
        ("y/" * 501 + "a", "longer than"),
    ],
)
def test_keys_that_could_not_be_files_of_a_folder_are_rejected(key, reason, tmp_path):
    tar = with_pax(key) if len(key) > 90 or "\0" in key else pair(key)
    tar = pair("good") + (tar if tar.endswith(END) else tar + END)
    used, rejected = curated(tar)
    assert used.key == "good"
    assert reason in rejected.reason
    assert reason in key_problem(key)
    assert len(rejected.key) <= 1000
    assert list(trained(tar, tmp_path)) == ["good"]


@pytest.mark.parametrize("key", ["a", "./a", "folder/a", "..a", "été/犬", "x" * 255])
def test_other_keys_are_used(key):
    assert key_problem(key) is None


# --- bombs ----------------------------------------------------------------------------------------------------------------


def test_bombs_take_no_memory():
    script = Path(__file__).with_name("hostile_tars.py")
    run = subprocess.run(
        [sys.executable, str(script), "--mebibytes", "120"], capture_output=True, text=True, check=True
    )
    outcome = json.loads(run.stdout.splitlines()[-1])
    assert outcome["mib"] < 100
    kinds = outcome["kinds"]
    assert all(counts["leaked"] == 0 for counts in kinds.values())
    assert kinds["tar bomb: unwanted member"]["used"] == 3
    assert kinds["tar bomb: wanted member"]["rejected"] == 1
    stopped = [kind for kind, counts in kinds.items() if counts["stopped"]]
    assert len(stopped) == 7


def test_an_xz_file_that_asks_for_gigabytes_is_refused():
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 0, "dict_size": 1 << 23}]
    content = bytearray(lzma.compress(pair("a") + END, lzma.FORMAT_ALONE, filters=filters))
    assert len(curated(bytes(content))) == 1
    content[1:5] = (1 << 31).to_bytes(4, "little")  # the size of its dictionary
    with pytest.raises(CocuError, match="cannot be read as a tar"):
        curated(bytes(content))


def test_headers_of_normal_length_are_read(tmp_path):
    key = "/".join(["f" * 200] * 4)
    assert len(key) < MAX_HEADER
    check(with_pax(key), tmp_path, [key], {})


# --- configuration --------------------------------------------------------------------------------------------------------


def test_max_member_is_a_size():
    values = {"name": "x", "shards": "a.tar"}
    assert build(CurationConfig, values).max_member == "256M"
    assert build(CurationConfig, values | {"max_member": "1.5G"}).max_member == "1.5G"
    with pytest.raises(CocuError, match=r"^max_member: 'much' is not a size; write 16G"):
        build(CurationConfig, values | {"max_member": "much"})


def test_a_run_and_its_reader_use_the_limit_of_the_configuration(world, tmp_path):
    from curation.archive import ConceptArchive
    from pipelines.curate import main

    command = ["--data", str(world), "--output", str(tmp_path / "out"), "--runner", "inprocess", "--max_member", "1K"]
    assert main([*command, "--dry-run"]) == 0
    assert main([*command[:-1], "20M"]) == 0
    archive = ConceptArchive.open(str(tmp_path / "out"))
    assert {source.max_member for source in archive.sources} == {20 << 20}
