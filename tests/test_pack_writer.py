"""The tars of packing hold what webdataset's writer writes, and packing is light to import."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from webdataset import ShardWriter as Webdatasets

from curation.tools.pack.writer import ShardWriter

ROOT = Path(__file__).parent.parent
SAMPLES = [
    (
        f"key-{number}",
        {"txt": "ein Hündchen 🐕" * number, "jpg": b"\xff\xd8" * 400 * number, "json": {"é": [number, None]}},
    )
    for number in range(9)
]


def members(path: Path) -> list[tuple]:
    with tarfile.open(path) as tar:
        return [
            (tar.extractfile(one).read(), one.name, one.mode, one.mtime, one.uname, one.gname, one.uid) for one in tar
        ]


@pytest.mark.parametrize(("count", "size"), [(100, 1 << 30), (4, 1 << 30), (100, 5000), (3, 1), (2, 6000)])
@pytest.mark.parametrize("first", [0, 7])
def test_tars_hold_the_members_that_webdataset_writes(tmp_path, count, size, first):
    (tmp_path / "theirs").mkdir()
    options = {"maxcount": count, "maxsize": size, "start_shard": first, "mtime": 0.0, "compress": False, "verbose": 0}
    with Webdatasets(f"{tmp_path}/theirs/%05d.tar", **options) as writer:
        for key, fields in SAMPLES:
            writer.write({"__key__": key, **fields})

    (tmp_path / "ours").mkdir()
    finished: list[Path] = []
    ours = ShardWriter(tmp_path / "ours", first, count, size, finished.append)
    for key, fields in SAMPLES:
        ours.write(key, fields)
    ours.close()

    expected = {path.name: members(path) for path in (tmp_path / "theirs").iterdir()}
    assert {path.name: members(path) for path in finished} == expected
    assert len(list((tmp_path / "ours").iterdir())) == len(expected)


def test_a_tar_that_is_abandoned_is_not_called_finished(tmp_path):
    finished: list[Path] = []
    writer = ShardWriter(tmp_path, 0, 2, 1 << 30, finished.append)
    for key, fields in SAMPLES[:3]:
        writer.write(key, fields)
    writer.abandon()
    writer.close()
    assert finished == [tmp_path / "00000.tar"]


@pytest.mark.parametrize("module", ["curation.tools.pack.packing", "curation.tools.init.survey"])
def test_packing_and_a_look_at_tars_need_no_torch(module, tmp_path):
    """Importing torch takes seconds, and a minute on a busy machine whose disk is slow."""
    ShardWriter(tmp_path, 0, 1, 1, print).write("a", {"jpg": b"i", "txt": "a dog"})
    (tmp_path / "00000.tar").write_bytes((tmp_path / "00000.tar").read_bytes() + bytes(10240))
    code = (
        f"import sys, {module}; from curation.archive import read_tar; "
        "assert [sample['txt'] for sample in read_tar(sys.argv[1], ['txt'])] == [b'a dog']; print(*sys.modules)"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "00000.tar")], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "webdataset", "faiss", "open_clip", "pandas"} & set(loaded.split())
