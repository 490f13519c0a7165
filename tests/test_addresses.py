"""What is written down or printed has no secrets of addresses and no control characters."""

from __future__ import annotations

import io
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from curation.base import terminal
from curation.base.addresses import is_redacted, redacted
from curation.base.errors import CocuError, InputError, UnknownKey, listed
from curation.base.terminal import printable


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://host/a.tar?X-Amz-Signature=SECRET&X-Amz-Date=1", "https://host/a.tar?hidden"),
        ("https://me:SECRET@host:8080/a.tar", "https://host:8080/a.tar"),
        ("https://SECRET@host/a.tar", "https://host/a.tar"),
        ("s3://KEY:SECRET@bucket/{00..03}.tar", "s3://bucket/{00..03}.tar"),
        ("https://host/a.tar#token=SECRET", "https://host/a.tar?hidden"),
        ("az://bucket/a.tar?sv=1&sig=SECRET", "az://bucket/a.tar?hidden"),
        ("https://host/{00..03}.tar?sig=SECRET::s3://b/c.tar", "https://host/{00..03}.tar?hidden::s3://b/c.tar"),
        ("memory:///me:SECRET@bucket/a.tar", "memory:///bucket/a.tar"),
        ("simplecache::https://me:SECRET@host/a.tar", "simplecache::https://host/a.tar"),
        # these have none
        ("data/{00000..00331}.tar", "data/{00000..00331}.tar"),
        ("s3://bucket/0000?.tar", "s3://bucket/0000?.tar"),
        ("s3://bucket/a.tar?versionId=3", "s3://bucket/a.tar?versionId=3"),
        ("https://huggingface.co/a.tar?download=true", "https://huggingface.co/a.tar?download=true"),
        ("abfs://container@account.dfs.core.windows.net/a.tar", "abfs://container@account.dfs.core.windows.net/a.tar"),
        ("hf://datasets/org/name@main/a.tar", "hf://datasets/org/name@main/a.tar"),
    ],
)
def test_addresses_lose_their_secrets_and_nothing_else(address, expected):
    assert redacted(address) == expected
    assert redacted(expected) == expected
    assert is_redacted(expected) == ("hidden" in expected and "::" not in expected)
    assert redacted(f"shards: {address}: no such file") == f"shards: {expected}: no such file"


@given(st.text(max_size=60))
def test_text_without_addresses_stays(text):
    assert "://" in text or redacted(text) == text


@pytest.mark.parametrize("kind", [CocuError, InputError, UnknownKey])
def test_no_error_of_ours_holds_a_secret(kind):
    error = kind("https://me:SECRET@host/a.tar?sig=SECRET: 403")
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == "https://host/a.tar?hidden: 403"
    assert "SECRET" not in repr(error)


ESCAPES = "a \x1b[2J\x1b]0;title\x07dog\x9b31m \u202egod\u2069\r\nerror: all is well"


def test_printed_text_has_no_control_characters():
    text = printable(ESCAPES)
    assert text.isprintable() and "dog" in text
    assert printable("an apple 🍎👨‍👩‍👧 תפוח é") == "an apple 🍎👨‍👩‍👧 תפוח é"


def test_errors_are_printed_without_control_characters(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda **options: Console(file=out, **options | {"stderr": False}))
    terminal.print_error(ESCAPES + " https://host/a?sig=SECRET")
    (line,) = out.getvalue().splitlines()
    assert line.isprintable() and "SECRET" not in line


def test_long_lists_of_names_are_cut():
    text = listed(f"field{number}" for number in range(50_000))
    assert len(text) < 200 and text.endswith("and 49,988 more")
    assert len(listed(["x" * 10_000])) < 100
    assert listed(["jpg", "txt"]) == "jpg, txt"
