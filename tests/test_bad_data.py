"""Data that nobody has looked at: a reject row or one clear line, never a wrong result."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import zlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_world import jpeg, write_tar, write_world

from pipelines.curate import main


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def huge_png(side: int = 20000) -> bytes:
    """A valid one-bit PNG of side x side pixels, some kilobytes long."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    compressor = zlib.compressobj(9)
    row = b"\0" * (side // 8 + 1)
    body = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


RED = Image.new("RGB", (40, 40), "red")
GIF = encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 40), "blue")])

GOOD_IMAGES = {
    "trailing garbage": jpeg(ground="red") + b"garbage" * 50,
    "CMYK": encoded(RED.convert("CMYK"), "JPEG"),
    "palette": encoded(RED.convert("P"), "PNG"),
    "16 bit": encoded(Image.new("I;16", (40, 40), 30000), "PNG"),
    "animated": GIF,
    "1x1": encoded(Image.new("RGB", (1, 1), "red"), "JPEG"),
    "transparent": encoded(Image.new("RGBA", (40, 40), (255, 0, 0, 100)), "PNG"),
    "wrong extension": encoded(RED, "WEBP"),
}
BAD_IMAGES = {
    "corrupt": jpeg(ground="red")[:200] + b"\xff" * 300,
    "cut": jpeg(ground="red")[:300],
    "zero bytes": b"",
    "text": b"<html>404 not found</html>",
    "bomb": huge_png(),
}
GOOD_CAPTIONS = {
    "100 kB": b"an apple and " * 8000,
    "NUL": b"an apple\0 here",
    "line breaks": b"an apple\r\non\nsand\n",
    "emoji": "an apple 🍎👨‍👩‍👧".encode(),
    "right to left": "תפוח apple تفاحة".encode(),
    "markup": b"<script>alert('apple')</script>",
}
BAD_CAPTIONS = {"empty": b"", "spaces": b" \t\r\n ", "not UTF-8": b"an apple \xe9\xff"}


@pytest.fixture(scope="module")
def curated(tmp_path_factory, tiny_clip) -> Path:
    """A run over one shard of every strange image, one of every strange caption and one of strange keys."""
    folder = tmp_path_factory.mktemp("strange")
    members = []
    for name, content in (GOOD_IMAGES | BAD_IMAGES).items():
        members += [(f"{name}.jpg", content), (f"{name}.txt", b"an apple")]
    write_tar(folder / "images.tar", members)
    members = [("no image.txt", b"an apple"), ("no caption.jpg", jpeg())]
    for name, content in (GOOD_CAPTIONS | BAD_CAPTIONS).items():
        members += [(f"{name}.jpg", jpeg(ground="red")), (f"{name}.txt", content), (f"{name}.json", b"{broken")]
    write_tar(folder / "captions.tar", members)
    members = []
    for key in ("twice", "folder/inside", "ключ", "twice", "with.dots", "good"):
        members += [(f"{key}.jpg", jpeg(ground="red")), (f"{key}.txt", b"an apple")]
    write_tar(folder / "keys.tar", members)
    write_tar(folder / "nothing.tar", [("only.txt", b"an apple"), ("other.txt", b"a boat")])
    write_tar(folder / "empty.tar", [])
    write_tar(folder / "again.tar", [("good.jpg", jpeg(ground="blue")), ("good.txt", b"a boat")])
    (folder / "concepts.txt").write_text("apple\nboat\nsand\n")
    path = write_world(folder / "strange.yaml", tiny_clip, shards="*.tar")
    output = folder / "out"
    assert main(["--data", str(path), "--output", str(output), "--runner", "inprocess"]) == 0
    return output


def rows(output: Path, shard: str) -> list[dict]:
    return pq.read_table(output / "archives" / f"{shard}.parquet").to_pylist()


def reasons(output: Path, shard: str) -> dict[str, str]:
    return {row["key"]: row["reason"] for row in pq.read_table(output / "rejects" / f"{shard}.parquet").to_pylist()}


def test_strange_images_that_can_be_decoded_are_rows_and_others_rejects(curated):
    assert [row["key"] for row in rows(curated, "images")] == list(GOOD_IMAGES)
    assert reasons(curated, "images").keys() == BAD_IMAGES.keys()
    assert all("image cannot be decoded" in reason for reason in reasons(curated, "images").values())
    assert "decompression bomb" in reasons(curated, "images")["bomb"]


def test_strange_captions_are_kept_to_the_letter_and_bad_ones_rejected(curated):
    found = {row["key"]: row["caption"] for row in rows(curated, "captions")}
    assert found == {name: content.decode().strip() for name, content in GOOD_CAPTIONS.items()}
    rejected = reasons(curated, "captions")
    assert rejected.pop("no image").startswith("no image field")
    assert rejected.pop("no caption").startswith("no caption field")
    assert rejected == {"empty": "caption is empty", "spaces": "caption is empty", "not UTF-8": "caption is not UTF-8"}


def test_strange_keys_are_kept_and_repeated_ones_rejected_within_a_shard(curated):
    assert [row["key"] for row in rows(curated, "keys")] == ["twice", "folder/inside", "ключ", "good"]
    found = reasons(curated, "keys")
    assert found["twice"] == "duplicate key"
    assert "only dots.jpg, dots.txt" in found["with"]  # a key ends at its first dot, as in webdataset
    assert [row["key"] for row in rows(curated, "again")] == ["good"]


def test_shards_without_a_usable_sample_give_empty_archives(curated):
    assert rows(curated, "nothing") == rows(curated, "empty") == []
    assert reasons(curated, "nothing").keys() == {"only", "other"}


def failed(world: Path, output: Path, capfd, *options: str) -> str:
    """Run; it must fail, with one line and no stack trace. The line."""
    assert main(["--data", str(world), "--output", str(output), "--runner", "inprocess", *options]) == 1
    error = capfd.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert len(error.splitlines()) == 1
    return line


@pytest.fixture
def data(world, tmp_path) -> Path:
    """A copy of the world, to spoil."""
    return Path(shutil.copytree(world.parent, tmp_path / "data")) / world.name


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"not a tar" * 1000,
        lambda content: content[: len(content) // 2],
        lambda content: content[: 512 * 3],
        lambda content: content[:9216] + b"\x55" * 512 + content[9728:],
    ],
    ids=["zero bytes", "not a tar", "cut", "cut between members", "damaged header"],
)
def test_a_poisoned_shard_stops_the_run_or_costs_only_itself(data, finished, tmp_path, capfd, spoil):
    shard = data.parent / "00001.tar"
    whole = shard.read_bytes()
    if spoil(whole)[9216:9728] == b"\x55" * 512:  # hit the header of a later member, wherever it lies
        import tarfile

        with tarfile.open(shard) as tar:
            offset = tar.getmembers()[30].offset
        shard.write_bytes(whole[:offset] + b"\x55" * 512 + whole[offset + 512 :])
    else:
        shard.write_bytes(spoil(whole))
    line = failed(data, tmp_path / "out", capfd)
    assert str(shard) in line
    assert "on_error: skip" in line
    skip = ["--data", str(data), "--output", str(tmp_path / "out"), "--runner", "inprocess", "--on_error", "skip"]
    assert main(skip) == 0
    assert rows(tmp_path / "out", "00001") == []
    assert str(shard) in reasons(tmp_path / "out", "00001")[""]
    for name in ("00000", "00002"):
        assert [row["key"] for row in rows(tmp_path / "out", name)] == [row["key"] for row in rows(finished, name)]
    shard.write_bytes(whole)  # mended: it is read in the next run, and all is as if nothing had happened
    assert main(skip) == 0
    assert [rows(tmp_path / "out", f"0000{n}") for n in range(3)] == [rows(finished, f"0000{n}") for n in range(3)]


def test_a_shard_that_disappears_after_listing_is_named(data, tmp_path):
    from curation.base.errors import InputError
    from curation.config import load
    from curation.run.run import plan_run
    from curation.run.stages import plan, run_stage

    outputs = plan_run(load(str(data)), str(tmp_path / "out"))
    shard = outputs.shards[2]
    os.remove(shard.path)
    with pytest.raises(InputError, match=r"00002\.tar: no such file"):
        run_stage(plan(outputs)[0], outputs, shard)


def test_a_missing_shard_stops_the_run_or_costs_only_itself(data, finished, tmp_path, capfd):
    os.remove(data.parent / "00001.tar")
    assert "00001.tar: no such file" in failed(data, tmp_path / "out", capfd)
    skip = ["--data", str(data), "--output", str(tmp_path / "out"), "--runner", "inprocess", "--on_error", "skip"]
    assert main(skip) == 0
    assert "no such file" in reasons(tmp_path / "out", "00001")[""]
    keys = [[row["key"] for row in rows(folder, "00002")] for folder in (tmp_path / "out", finished)]
    assert keys[0] == keys[1]


def test_no_usable_sample_at_all_is_an_error(tiny_clip, tmp_path, capfd):
    write_tar(tmp_path / "a.tar", [("only.txt", b"an apple")])
    (tmp_path / "concepts.txt").write_text("apple\n")
    path = write_world(tmp_path / "none.yaml", tiny_clip, shards="a.tar")
    assert "not one usable sample in 1 shards" in failed(path, tmp_path / "out", capfd)


def test_a_vocabulary_that_matches_nothing_is_an_error(data, tmp_path, capfd):
    (data.parent / "none.txt").write_text("unicorn\n")
    line = failed(data, tmp_path / "out", capfd, "--vocabulary.source", str(data.parent / "none.txt"))
    assert "no caption mentions any of 1 concepts" in line
    assert "none.txt" in line


def test_imported_embeddings_of_another_width_are_an_error(tiny_clip, tmp_path, capfd):
    import numpy as np
    import pyarrow as pa

    (tmp_path / "img_emb").mkdir()
    (tmp_path / "metadata").mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.ones((2, 7), np.float16))
    pq.write_table(pa.table({"key": ["a", "b"], "caption": ["x", "y"]}), tmp_path / "metadata" / "metadata_0.parquet")
    (tmp_path / "concepts.txt").write_text("apple\n")
    path = write_world(tmp_path / "import.yaml", tiny_clip, shards="", embeddings=".")
    assert "embeddings have 7 dimensions, but encoder.model" in failed(path, tmp_path / "out", capfd)


def test_an_output_that_cannot_be_written_is_named(data, tmp_path, capfd):
    (tmp_path / "file").write_text("in the way")
    line = failed(data, tmp_path / "file" / "out", capfd)
    assert "file/out: cannot be written" in line


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB; needs the right to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", folder], check=False, capture_output=True)
    subprocess.run(["umount", "--lazy", folder], check=True)  # an index may still be mapped


def test_a_full_disk_is_an_error_that_a_larger_disk_cures(data, finished, small_disk, capfd):
    (small_disk / "ballast").write_bytes(b"x" * 290_000)
    line = failed(data, small_disk / "out", capfd, "--on_error", "skip")
    assert "No space left on device" in line
    assert "choose another output" in line
    subprocess.run(["mount", "-o", "remount,size=10m", small_disk], check=True)
    assert main(["--data", str(data), "--output", str(small_disk / "out"), "--runner", "inprocess"]) == 0
    assert [rows(small_disk / "out", f"0000{n}") for n in range(3)] == [rows(finished, f"0000{n}") for n in range(3)]
    assert not list((small_disk / "out").rglob(".partial-*"))


def test_a_read_only_disk_is_an_error(data, small_disk, capfd):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert "Read-only file system" in failed(data, small_disk / "out", capfd)
