"""What a person changes of a vocabulary, as the csv that a run takes."""

from __future__ import annotations

import pytest

from curation.base.errors import CocuError
from curation.tools.browse.edits import VocabularyTable, read_entries
from curation.wordlists import read_concepts

TABLE = """concept,count,noun_share,visualness,kept,reason
dog,20,0.9000,0.8000,true,
red,30,0.1000,0.5000,false,not a noun
"wine, glass",5,1.0000,,true,
sea,7,0.7000,0.2000,false,not visual
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "vocabulary.csv").write_text(TABLE)
    return VocabularyTable(str(tmp_path / "vocabulary.csv"), str(tmp_path / "edited.csv"))


def test_the_file_is_what_a_run_takes_as_its_source(table):
    table.edit("dog", "rename", " hound  dog ")
    table.edit("red", "keep")
    table.edit("wine, glass", "drop")
    assert read_concepts(table.path) == ["hound dog", "red"]


def test_edits_are_read_back_and_can_be_undone(table, tmp_path):
    table.edit("dog", "rename", "hound")
    table.edit("sea", "keep")
    again = read_entries(str(tmp_path / "vocabulary.csv"), table.path)
    assert again == table.entries
    assert [entry.name for entry in again.values() if entry.is_edited] == ["dog", "sea"]
    assert again["dog"].concept == "hound"
    assert again["dog"].columns["visualness"] == "0.8000"
    table.edit("dog", "undo")
    table.edit("sea", "undo")
    assert not any(entry.is_edited for entry in read_entries(str(tmp_path / "vocabulary.csv"), table.path).values())
    assert (tmp_path / "vocabulary.csv").read_text() == TABLE


@pytest.mark.parametrize(
    ("name", "action", "to", "message"),
    [
        ("cat", "keep", "", "has no concept cat"),
        ("dog", "burn", "", "burn is none of keep, drop, rename, undo"),
        ("dog", "rename", "", "1 to 4 words, not 0"),
        ("dog", "rename", "a b c d e", "1 to 4 words, not 5"),
        ("dog", "rename", "# dog", "neither begins with #"),
        ("dog", "rename", "'dog'", "nor stands in quotes"),
    ],
)
def test_what_cannot_be_done_changes_nothing(name, action, to, message, table, tmp_path):
    with pytest.raises(CocuError, match=message):
        table.edit(name, action, to)
    assert not (tmp_path / "edited.csv").exists()
    assert not any(entry.is_edited for entry in table.entries.values())


def test_views_of_the_table(table):
    table.edit("sea", "keep")

    def names(show="all", sort="count", query=""):
        return [entry.concept for entry in table.view(show, sort, query)]

    assert names() == ["red", "dog", "sea", "wine, glass"]
    assert names(sort="visualness") == ["dog", "red", "sea", "wine, glass"]
    assert names(sort="noun_share") == ["wine, glass", "dog", "sea", "red"]
    assert names(sort="concept") == ["dog", "red", "sea", "wine, glass"]
    assert names("kept") == ["dog", "sea", "wine, glass"]
    assert names("left out") == ["red"]
    assert names("edited") == ["sea"]
    assert names(query="D") == ["red", "dog"]


def test_a_view_has_what_was_edited_since(table):
    def names(show="all"):
        return [entry.concept for entry in table.view(show, "concept", "")]

    assert names() == ["dog", "red", "sea", "wine, glass"]
    table.edit("dog", "rename", "zebra")
    assert names() == ["red", "sea", "wine, glass", "zebra"]
    assert (names("edited"), table.edited) == (["zebra"], 1)
