"""Patterns that name shards: the same for curation and for training."""

from __future__ import annotations

import os

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from curation.archive import list_sources
from curation.archive.source import shard_name
from curation.base import files, patterns
from curation.base.errors import CocuError
from curation.config import load
from curation.run.run import plan_run, portable
from curation.samples import list_shards


@pytest.fixture(params=["curation", "training"])
def tars(request):
    """Patterns -> paths, as curation and as training list them."""
    if request.param == "curation":
        return lambda *pattern: [shard.path for shard in list_shards(list(pattern))]
    return lambda *pattern: [source.path for source in list_sources(list(pattern), "jpg", "txt")]


@pytest.fixture
def touch(tmp_path):
    def touch(*names: str) -> list[str]:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"")
        return [str(tmp_path / name) for name in names]

    return touch


@pytest.fixture
def memory():
    """A remote folder."""
    yield "memory://test-patterns"
    files.remove("memory://test-patterns")


# --- brackets ---


def test_brackets_in_a_path_mean_themselves_where_such_a_path_is(tars, touch):
    assert tars(*touch("my photos [2024]/00000.tar")) == touch("my photos [2024]/00000.tar")


def test_a_glob_in_a_folder_with_brackets_finds_what_is_in_it(tars, touch, tmp_path):
    paths = touch("photos [a-z]/1.tar", "photos [a-z]/2.tar", "photos b/3.tar")
    assert tars(f"{tmp_path}/photos [a-z]/*.tar") == paths[:2]


def test_braces_in_a_folder_with_brackets_are_expanded(tars, touch, tmp_path):
    paths = touch("p [1]/00.tar", "p [1]/01.tar")
    assert tars(f"{tmp_path}/p [1]/{{00..01}}.tar") == paths


def test_brackets_are_characters_to_choose_from_where_no_such_path_is(tars, touch, tmp_path):
    paths = touch("1.tar", "2.tar", "3.tar")
    assert tars(f"{tmp_path}/[12].tar") == paths[:2]


def test_brackets_in_a_remote_path(tars, memory):
    for name in ("a [1]/0.tar", "a [1]/1.tar", "a 1/2.tar"):
        with files.atomic_write(f"{memory}/{name}") as stream:
            stream.write(b"")
    assert tars(f"{memory}/a [1]/0.tar") == [f"{memory}/a [1]/0.tar"]
    assert [shard_name(path) for path in tars(f"{memory}/a [1]/*.tar")] == ["0", "1"]
    assert [shard_name(path) for path in tars(f"{memory}/a [1]/[1-9].tar")] == ["1"]
    assert [shard_name(path) for path in tars(f"{memory}/a[ _]1/2.tar")] == ["2"]


@pytest.mark.parametrize("name", ["what?.tar", "a*b.tar", "{1,2}.tar", "{.tar", "a::b.tar", "100%.tar", "ü #1.tar"])
def test_a_local_name_that_is_there_means_itself(tars, touch, name):
    assert tars(*touch(name)) == touch(name)


# --- patterns joined by :: ---


def test_two_names_joined_are_two_shards(tars, touch):
    one, other = touch("one.tar", "sub/other.tar")
    assert tars(f"{one}::{other}") == [one, other]


def test_two_brace_patterns_joined_are_one_behind_the_other(tars, touch, tmp_path):
    paths = touch("a0.tar", "a1.tar", "b0.tar", "b1.tar")
    assert tars(f"{tmp_path}/a{{0..1}}.tar::{tmp_path}/b{{0..1}}.tar") == paths


def test_globs_and_addresses_can_be_joined(tars, touch, tmp_path):
    paths = touch("a.tar", "b.tar")
    joined = f"{tmp_path}/?.tar::s3://bucket/{{00..01}}.tar::http://[::1]:8000/9.tar"
    assert tars(joined) == [*paths, "s3://bucket/00.tar", "s3://bucket/01.tar", "http://[::1]:8000/9.tar"]


def test_joined_patterns_are_what_webdataset_makes_of_them(tars):
    from webdataset.shardlists import expand_urls

    for joined in ("a.tar::b.tar", "a{0..2}.tar::b{0..1}.tar", "{x,y}.tar::z.tar"):
        assert tars(joined) == expand_urls(joined)


def test_every_joined_part_is_resolved_and_recorded(world, tmp_path, elsewhere):
    config = load(str(world), {"shards": str(world.parent / "00000.tar") + "::sub/00009.tar"})
    assert config.shards == f"{world.parent}/00000.tar::{os.getcwd()}/sub/00009.tar"
    run = plan_run(config, str(tmp_path / "out"))
    assert [shard.name for shard in run.shards] == ["00000", "00009"]
    recorded = portable(config, run.folder)["shards"]
    assert [os.path.normpath(os.path.join(tmp_path / "out", part)) for part in recorded] == [
        str(world.parent / "00000.tar"),
        os.path.join(os.getcwd(), "sub/00009.tar"),
    ]


def test_an_archive_of_before_is_read_with_joined_patterns(tmp_path):
    assert patterns.resolve("a.tar::../b.tar::s3://c/d.tar", "/base/x") == "/base/x/a.tar::/base/b.tar::s3://c/d.tar"


# --- what no pattern can be ---


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        ("pipe:curl -s -L https://host/{00..10}.tar", "give the address itself: https://host/{00..10}.tar"),
        ("pipe:cat a.tar", "give the addresses of the tars"),
    ],
)
def test_commands_are_not_run(tars, command, instead):
    with pytest.raises(CocuError, match="commands are not run") as raised:
        tars(command)
    assert instead in str(raised.value)


def test_a_command_is_refused_before_its_path_is_resolved(world):
    with pytest.raises(CocuError, match="commands are not run"):
        plan_run(load(str(world), {"shards": "pipe:cat a.tar"}), "out")


def test_a_folder_says_what_to_do(tars, touch, tmp_path):
    touch("photos of me/1.jpg")
    with pytest.raises(CocuError, match="is a folder") as raised:
        tars(f"{tmp_path}/photos of me")
    assert f"write {tmp_path}/photos of me/*.tar" in str(raised.value)
    assert f"cocu pack '{tmp_path}/photos of me' -o packed/{{}}.tar" in str(raised.value)
    with pytest.raises(CocuError, match="is a folder"):
        tars(f"{tmp_path}/*")


def test_a_remote_folder_says_what_to_do(tars, memory):
    with files.atomic_write(f"{memory}/sub/0.tar") as stream:
        stream.write(b"")
    for name in ("sub", "sub/"):
        with pytest.raises(
            CocuError, match=r"is a folder; for the tars in it write memory://test-patterns/sub/\*\.tar"
        ):
            tars(f"{memory}/{name}")


def test_braces_that_do_not_match_are_one_line(tars):
    with pytest.raises(CocuError, match="braces do not match"):
        tars("s3://bucket/{00..10.tar")


@pytest.mark.parametrize("pattern", ["no/such/*.tar", "no/[ab].tar"])
def test_a_pattern_without_a_match_is_an_error(tars, pattern):
    with pytest.raises(CocuError, match="matches no file"):
        tars(pattern)


# --- addresses ---


def test_a_question_mark_begins_the_query_of_a_web_address(tars):
    signed = "https://bucket.s3.amazonaws.com/00000.tar?X-Amz-Signature=1f[2]*&X-Amz-Expires=600"
    assert tars(signed) == [signed]
    assert [shard.name for shard in list_shards([signed])] == ["00000"]


def test_braces_of_web_addresses_keep_their_query(tars):
    assert tars("https://h/{0..1}.tar?dl=1") == ["https://h/0.tar?dl=1", "https://h/1.tar?dl=1"]
    assert tars("s3://b/{0..1}.tar?versionId=7") == ["s3://b/0.tar?versionId=7", "s3://b/1.tar?versionId=7"]


def test_a_question_mark_elsewhere_is_any_character(tars, memory):
    for name in ("a1.tar", "a2.tar"):
        with files.atomic_write(f"{memory}/{name}") as stream:
            stream.write(b"")
    assert [shard_name(path) for path in tars(f"{memory}/a?.tar")] == ["a1", "a2"]


def test_hugging_face_addresses_are_expanded(tars):
    names = tars("hf://datasets/org/name@main/data/{000..001}.tar")
    assert names == [f"hf://datasets/org/name@main/data/{number}.tar" for number in ("000", "001")]


def test_a_glob_at_hugging_face_is_listed_there(tars, monkeypatch):
    from huggingface_hub import HfFileSystem

    monkeypatch.setattr(HfFileSystem, "glob", lambda self, path, **_: [path.replace("*", "1"), path.replace("*", "0")])
    assert tars("hf://datasets/org/name/*.tar") == [f"hf://datasets/org/name/{number}.tar" for number in (0, 1)]


def test_a_glob_that_cannot_be_listed_is_one_line(tars, monkeypatch):
    def refuse(self, path, **_):
        raise PermissionError("no")

    monkeypatch.setattr(MemoryFileSystem, "glob", refuse)
    with pytest.raises(CocuError, match=r"memory://b/\*\.tar: access denied"):
        tars("memory://b/*.tar")


def test_names_of_local_files_may_have_question_marks():
    assert shard_name("/data/what?.tar") == "what?"
    assert shard_name("https://h/00000.tar?x=1") == "00000"
