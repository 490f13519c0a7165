"""Paths and files: whole or not at all, local or remote, hashed."""

import hashlib
import io
import os
import tempfile
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base import files, patterns
from curation.base.errors import CocuError, OutputError


@pytest.fixture(params=["local", "memory"])
def folder(request, tmp_path):
    """A local folder and a remote one: everything that writes works in both."""
    if request.param == "local":
        yield str(tmp_path / "out")
    else:
        yield "memory://test-storage/out"
        files.remove("memory://test-storage")


def content(path):
    with files.open_file(path) as stream:
        return stream.read()


# --- whole or not at all -----------------------------------------------------------------------------------------------


def write(path, data):
    with files.atomic_write(path) as stream:
        stream.write(data)


def write_by_name(path, data):
    with files.atomic_path(path) as local, open(local, "wb") as stream:
        stream.write(data)


WRITERS = {"atomic_write": write, "atomic_path": write_by_name}
writers = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)


@writers
def test_file_appears_whole_in_a_folder_that_is_made(writer, folder):
    path = files.join(folder, "new", "a.bin")
    writer(path, b"x" * 100_000)
    assert content(path) == b"x" * 100_000
    assert files.files_in(files.join(folder, "new")) == ["a.bin"]


@writers
def test_existing_file_is_replaced(writer, folder):
    path = files.join(folder, "a.bin")
    writer(path, b"old and longer")
    writer(path, b"new")
    assert content(path) == b"new"
    assert files.files_in(folder) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_write_that_fails_leaves_nothing_and_the_old_file_intact(error, before, folder):
    path = files.join(folder, "a.bin")
    if before:
        write(path, before)
    with pytest.raises(error), files.atomic_write(path) as stream:
        stream.write(b"half")
        raise error
    assert files.files_in(folder) == (["a.bin"] if before else [])
    assert not before or content(path) == before


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("before", [None, b"old"])
def test_write_by_name_that_fails_leaves_nothing_and_the_old_file_intact(error, before, folder):
    path = files.join(folder, "a.bin")
    if before:
        write(path, before)
    with pytest.raises(error), files.atomic_path(path) as local:
        with open(local, "wb") as stream:
            stream.write(b"half")
        raise error
    assert files.files_in(folder) == (["a.bin"] if before else [])
    assert not before or content(path) == before


def test_block_that_fails_before_it_writes_by_name_raises_its_own_error(folder):
    with pytest.raises(ValueError, match="mine"), files.atomic_path(files.join(folder, "a.bin")):
        raise ValueError("mine")


def test_nothing_is_at_the_path_while_the_block_runs(tmp_path):
    path = tmp_path / "a.bin"
    with files.atomic_write(str(path)) as stream:
        stream.write(b"x" * 100_000)
        stream.flush()
        assert not path.exists()
        (partial,) = tmp_path.iterdir()
        assert files.TEMPORARY in partial.name  # what a killed run leaves is recognised by this
    with files.atomic_path(str(path)) as local:
        assert os.path.dirname(local) == str(tmp_path)  # the same file system, so that the rename is atomic
        assert files.TEMPORARY in os.path.basename(local)
        assert path.read_bytes() == b"x" * 100_000
        write(local, b"new")


@writers
def test_two_writers_of_one_path_do_not_meet(writer, tmp_path):
    path = str(tmp_path / "a.bin")
    with files.atomic_write(path) as stream:
        stream.write(b"first")
        writer(path, b"second")
        assert content(path) == b"second"
    assert content(path) == b"first"
    assert files.files_in(str(tmp_path)) == ["a.bin"]


@writers
def test_file_in_the_working_directory_can_be_written(writer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer("plain.bin", b"x")
    assert (tmp_path / "plain.bin").read_bytes() == b"x"


@writers
def test_file_urls_are_local_paths(writer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    writer(f"file://{tmp_path}/sub/a.bin", b"x")
    assert (tmp_path / "sub" / "a.bin").read_bytes() == b"x"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sub"]


# --- paths -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/a.tar", "/base/data/a.tar"),
        ("../a.tar", "/a.tar"),
        ("./x//a.tar", "/base/x/a.tar"),
        ("/data/a.tar", "/data/a.tar"),
        ("{00..03}.tar", "/base/{00..03}.tar"),
        ("${COCU_TEST}/a.tar", "/base/here/a.tar"),
        ("$COCU_TEST/a.tar", "/base/here/a.tar"),
        ("~/a.tar", "/home/someone/a.tar"),
        ("s3://bucket/../a.tar", "s3://bucket/../a.tar"),
        ("gs://bucket/${COCU_TEST}/a.tar", "gs://bucket/here/a.tar"),
        ("https://host/a.tar?x=1", "https://host/a.tar?x=1"),
        ("memory://a.tar", "memory://a.tar"),
        ("file:///data/a.tar", "/data/a.tar"),
    ],
)
def test_paths_are_resolved_from_the_folder_and_urls_stay(path, expected, monkeypatch):
    monkeypatch.setenv("COCU_TEST", "here")
    monkeypatch.setenv("HOME", "/home/someone")
    assert files.resolve(path, "/base") == expected


@pytest.mark.parametrize("path", ["${COCU_UNSET}/a.tar", "$COCU_UNSET/a.tar", "s3://${COCU_UNSET}/a.tar"])
def test_environment_variable_that_is_not_set_is_an_error_naming_it(path, monkeypatch):
    monkeypatch.delenv("COCU_UNSET", raising=False)
    with pytest.raises(CocuError, match=r"COCU_UNSET is not set"):
        files.resolve(path, "/base")


@pytest.mark.parametrize(
    ("path", "remote"),
    [
        ("/a", False),
        ("a/b", False),
        ("C:/a", False),
        ("file:///a", False),
        ("s3://a", True),
        ("memory://a", True),
        ("git+ssh://a", True),
        ("a/s3://b", False),
    ],
)
def test_remote_paths_are_told_by_their_scheme(path, remote):
    assert files.is_remote(path) == remote


def test_join_adds_one_slash():
    assert files.join("/a/", "b", "c") == files.join("/a", "b", "c") == "/a/b/c"
    assert files.join("s3://a/", "b", "c") == files.join("s3://a", "b", "c") == "s3://a/b/c"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("{2..0}.tar", ["2.tar", "1.tar", "0.tar"]),
        ("{9..10}-{x,y}", ["9-x", "9-y", "10-x", "10-y"]),
        ("{098..100}", ["098", "099", "100"]),
        ("{0..2}/{0..1}", ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1"]),
        ("{a,b{1,2}}", ["a", "b1", "b2"]),
        ("s3://b/{0,1}", ["s3://b/0", "s3://b/1"]),
    ],
)
def test_braces_expand_as_webdataset_expands_them(pattern, expected):
    from webdataset.shardlists import expand_urls

    assert expand_urls(pattern) == expected
    assert patterns.expand(pattern) == expected


def test_globs_find_sorted_files(folder):
    for name in ("b.tar", "a.tar", "c.txt", "sub/d.tar"):
        write(files.join(folder, name), b"")
    assert [path.rsplit("/", 1)[1] for path in patterns.expand(files.join(folder, "*.tar"))] == ["a.tar", "b.tar"]
    assert [path.rsplit("/", 1)[1] for path in patterns.expand(files.join(folder, "*/?.tar"))] == ["d.tar"]
    assert patterns.expand(files.join(folder, "no*")) == []
    assert all(files.exists(path) for path in patterns.expand(files.join(folder, "*")))


# --- reading -----------------------------------------------------------------------------------------------------------


def test_files_of_a_missing_folder_are_none(folder):
    assert files.files_in(files.join(folder, "missing")) == []


def test_files_in_a_folder_are_sorted_names_without_folders(folder):
    for name in ("b", "a.txt", "sub/c"):
        write(files.join(folder, name), b"")
    assert files.files_in(folder) == files.files_in(folder + "/") == ["a.txt", "b"]


def test_missing_file_is_an_error_naming_it(folder):
    path = files.join(folder, "missing.bin")
    for action in (files.open_file, files.version, files.read_json, files.file_digest):
        with pytest.raises(CocuError, match=r"out/missing\.bin: no such file"):
            action(path)


def test_remove_takes_files_and_folders_and_nothing_is_no_error(folder):
    for name in ("a", "sub/b", "sub/c/d"):
        write(files.join(folder, name), b"")
    files.remove(files.join(folder, "a"))
    assert not files.exists(files.join(folder, "a"))
    files.remove(files.join(folder, "sub"))
    assert not files.exists(files.join(folder, "sub/c/d"))
    files.remove(files.join(folder, "sub"))


def test_local_path_has_the_content_of_the_file(folder):
    path = files.join(folder, "a.bin")
    write(path, b"content")
    with open(files.local_path(path), "rb") as stream:
        assert stream.read() == b"content"


def test_local_copy_of_a_remote_file_follows_its_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = "memory://cocu-local-copy/a.bin"
    write(path, b"first")
    first = Path(files.local_path(path))
    assert first.read_bytes() == b"first"
    assert files.local_path(path) == str(first)  # copied once
    write(path, b"second, longer")
    assert Path(files.local_path(path)).read_bytes() == b"second, longer"
    write(files.join("memory://cocu-local-copy", "b.bin"), b"other")
    assert Path(files.local_path("memory://cocu-local-copy/b.bin")).read_bytes() == b"other"
    assert len(list(first.parent.iterdir())) == 2  # nothing of the first version is left
    assert first.parent.stat().st_mode & 0o077 == 0


def test_a_folder_for_copies_that_others_may_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"cocu-{os.getuid()}").mkdir()
    (tmp_path / f"cocu-{os.getuid()}").chmod(0o777)
    write("memory://cocu-local-copy/a.bin", b"x")
    with pytest.raises(OutputError, match="not owned by this user alone"):
        files.local_path("memory://cocu-local-copy/a.bin")


def test_json_is_read_as_written(folder):
    path, value = files.join(folder, "a.json"), {"b": [1, 2.5, None], "a": "é🐶"}
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert list(files.read_json(path)) == ["b", "a"]
    assert "é🐶" in content(path).decode()


@pytest.mark.parametrize("data", [b"", b"{", b"{'a': 1}", b'{"a": 1} x', b"\xff\xfe", b"\x80"])
def test_json_that_is_garbage_is_an_error_naming_the_file(data, folder):
    path = files.join(folder, "a.json")
    write(path, data)
    with pytest.raises(CocuError, match=r"out/a\.json") as raised:
        files.read_json(path)
    assert "\n" not in str(raised.value)


# --- what tells that a file is unchanged -------------------------------------------------------------------------------


def test_version_stays_while_the_file_does_and_changes_with_its_size(folder):
    path = files.join(folder, "a.bin")
    write(path, b"four")
    first = files.version(path)
    assert files.version(path) == first
    write(path, b"five5")
    assert files.version(path)["size"] == 5
    assert files.version(path) != first


def test_version_changes_with_the_time_of_modification(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"four")
    os.utime(path, (1000, 1000))
    first = files.version(str(path))
    path.write_bytes(b"4444")
    os.utime(path, (2000, 2000))
    assert files.version(str(path)) != first


def test_version_follows_the_etag_of_a_remote_file(monkeypatch):
    found = set()
    for tag in ("one", "two"):
        monkeypatch.setattr(MemoryFileSystem, "info", lambda self, path, tag=tag, **_: {"size": 4, "ETag": tag})
        found.add(str(files.version("memory://a.bin")))
    assert len(found) == 2


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def reordered(value):
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_digest_does_not_depend_on_the_order_of_keys(value):
    assert files.digest(value) == files.digest(reordered(value))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (({"a": 1},), ({"a": 2},)),
        (([1, 2],), ([2, 1],)),
        ((1, 2), ([1, 2],)),
        (("ab",), ("a", "b")),
        ((1,), ("1",)),
        ((None,), ()),
        ((True,), (1,)),
        ((0.1,), (0.1 + 1e-16,)),
    ],
)
def test_digests_of_different_values_differ(one, other):
    assert files.digest(*one) != files.digest(*other)


def test_digest_is_stable_between_processes_and_releases():
    expected = hashlib.blake2b(b'["x", {"a": 1, "b": "\xc3\xa9"}]', digest_size=16).hexdigest()
    assert files.digest("x", {"b": "é", "a": 1}) == expected


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64), st.lists(st.integers(0, 20), max_size=5))
def test_hash_is_that_of_the_whole_file_after_any_partial_reads(data, sizes):
    reader, parts = files.HashingReader(io.BytesIO(data)), []
    for size in sizes:
        parts.append(reader.read(size))
    assert b"".join(parts) == data[: sum(sizes)]
    assert reader.finish() == hashlib.blake2b(data, digest_size=16).hexdigest()


def test_hash_of_a_large_file_is_read_in_parts(folder):
    data = bytes(range(256)) * 10_000  # more than the 1 MiB that is read at once
    path = files.join(folder, "a.bin")
    write(path, data)
    with files.open_file(path) as stream:
        reader = files.HashingReader(stream)
        assert reader.read(1000) == data[:1000]
        assert reader.finish() == files.file_digest(path) == hashlib.blake2b(data, digest_size=16).hexdigest()
        assert reader.read() == b""
