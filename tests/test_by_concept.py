"""Archives chosen by concept, and archives shown to people."""

from __future__ import annotations

import base64
import io
import re
import shutil

import numpy as np
import pytest
import webdataset as wds
from PIL import Image
from tiny_world import ROWS, SHARDS

from curation.archive import ConceptArchive, Sampler, UnknownKey
from curation.base.errors import CocuError

NAMES = [f"{shard:05d}" for shard in range(SHARDS)]


def holds(row, *concepts):
    return any(entry["concept"] in concepts for entry in row["concepts"])


def says(row, concept):
    return re.search(rf"\b{concept}s?\b", row["caption"].lower()) is not None


# --- by concept ---------------------------------------------------------------------------------------------------------


def test_only_the_archives_of_a_concept_stay_and_they_stay_whole(archive, rows):
    boats = archive.filter(concept="boat")
    expected = [row for row in rows if holds(row, "boat")]
    assert 0 < len(expected) < len(rows)
    assert list(boats) == expected
    assert len(boats) == len(expected)
    assert sum(boats.rows) == len(expected)
    assert boats.to_arrow().to_pylist() == expected
    assert list(archive.filter(concept=["boat", "grape"])) == [row for row in rows if holds(row, "boat", "grape")]


def test_other_conditions_come_first(archive, rows):
    agreed = list(archive.filter(concept="boat", support=2))
    expected = []
    for row in rows:
        kept = [entry for entry in row["concepts"] if entry["support"] >= 2]
        if holds({"concepts": kept}, "boat"):
            expected.append(row | {"concepts": kept})
    assert 0 < len(expected) < sum(holds(row, "boat") for row in rows)
    assert agreed == expected

    unsaid = archive.filter(omitted=True, concept="boat")
    assert [row["key"] for row in unsaid] == [
        row["key"] for row in rows if holds(row, "boat") and not says(row, "boat")
    ]
    assert not any(says(row, entry["concept"]) for row in unsaid for entry in row["concepts"])


def test_a_filter_after_a_choice_counts_what_captions_of_the_chosen_mention(archive, rows):
    chosen = list(archive.filter(concept="boat").filter(omitted=True))
    expected = [
        row | {"concepts": [entry for entry in row["concepts"] if not says(row, entry["concept"])]}
        for row in rows
        if holds(row, "boat")
    ]
    assert chosen == expected


def test_keys_lead_to_the_chosen_archives_only(archive, rows):
    boats = archive.filter(concept="boat")
    inside = [row for row in rows if holds(row, "boat")]
    outside = next(row for row in rows if not holds(row, "boat"))
    order = np.random.default_rng(0).permutation(len(inside))
    assert boats.select([inside[number]["key"] for number in order]).to_pylist() == [inside[n] for n in order]
    assert inside[3]["key"] in boats
    assert outside["key"] not in boats
    with pytest.raises(UnknownKey, match=f"the archive of {outside['key']} holds none of the concepts"):
        boats[outside["key"]]
    for kind in ("cluster", "caption"):
        sampler = Sampler(kind, concepts=2)
        keys = [row["key"] for row in inside[:9]]
        assert boats.prompts(keys, sampler, 3, 1) == archive.prompts(keys, sampler, 3, 1)


def test_a_joined_stream_has_the_chosen_samples_only(archive, rows):
    boats = archive.filter(concept="boat")
    tars = [source.path for source in boats.sources]
    samples = list(wds.WebDataset(tars, shardshuffle=False).compose(boats.join))
    assert [sample["__key__"] for sample in samples] == [row["key"] for row in rows if holds(row, "boat")]
    assert all(holds(sample, "boat") for sample in samples)


def test_a_concept_that_is_not_there_is_said_with_the_nearest(archive, finished, tmp_path):
    with pytest.raises(CocuError, match=r"filter: 'baot' is no concept of the vocabulary \(did you mean 'boat'\?\)"):
        archive.filter(concept="baot")
    with pytest.raises(CocuError, match=r"unknown condition concepts.*did you mean 'concept'"):
        archive.filter(concepts="boat")
    folder = tmp_path / "alone"
    shutil.copytree(finished / "archives", folder / "archives")
    shutil.copy(finished / "manifest.json", folder)
    alone = ConceptArchive.open(folder)  # which says nothing of the vocabulary
    assert len(alone.filter(concept="baot")) == 0
    assert len(alone.filter(concept="boat")) == len(archive.filter(concept="boat"))


# --- for people ---------------------------------------------------------------------------------------------------------


def test_an_archive_is_a_line_and_a_small_table(archive, finished, monkeypatch):
    monkeypatch.setattr("curation.archive.reader.read_archive", None)  # nothing is read for them
    line = repr(archive)
    assert line == (
        f"ConceptArchive({str(finished)!r}: archives {SHARDS * ROWS}, shards {SHARDS}, concepts 8, expansion vision, "
        "ranking cocu)"
    )
    chosen = archive.filter(support=2, top=3).filter(concept="boat")
    assert repr(chosen).endswith("filters support=2, top=3, then concept=boat)")
    page = chosen._repr_html_()
    assert len(page) < 1000
    assert "<td>support=2, top=3, then concept=boat</td>" in page


def test_the_first_archives_and_those_of_keys(archive, rows, monkeypatch):
    assert archive.head(3) == rows[:3]
    assert archive.head(ROWS + 2) == rows[: ROWS + 2]
    assert archive.head(1000) == rows
    keys = [rows[30]["key"], rows[2]["key"]]
    shown = archive.show(*keys)
    assert shown == [rows[30], rows[2]]
    lines = repr(shown).splitlines()
    assert len(lines) == 4
    assert lines[0] == f"{keys[0]}: {rows[30]['caption']}"
    best = rows[30]["concepts"][0]
    assert lines[1].startswith(f"    {best['concept']} {best['score']:.2f}, ")
    assert archive.show((NAMES[1], keys[0])) == [rows[30]]
    with pytest.raises(UnknownKey):
        archive.show("absent")

    read = []
    monkeypatch.setattr(
        ConceptArchive, "table", lambda self, name, table=ConceptArchive.table: read.append(name) or table(self, name)
    )
    archive.head(2)
    assert read == NAMES[:1]


def test_a_notebook_shows_pictures_and_bars(archive, rows):
    page = archive.show(rows[30]["key"], rows[2]["key"])._repr_html_()
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures] == [(40, 40)] * 2
    assert page.index(rows[30]["caption"]) < page.index(rows[2]["caption"])
    card = page.split("<b>")[1]
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", card)]
    scores = np.array([entry["score"] for entry in rows[30]["concepts"]])
    expected = 4 + 96 * (scores - scores.min()) / (scores.max() - scores.min())
    assert widths == pytest.approx(expected.tolist(), abs=0.06)


def test_what_is_shown_cannot_break_a_notebook_or_a_terminal(archive):
    from curation.archive.display import Rows

    evil = {"concept": "<b>x", "score": 1.0, "cluster": 0, "support": 1}
    shown = Rows(archive, [{"key": "k", "caption": "<script>\x1b[2J", "concepts": [evil]}], [NAMES[0]])
    assert "<script>" not in shown._repr_html_()
    assert "<b>x" not in shown._repr_html_()
    assert "\x1b" not in repr(shown) + shown._repr_html_()


def test_without_tars_the_archives_are_shown_without_pictures(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "deeper" / "out")  # its tars are not where the manifest says
    page = ConceptArchive.open(folder).head(2)._repr_html_()
    assert "<img" not in page
    assert "00000.tar: no such file" in page
    assert page.count("<b>") == 2
