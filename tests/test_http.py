"""Reading from http servers that fail in every way: tried again, or one line that says what to do."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faulty_servers import closed_port, faulty_server
from fsspec.implementations.http import HTTPFileSystem

from curation.base import files, remote
from curation.base.errors import InputError, OutputError
from curation.base.failures import explain
from curation.samples import list_shards
from pipelines.curate import main

CONTENT = bytes(range(256)) * 1000


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    HTTPFileSystem.clear_instance_cache()
    yield
    HTTPFileSystem.clear_instance_cache()  # one that was made while a method was replaced never gets its own back


@pytest.fixture
def server(tmp_path):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.bin").write_bytes(CONTENT)
    with faulty_server(tmp_path / "served") as server:
        yield server


def read(path: str) -> bytes:
    with files.open_file(path) as stream:
        return stream.read()


# --- each its own line ---

LINES = {
    401: r"the server asks for a login \(401\); give credentials",
    403: r"access denied \(403\); check the credentials, or sign the address again",
    404: r"no such file$",
    410: r"no such file$",
    418: r"the server refuses the request \(418\); correct the address",
    429: r"too many requests \(429\); use fewer --workers.*\(tried 5 times\)$",
    500: r"the server failed \(500\); run the same command again later \(tried 5 times\)$",
    503: r"the server failed \(503\); run the same command again later \(tried 5 times\)$",
    "reset": r"the connection broke; check the network.*\(tried 5 times\)$",
}
ACTIONS = {"open_file": read, "version": files.version, "exists": files.exists, "local_path": files.local_path}


@pytest.mark.parametrize("fault", LINES, ids=str)
@pytest.mark.parametrize("action", ACTIONS)
def test_every_fault_is_one_line_that_names_the_file(server, fault, action):
    server.fault = lambda path, number: fault
    address = f"{server.url}/a.bin?X-Amz-Signature=secret"
    if action == "exists" and fault in (404, 410):
        assert not files.exists(address)
        return
    with pytest.raises(InputError, match=LINES[fault]) as raised:
        ACTIONS[action](address)
    assert str(raised.value).startswith((f"{server.url}/a.bin: ", f"{server.url}/a.bin?hidden: "))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_refused_connection_and_an_unknown_host_are_one_line(action):
    with pytest.raises(InputError, match="connection refused; is the server running"):
        ACTIONS[action](f"http://127.0.0.1:{closed_port()}/a.bin")
    with pytest.raises(InputError, match="no such host; correct the address"):
        ACTIONS[action]("http://no-such-host.invalid/a.bin")


def test_a_server_that_says_nothing_is_given_up(server, monkeypatch):
    from aiohttp import ClientTimeout

    monkeypatch.setattr(remote, "_http_session", lambda: {"timeout": ClientTimeout(sock_read=0.1)})
    server.fault = lambda path, number: time.sleep(0.4)
    with pytest.raises(InputError, match=r"no answer in time; .* \(tried 5 times\)"):
        files.version(f"{server.url}/a.bin")


def test_a_server_is_not_written_to(server):
    with pytest.raises(OutputError, match=r"cannot be written to; choose a folder, or a bucket"):
        files.write_json(f"{server.url}/a.json", {})


# --- tried again ---


@pytest.mark.parametrize("fault", [429, 500, 502, 503, "reset", "cut"])
@pytest.mark.parametrize(("ranges", "sized"), [(True, True), (False, True), (False, False)])
def test_what_may_pass_is_tried_again(server, fault, ranges, sized):
    server.ranges, server.sized = ranges, sized
    server.fault = lambda path, number: fault if number <= 2 else None
    assert read(f"{server.url}/a.bin") == CONTENT


@pytest.mark.parametrize("fault", [401, 403, 404, 410])
def test_what_will_not_pass_is_not_tried_again(server, fault):
    server.fault = lambda path, number: fault
    with pytest.raises(InputError):
        read(f"{server.url}/a.bin")
    assert len(server.requests) <= 2  # HEAD, and GET where servers refuse HEAD


def test_the_server_says_how_long_to_wait(server, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    server.retry_after = "7"
    server.fault = lambda path, number: 429 if number <= 2 else None
    assert read(f"{server.url}/a.bin") == CONTENT
    assert waits
    assert set(waits) == {7.0}


def test_waits_become_longer_but_not_too_long(server, monkeypatch):
    waits = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    monkeypatch.setattr(remote, "FIRST_WAIT", 1.0)
    server.fault = lambda path, number: 503
    with pytest.raises(InputError):
        files.version(f"{server.url}/a.bin")
    assert len(waits) == remote.ATTEMPTS - 1
    assert all(2**number <= wait <= 2**number + 1 for number, wait in enumerate(waits))
    server.retry_after = "100000"
    with pytest.raises(InputError):
        files.version(f"{server.url}/a.bin")
    assert waits[-1] == remote.LONGEST_WAIT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_large_file_is_read_over_broken_connections(server, tmp_path, ranges):
    content = os.urandom(12 << 20)  # more than fsspec's block
    (tmp_path / "served" / "large.bin").write_bytes(content)
    server.ranges = ranges
    server.fault = lambda path, number: "cut" if number in (1, 2) else None
    assert read(f"{server.url}/large.bin") == content


@pytest.mark.parametrize(("ranges", "sized"), [(True, True), (False, True), (False, False)])
def test_a_remote_file_is_seekable(server, ranges, sized):
    server.ranges, server.sized = ranges, sized
    with files.open_file(f"{server.url}/a.bin") as stream:
        assert stream.read(10) == CONTENT[:10]
        stream.seek(200_000)
        assert stream.read(10) == CONTENT[200_000:200_010]
        stream.seek(-5, 1)
        assert stream.tell() == 200_005
        stream.seek(3)
        assert stream.read(1000) == CONTENT[3:1003]
        if sized and ranges:
            stream.seek(-4, 2)
            assert stream.read() == CONTENT[-4:]


def test_a_signed_address_is_sent_as_it_is_written(server):
    signed = "/a.bin?X-Amz-Credential=A%2F2026%2Fs3&X-Amz-Signature=1f%2B%3D&x=a+b"
    assert read(server.url + signed) == CONTENT
    assert {path for _, path in server.requests} == {signed}


def test_a_name_with_spaces_is_quoted(server, tmp_path):
    (tmp_path / "served" / "a%20b.bin").write_bytes(b"x")
    assert read(f"{server.url}/a b.bin") == b"x"


# --- which version a file is ---


def test_a_replaced_file_of_equal_size_is_told_by_its_date(server, tmp_path):
    address, file = f"{server.url}/a.bin", tmp_path / "served" / "a.bin"
    os.utime(file, (1000, 1000))
    before = files.version(address)
    assert files.version(address) == before
    assert before["size"] == len(CONTENT)
    file.write_bytes(CONTENT[::-1])
    os.utime(file, (5000, 5000))
    assert files.version(address) != before


def test_a_replaced_file_of_equal_size_and_date_is_told_by_its_etag(server, tmp_path):
    server.etag = True
    address, file = f"{server.url}/a.bin", tmp_path / "served" / "a.bin"
    os.utime(file, (1000, 1000))
    before = files.version(address)
    file.write_bytes(CONTENT[::-1])
    os.utime(file, (1000, 1000))
    assert files.version(address) != before


@pytest.mark.parametrize("sized", [True, False])
def test_without_any_sign_the_content_tells(server, tmp_path, sized):
    server.dated, server.sized = False, sized
    address, file = f"{server.url}/a.bin", tmp_path / "served" / "a.bin"
    before = files.version(address)
    assert files.version(address) == before
    assert before["size"] == len(CONTENT)
    file.write_bytes(CONTENT[::-1])
    assert files.version(address) != before


# --- the command ---


@pytest.fixture
def curate(world, server, tmp_path, capfd):
    """Curate the world from the server; (exit code, what was printed, the output folder)."""
    for path in world.parent.glob("*.tar"):
        (tmp_path / "served" / path.name).write_bytes(path.read_bytes())

    def curate(*more: str, name: str = "out") -> tuple[int, str, Path]:
        output = tmp_path / name
        command = ["--data", str(world), "--shards", f"{server.url}/{{00000..00002}}.tar", "--output", str(output)]
        code = main([*command, "--runner", "inprocess", *more])
        captured = capfd.readouterr()
        return code, captured.out + captured.err, output

    return curate


def test_a_run_over_faults_that_pass_has_the_archives_of_an_undisturbed_one(curate, server, finished):
    faults = {1: 503, 2: "reset", 3: "cut"}
    server.fault = lambda path, number: faults.get(number)
    code, printed, output = curate()
    assert code == 0, printed
    for path in sorted((finished / "archives").iterdir()):
        assert pq.read_table(output / "archives" / path.name) == pq.read_table(path)


@pytest.mark.parametrize("fault", [401, 403, 404, 429, 503, "reset"])
def test_a_run_stops_with_one_line_or_leaves_the_shard_out(curate, server, fault):
    server.fault = lambda path, number: fault if path == "/00001.tar" else None
    code, printed, _ = curate()
    assert code == 1
    assert f"error: {server.url}/00001.tar: " in printed
    assert "Traceback" not in printed
    code, printed, output = curate("--on_error", "skip")
    assert code == 0, printed
    (reject,) = pq.read_table(output / "rejects" / "00001.parquet").to_pylist()
    assert reject["reason"].startswith(f"{server.url}/00001.tar: ")
    assert len(pq.read_table(output / "archives" / "00000.parquet")) == 24


def test_a_shard_that_breaks_in_the_middle_is_left_out(curate, server):
    server.fault = lambda path, number: "cut" if path == "/00001.tar" else None
    code, printed, output = curate("--on_error", "skip")
    assert code == 0, printed
    (reject,) = pq.read_table(output / "rejects" / "00001.parquet").to_pylist()
    assert "the connection broke" in reject["reason"]


def test_a_replaced_tar_of_equal_size_is_curated_again(curate, server, tmp_path):
    assert curate()[0] == 0
    assert "already finished" in curate()[1].replace("\n", "")
    path = tmp_path / "served" / "00000.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"A photo of", b"A phota of"))
    assert path.stat().st_size == len(content)
    os.utime(path, (5000, 5000))
    code, printed, output = curate()
    assert code == 0
    assert "already finished" not in printed.replace("\n", "")
    captions = pq.read_table(output / "embeddings" / "00000.parquet")["caption"].to_pylist()
    assert all(caption.startswith("A phota of") for caption in captions)


def test_archives_are_read_from_a_server(finished, server, tmp_path):
    from curation.archive import ConceptArchive

    for path in [finished / "manifest.json", finished / "vocabulary.parquet", *(finished / "archives").iterdir()]:
        target = tmp_path / "served" / path.relative_to(finished)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    server.fault = lambda path, number: 503 if number == 1 else None
    archive = ConceptArchive.open(server.url)
    assert archive.table("00001")["key"].to_pylist()
    with pytest.raises(InputError, match="connection refused"):
        ConceptArchive.open(f"http://127.0.0.1:{closed_port()}")


def test_training_reads_tars_from_a_server(world, server, tmp_path):
    from curation.archive.joining import read_tar

    (tmp_path / "served" / "0.tar").write_bytes((world.parent / "00000.tar").read_bytes())
    server.fault = lambda path, number: "cut" if number == 1 else None
    assert len(list(read_tar(f"{server.url}/0.tar", ["jpg", "txt"]))) == 24
    with tarfile.open(world.parent / "00000.tar") as tar:
        assert len(tar.getnames()) == 72


# --- what libraries raise ---


def test_a_package_that_is_missing_is_named_with_its_command():
    with pytest.raises(InputError, match=r"^gs://b/a\.tar: needs another package; run pip install gcsfs$"):
        files.version("gs://b/a.tar")
    with pytest.raises(InputError, match=r"pip install adlfs$"):
        files.open_file("abfs://b/a.tar")
    with pytest.raises(InputError, match=r"pip install paramiko$"):
        files.open_file("sftp://b/a.tar")
    with pytest.raises(InputError, match=r"xyz:// is not a kind of address that fsspec knows"):
        list_shards("xyz://b/*.tar")


def library_error(name: str, **attributes: object) -> Exception:
    error = type(name, (Exception,), {})("two\nlines")
    error.__dict__.update(attributes)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (library_error("NoCredentialsError"), "no valid credentials"),  # botocore's
        (library_error("DefaultCredentialsError"), "no valid credentials"),  # google-auth's
        (library_error("HttpError", code=403), "access denied"),  # gcsfs'
        (library_error("HttpError", code=404), "no such file"),
        (library_error("HttpResponseError", status_code=500), "the server failed"),  # Azure's
        (library_error("HfHubHTTPError", response=library_error("R", status_code=401)), "the server asks for a login"),
        (library_error("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 403}}), "access denied"),
        (library_error("EndpointConnectionError"), "cannot be reached"),
        (library_error("OfflineModeIsEnabled"), "Hugging Face is set to offline"),
        (library_error("SSLError"), "its certificate is not trusted"),
        (TimeoutError(), "no answer in time"),
        (PermissionError("forbidden"), "access denied"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_other_libraries_are_recognised_without_them(error, reason):
    assert explain(error).reason.startswith(reason)
    try:
        raise FileNotFoundError("a wrapper") from error
    except FileNotFoundError as wrapper:
        assert explain(wrapper).reason.startswith(reason)


def test_an_error_that_nobody_knows_is_one_line(monkeypatch):
    def info(self, path, **_):
        raise library_error("SomethingNew")

    monkeypatch.setattr(HTTPFileSystem, "info", info)
    with pytest.raises(InputError, match=r"^http://h/a: cannot be read \(SomethingNew: two lines\)$"):
        files.version("http://h/a")
    assert explain(ValueError("a mistake of ours")) is None
