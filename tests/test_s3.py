"""Curation from and to S3, as moto's server plays it: missing buckets and credentials, progress, the lock."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from faulty_servers import s3_environment, s3_server
from s3fs import S3FileSystem

from curation.archive import ConceptArchive
from curation.base import files, remote
from curation.base.errors import CocuError, InputError, OutputError
from curation.config import load
from curation.run import lock
from curation.run.lock import hold
from curation.run.progress import Progress, clear_progress, read_progress, stages_begun
from curation.run.run import Run, plan_run
from pipelines.curate import main

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(endpoint, monkeypatch):
    """s3fs' file system, with an empty bucket called data."""
    import s3fs

    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(lock, "SETTLED", 0.01)
    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    filesystem.mkdir("data")
    yield filesystem
    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in s3_environment(endpoint).items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", use_listings_cache=False).rm("data", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def tars(world, s3) -> str:
    """The world's tars in the bucket; their pattern."""
    for path in sorted(world.parent.glob("*.tar")):
        s3.pipe_file(f"data/tars/{path.name}", path.read_bytes())
    return "s3://data/tars/{00000..00002}.tar"


def curate(world: Path, shards: str, output: str, *more: str) -> int:
    return main(["--data", str(world), "--shards", shards, "--output", output, "--runner", "inprocess", *more])


def printed(capfd) -> str:
    captured = capfd.readouterr()
    return captured.out + captured.err


# --- a whole run ---


def test_a_run_from_s3_to_s3_has_the_archives_of_a_local_one(world, tars, s3, finished, capfd):
    assert curate(world, tars, "s3://data/out") == 0, printed(capfd)
    text = printed(capfd)
    assert "This run" in text  # the table of stages
    assert "embed" in text
    assert "no report" not in text
    archive, local = ConceptArchive.open("s3://data/out"), ConceptArchive.open(finished)
    for name in local.shards:
        assert archive.table(name) == local.table(name)
    left = [path for path in s3.find("data/out") if path.rsplit("/", 1)[1].startswith(".") or "/." in path]
    assert not left

    assert curate(world, tars, "s3://data/out") == 0
    assert "already finished" in printed(capfd).replace("\n", "")


def test_workers_of_other_processes_are_seen(world, tars, s3, capfd, monkeypatch):
    """Two worker processes write, this one lists: no listing is remembered."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "pipelines.curate", "--data", str(world), "--shards", tars]
    run = subprocess.run(
        [*command, "--output", "s3://data/out", "--workers", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(s3.cat_file("data/out/manifest.json"))["counts"]["shards"] == 3
    assert "embed" in run.stdout.split("This run")[1]


def test_a_glob_and_a_replaced_object(world, tars, s3, capfd):
    two = "s3://data/tars/0*[02].tar"
    assert curate(world, two, "s3://data/out") == 0, printed(capfd)
    assert json.loads(s3.cat_file("data/out/manifest.json"))["counts"]["shards"] == 2
    content = s3.cat_file("data/tars/00000.tar")
    s3.pipe_file("data/tars/00000.tar", content.replace(b"A photo of", b"A phota of"))
    assert curate(world, two, "s3://data/out") == 0, printed(capfd)
    with files.open_file("s3://data/out/embeddings/00000.parquet") as stream:
        assert pq.read_table(stream)["caption"].to_pylist()[0].startswith("A phota of")


# --- what is missing ---


def test_a_typo_in_the_output_creates_no_bucket(world, tars, s3, capfd):
    assert curate(world, tars, "s3://dat/out") == 1
    assert "cannot be written: no such bucket; create it, or correct the address" in printed(capfd)
    assert [bucket.strip("/") for bucket in s3.ls("")] == ["data"]


def test_nothing_creates_a_bucket(s3):
    for write in (
        lambda: files.write_json("s3://nobody/a/b.json", {}),
        lambda: files.put("s3://nobody/a/b.json", b""),
        lambda: files.atomic_path("s3://nobody/a/b").__enter__(),
    ):
        try:
            write()
        except OutputError as error:
            assert "no such bucket" in str(error)
    assert [bucket.strip("/") for bucket in s3.ls("")] == ["data"]


def test_a_missing_object_and_a_missing_bucket(s3):
    for path in ("s3://data/no.tar", "s3://nobody/no.tar"):
        with pytest.raises(InputError, match=f"^{path}: no such file$"):
            files.version(path)
        with pytest.raises(InputError, match=f"^{path}: no such file$"):
            files.open_file(path)
        assert not files.exists(path)
        assert files.files_in(path) == []
        files.remove(path)


def test_missing_credentials_are_one_line_and_a_shard_is_left_out(world, tars, s3, monkeypatch, tmp_path, capfd):
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    one = f"{world.parent}/00000.tar::s3://data/tars/00001.tar"
    assert curate(world, one, str(tmp_path / "out")) == 1
    assert "error: s3://data/tars/00001.tar: no valid credentials; log in with" in printed(capfd)
    assert curate(world, one, str(tmp_path / "out"), "--on_error", "skip") == 0
    (reject,) = pq.read_table(tmp_path / "out" / "rejects" / "00001.parquet").to_pylist()
    assert "no valid credentials" in reject["reason"]


def test_a_server_that_is_not_there_is_one_line(s3, monkeypatch):
    import s3fs
    from faulty_servers import closed_port

    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(InputError, match=r"s3://data/a\.tar: connection refused|s3://data/a\.tar: cannot be reached"):
        files.version("s3://data/a.tar")


def s3_error(status: int, code: str) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [(403, "AccessDenied", "access denied"), (503, "SlowDown", "the server failed"), (404, "NoSuchBucket", "no such")],
)
def test_what_s3_reports_is_one_line(s3, monkeypatch, status, code, reason):
    from s3fs import S3FileSystem

    async def refuse(self, *args, **kwargs):
        from s3fs.errors import translate_boto_error

        raise translate_boto_error(s3_error(status, code))

    with monkeypatch.context() as patch:
        patch.setattr(S3FileSystem, "_call_s3", refuse)
        for action in (files.open_file, files.version, files.read_json, files.local_path):
            with pytest.raises(InputError, match=f"^s3://data/a: {reason}"):
                action("s3://data/a")
        with pytest.raises(OutputError, match=f"^s3://data/a: cannot be written: {reason}"):
            files.write_json("s3://data/a", {})
        with pytest.raises(OutputError, match=f"^s3://data/a: cannot be written: {reason}"):
            files.put("s3://data/a", b"")


# --- progress and the lock ---


@pytest.fixture
def run(world, s3) -> Run:
    return plan_run(load(str(world)), "s3://data/out")


def test_notes_are_read_back_and_cleared(run):
    first, second = Progress(run, "embed", "00000"), Progress(run, "embed", "00001")
    assert [(note.part, note.state) for note in read_progress(run, "embed")] == [
        ("00000", "running"),
        ("00001", "running"),
    ]
    first.advance(7)
    first.finish("computed", "new weights")
    second.finish("kept")
    assert [(note.state, note.reason) for note in read_progress(run, "embed")] == [
        ("computed", "new weights"),
        ("kept", ""),
    ]
    assert stages_begun(run) == ["embed"]
    clear_progress(run)
    assert stages_begun(run) == []
    assert read_progress(run, "embed") == []


def test_a_note_that_is_not_taken_stops_nothing(run, s3, monkeypatch):
    progress = Progress(run, "embed", "00000")
    monkeypatch.setattr(files, "put", lambda *_: (_ for _ in ()).throw(OutputError("no")))
    progress.finish("computed")
    monkeypatch.setattr(files, "marks_in", lambda *_: (_ for _ in ()).throw(InputError("no")))
    assert read_progress(run, "embed") == []


def test_a_second_run_is_told_who_holds_the_folder(run):
    with (
        hold(run),
        pytest.raises(CocuError, match=rf"process {os.getpid()} on .* is curating into it; wait"),
        hold(run),
    ):
        pass
    with hold(run):  # free again
        pass


def test_an_unfinished_folder_goes_on_belonging_to_its_data_set(run, world):
    import dataclasses

    with hold(run):
        pass
    other = dataclasses.replace(run, config=dataclasses.replace(run.config, name="other"))
    with pytest.raises(CocuError, match="holds the archives of world, not other"), hold(other):
        pass


@pytest.mark.parametrize(
    ("change", "free"),
    [
        ({}, False),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "alive": time.time() - 1000}, True),
        ({"process": 2**22 + 1}, True),  # a number that no process has
    ],
    ids=["alive", "elsewhere", "silent", "dead"],
)
def test_the_note_of_a_dead_holder_is_ignored(run, change, free):
    owner = {"data": "world", "host": socket.gethostname(), "process": os.getpid(), "since": 0, "alive": time.time()}
    files.put(run.path(".owner.json"), json.dumps(owner | {"token": "x"} | change).encode())
    if free:
        with hold(run):
            pass
    else:
        with pytest.raises(CocuError, match="is curating into it"), hold(run):
            pass


def test_a_file_that_is_replaced_is_read_from_its_start_or_not_at_all(run, monkeypatch):
    monkeypatch.setattr(S3FileSystem, "default_block_size", 5 << 20)
    path = run.path("note.bin")
    files.put(path, b"old" * 1_000_000)
    with files.open_file(path) as stream:
        files.put(path, b"new" * 1_000_000)
        assert stream.read() == b"new" * 1_000_000
    files.put(path, b"new" * 9_000_000)  # of several blocks
    with files.open_file(path) as stream:
        assert stream.read(10) == (b"new" * 4)[:10]
        files.put(path, b"odd" * 9_000_000)
        with pytest.raises(InputError, match=r"note\.bin: it was replaced while it was read"):
            while stream.read(1 << 20):
                pass


def test_the_holder_gives_signs_of_life(run, monkeypatch):
    monkeypatch.setattr(lock, "RENEWED", 0.05)
    with hold(run):
        first = files.read_json(run.path(".owner.json"))["alive"]
        deadline = time.monotonic() + 20
        while files.read_json(run.path(".owner.json"))["alive"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_last_of_two_that_begin_at_once_wins(run, monkeypatch):
    def another_begins(seconds: float) -> None:
        owner = {"data": "world", "host": "elsewhere", "process": 7, "token": "other", "alive": time.time()}
        files.put(run.path(".owner.json"), json.dumps(owner).encode())

    monkeypatch.setattr(lock.time, "sleep", another_begins)
    with pytest.raises(CocuError, match="process 7 on elsewhere"), hold(run):
        pass
