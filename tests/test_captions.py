"""The captions of a sample: fields, paths within JSON, their union, and what several captions mention together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import samples
from curation.archive.captions import Caption, Unusable, members_of, parse_column, parse_field, read_captions
from curation.archive.members import Unread
from curation.archive.sampling import choose, seeds
from curation.base.errors import CocuError
from curation.base.ragged import Ragged
from curation.concepts import Matcher, unite
from curation.samples import Reject, Sample, check_sample


def read(members: dict, *names: str, union: bool = True):
    return read_captions(members, [parse_field(name) for name in names], union)


def sidecar(**values) -> bytes:
    return json.dumps(values).encode()


# --- fields and paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("caption", ["a dog"]),
        ("blip.large", ["a red dog"]),
        ("blip.all", ["a dog", "two dogs"]),  # the list has one of them twice
        ("coco.text", ["a pet", "a cat"]),  # of every item of a list
        ("a.b", ["with a dot"]),  # a name with a dot before a path
        ("a.b.c", ["deep"]),
        ("mixed", ["a fox"]),  # what is no text is passed over
    ],
)
def test_a_json_field_by_path(path, expected):
    content = {
        "caption": " a dog ",
        "blip": {"large": "a red dog", "all": ["a dog", "two dogs", "a dog"]},
        "coco": [{"text": "a pet"}, {"id": 3}, {"text": "a cat"}, "text"],
        "a.b": "with a dot",
        "a": {"b": {"c": "deep"}},
        "mixed": [3, None, "a fox", ["a nested one"], {}],
    }
    if path == "a.b.c":
        del content["a.b"]
    name = f"json:{path}"
    assert read({"json": sidecar(**content)}, name) == [Caption(text, (name,)) for text in expected]
    assert read({"json": sidecar(**content)}, name, union=False) == [Caption(expected[0], (name,))]


@pytest.mark.parametrize(
    "content", [b"{}", sidecar(caption=None), sidecar(other="a dog"), sidecar(blip={"other": "x"})]
)
def test_a_field_that_json_lacks_is_not_present(content):
    assert read({"json": content}, "json:caption", "json:blip.large") is None
    assert read({"json": content, "txt": b"a cat"}, "json:caption", "txt", union=False) == [Caption("a cat", ("txt",))]


@pytest.mark.parametrize(
    ("members", "names", "reason"),
    [
        ({"json": b"{"}, ["json:a"], "json is not JSON with fields"),
        ({"json": b'"a dog"'}, ["json:a"], "json is not JSON with fields"),
        ({"json": b"\xff"}, ["json:a"], "json is not UTF-8"),
        ({"json": b"[" * 100_000}, ["json:a"], "json is not JSON with fields"),
        ({"json": sidecar(a=3)}, ["json:a"], "json:a holds no text"),
        ({"json": sidecar(a=[" ", ""])}, ["json:a"], "caption is empty"),
        ({"json": sidecar(a="x" * (1 << 20) + "y")}, ["json:a"], "caption is longer than 1 MiB"),
        ({"json": b" " * (16 << 20) + b"{}"}, ["json:a"], "json is longer than 16 MiB"),
        ({"json": sidecar(a=[str(number) for number in range(1001)])}, ["json:a"], "has more than 1,000 captions"),
        ({"txt": b"\xff"}, ["txt"], "caption is not UTF-8"),
        ({"txt": b" "}, ["txt"], "caption is empty"),
        ({"txt": Unread("is a hard link to x")}, ["txt"], "txt is a hard link to x"),
        ({"txt": sidecar(caption="a dog")}, ["txt"], "caption is JSON, not a sentence"),
        ({"txt": b" ", "alt": b"\xff"}, ["txt", "alt"], "caption is empty"),  # of several the first
    ],
)
@pytest.mark.parametrize("union", [True, False])
def test_why_a_field_gives_no_caption(members, names, reason, union):
    found = read(members, *names, union=union)
    assert isinstance(found, Unusable)
    assert found.reason == reason


def test_half_a_character_in_json_is_replaced():
    assert read({"json": b'{"a": "a \\ud800 dog"}'}, "json:a") == [Caption("a ? dog", ("json:a",))]


@pytest.mark.parametrize("name", ["", " ", ":", "json:", ":caption", "json: "])
def test_a_name_that_is_no_field(name):
    with pytest.raises(CocuError, match="is no field; write txt, or json:caption"):
        parse_field(name)


def test_members_are_compared_in_lower_case_columns_and_paths_as_they_are():
    assert read({"json": sidecar(Alt="a dog")}, "JSON:Alt") == [Caption("a dog", ("JSON:Alt",))]
    assert read({"json": sidecar(Alt="a dog")}, "json:alt") is None
    assert members_of(["TXT", "json:Alt", "json:b"]) == ["txt", "json"]
    assert parse_column("ALT").member == "ALT"


# --- the union ----------------------------------------------------------------------------------------------------------


def test_the_union_has_each_text_once_with_all_its_sources():
    members = {"txt": b"a dog", "alt": b" a dog\n", "json": sidecar(blip=["a cat", "a dog"], other="a cow")}
    assert read(members, "txt", "alt", "json:blip", "missing") == [
        Caption("a dog", ("txt", "alt", "json:blip")),
        Caption("a cat", ("json:blip",)),
    ]
    assert read(members, "alt", "txt", union=False) == [Caption("a dog", ("alt",))]


def test_what_one_field_lacks_another_gives():
    members = {"txt": b"\xff", "alt": b" ", "json": sidecar(a="a cow")}
    assert read(members, "txt", "alt", "json:a") == [Caption("a cow", ("json:a",))]
    assert read(members, "txt", "json:a", union=False) == Unusable("caption is not UTF-8")  # the first present wins


def test_a_sample_has_all_captions_or_says_why_not():
    fields = {"jpg": b"i", "txt": b"a dog", "json": sidecar(url="http://x", size=3)}
    sample = check_sample("k", fields, ["jpg"], ["txt", "json:caption"], union=True)
    assert sample == Sample("k", b"i", "a dog", captions=(Caption("a dog", ("txt",)),))
    assert check_sample("k", fields, ["jpg"], ["txt"]) == Sample("k", b"i", "a dog")
    assert check_sample("k", fields, ["jpg"], ["json:caption"]) == Reject(
        "k", "no caption field (json:caption), only jpg, json, txt; json has url, size"
    )
    # JSON as a whole is no caption, and what would be one is named
    whole = check_sample("k", fields, ["jpg"], ["txt", "json"], union=True)
    assert (whole.captions, whole.remedy) == ((Caption("a dog", ("txt",)),), "json:NAME")


def test_a_row_of_an_import_with_several_captions():
    rows = [[Caption("a dog", ("caption", "alt"))], Unusable("caption is empty"), None]
    checked = samples.check_import(["a", "b", "c"], rows, np.ones((3, 2), np.float32), set())
    assert checked == [
        Sample("a", b"", "a dog", captions=(Caption("a dog", ("caption", "alt")),)),
        Reject("b", "caption is empty"),
        Reject("c", "caption is empty"),
    ]


# --- what they mention --------------------------------------------------------------------------------------------------


def test_a_concept_of_two_captions_counts_once_and_names_both():
    matcher = Matcher(["dog", "cat", "cow"])
    texts = ["a cow and a dog", "two dogs", "a cat", "nothing"]
    united, sources = unite(matcher.match_all(texts), np.array([0, 0, 2, 2]), np.array([1, 2, 1, 3]), 4)
    assert [united.slice(row, row + 1).values.tolist() for row in range(4)] == [[2, 0], [], [1], []]
    assert sources.tolist() == [1, 3, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=4, unique=True), st.integers(1, 7)), max_size=4))
)
def test_the_union_is_that_of_plain_sets(images):
    captions = [(row, *caption) for row, own in enumerate(images) for caption in own]
    lists = Ragged.from_lists([concepts for _, concepts, _ in captions], np.int32)
    rows = np.array([row for row, _, _ in captions], np.int64)
    bits = np.array([bits for _, _, bits in captions], np.int32)
    united, sources = unite(lists, rows, bits, len(images))

    expected = []
    for own in images:
        said: dict[int, int] = {}
        for concepts, source in own:
            for concept in concepts:
                said[concept] = said.get(concept, 0) | source
        expected.append(said)
    assert united.values.tolist() == [concept for said in expected for concept in said]
    assert sources.tolist() == [source for said in expected for source in said.values()]
    assert united.lengths.tolist() == list(map(len, expected))


# --- which one training sees --------------------------------------------------------------------------------------------


def test_captions_are_drawn_alike_often_by_epoch_and_key():
    keys = [f"{number:05d}" for number in range(6000)]
    counts = np.full(len(keys), 3)
    first = choose(seeds(keys, 0, 0), counts)
    assert np.abs(np.bincount(first, minlength=3) - 2000).max() < 150  # four standard deviations
    second = choose(seeds(keys, 0, 1), counts)
    assert 0.28 < (first == second).mean() < 0.39  # as often as by chance
    assert (choose(seeds(keys[::-1], 0, 0), counts) == first[::-1]).all()
    assert (choose(seeds(keys, 1, 0), counts) != first).any()
    assert not choose(seeds(keys, 0, 0), np.ones(len(keys))).any()
