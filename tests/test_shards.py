"""Lists of shards."""

import pytest

from curation import samples
from curation.base.errors import CocuError

# --- lists of shards ---------------------------------------------------------------------------------------------------


def stems(patterns):
    found = samples.list_shards(patterns)
    assert [shard.index for shard in found] == list(range(len(found)))
    return [shard.name for shard in found]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/{000..003}.tar", ["000", "001", "002", "003"]),
        ("d/{8..11}.tar", ["8", "9", "10", "11"]),
        ("d/{08..11}.tar", ["08", "09", "10", "11"]),
        ("d/{0..10}.tar", [str(number) for number in range(11)]),  # as in bash and webdataset: 0, not 00
        ("d/{0..1}-{a,b}.tar", ["0-a", "0-b", "1-a", "1-b"]),
        ("d/{b,a}.tar", ["b", "a"]),
        ("d/{a,b{1,2}}.tar", ["a", "b1", "b2"]),
        ("d/{{a,b},c}.tar", ["a", "b", "c"]),
        ("d/{a,b{00..02}}.tar", ["a", "b00", "b01", "b02"]),
        ("d/one.tar", ["one"]),
        ("d/one.tar.gz", ["one"]),
        ("d/a.b.tar", ["a.b"]),
        ("s3://bucket/{0..1}.tar", ["0", "1"]),
    ],
)
def test_braces_expand_in_order(pattern, expected):
    assert stems(pattern) == expected


def test_globs_are_sorted_and_lists_keep_their_order(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", "x1.tar"):
        (tmp_path / name).write_bytes(b"")
    assert stems(f"{tmp_path}/*.tar") == ["a", "b", "x1"]
    assert stems([f"{tmp_path}/x?.tar", f"{tmp_path}/[ab].tar", f"{tmp_path}/{{z,y}}.tar"]) == [
        "x1",
        "a",
        "b",
        "z",
        "y",
    ]
    assert samples.list_shards(f"{tmp_path}/x*.tar") == [samples.Shard(0, "x1", str(tmp_path / "x1.tar"))]


def test_braces_and_globs_combine(tmp_path):
    for name in ("b-1.tar", "b-2.tar", "a-1.tar"):
        (tmp_path / name).write_bytes(b"")
    assert stems(f"{tmp_path}/{{b,a}}-*.tar") == ["b-1", "b-2", "a-1"]


def test_pattern_that_matches_nothing_is_an_error_even_beside_one_that_does(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(CocuError, match=r"no-\*\.tar matches no file"):
        samples.list_shards([f"{tmp_path}/a.tar", f"{tmp_path}/no-*.tar"])


@pytest.mark.parametrize("patterns", ["{x,y}/a.tar", ["a.tar", "b.tar", "a.tar"], ["a.tar", "other/a.tar.gz"]])
def test_two_shards_with_one_stem_are_an_error_naming_both(patterns):
    with pytest.raises(CocuError, match=r"a\.tar and .*a\.tar.* are both called a"):
        samples.list_shards(patterns)
