"""The page at the end of a run: what it shows, and that nothing in the data can break it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from report_page import Page, number, rows
from tiny_world import ROWS, SHARDS, jpeg, write_tar, write_world

from curation.archive.members import read_members
from curation.archive.thumbnails import read_fields, thumbnail
from curation.base.errors import InputError
from curation.base.markup import text
from curation.run.run import open_run
from curation.tools import report
from curation.tools.report import __main__ as program
from curation.tools.report import examples as report_examples
from curation.tools.report import record, survey
from curation.tools.report.charts import folded
from pipelines.curate import main

EVIL = "<script>alert(1)</script> \"apple\" & 'leaf' <img src=x onerror=alert(2)> \x00\x1b boat"


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page(finished / "report.html")


# --- what it shows -------------------------------------------------------------------------------------------------------


def test_the_page_stands_alone(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.source.replace("data:image/jpeg;base64,", ""))
    assert not page.of("script") + page.of("link") + page.of("iframe")
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.of("meta", name="viewport")
    assert "default-src 'none'" in page.of("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "prefers-color-scheme: dark" in page.source
    assert len(page.source) < 3_000_000


def test_it_can_be_read_without_seeing_it(page):
    assert page.of("html", lang="en")
    assert all(image["alt"] for image in page.of("img"))
    assert all(header.get("scope") in ("col", "row") for header in page.of("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.of("section")} <= set(ids)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))


def test_24_samples_with_pictures_captions_and_archives(page, finished):
    assert len(page.of("article")) == report_examples.EXAMPLES == 24
    archives = {row["key"]: row for row in rows(finished, "archives")}
    cards = page.source.split("<article>")[1:]
    shown = set()
    for card in cards:
        (key,) = re.findall(r'class="key"><bdi>(\w+)</bdi>', card)
        shown.add(key)
        row = archives[key]
        assert f'<p class="caption"><bdi>{row["caption"]}</bdi>' in card
        names = re.findall(r'class="name">([^<]+)<', card)
        assert names == [concept["concept"] for concept in row["concepts"]]
        scores = [float(score) for score in re.findall(r'class="score">([\d.]+)<', card)]
        assert scores == pytest.approx([concept["score"] for concept in row["concepts"]], abs=0.0051)
        items = card.split("<li title=")[1:]
        new = {name for name, item in zip(names, items, strict=True) if '<span class="tag new">' in item}
        said = [name for name in names if re.search(rf"\b{name}s?\b", row["caption"].lower())]
        assert new == set(names) - set(said)
        assert len(re.findall("<img", card)) == 1 + 3  # itself, and three more neighbours
    assert len(shown) == 24
    sizes = [Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))).size for image in page.of("img")]
    assert set(sizes) == {(40, 40)}  # the data's own, never enlarged


def test_ticks_are_the_truth_of_the_sidecars(page, world):
    import json

    truth = {}
    for path in sorted(world.parent.glob("0000?.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    truth[member.name[:-5]] = json.loads(tar.extractfile(member).read())
    for card in page.source.split("<article>")[1:]:
        (key,) = re.findall(r'class="key"><bdi>(\w+)</bdi>', card)
        ticked = set(re.findall(r'class="name">([^<]+)<span class="tag seen"', card))
        names = set(re.findall(r'class="name">([^<]+)<', card))
        assert ticked == names & {*truth[key]["objects"], *truth[key]["stuff"]}


def test_the_histogram_counts_the_archives(page, finished):
    captions = np.bincount([len(row["concepts"]) for row in rows(finished, "embeddings")], minlength=20)
    archives = np.bincount([len(row["concepts"]) for row in rows(finished, "archives")], minlength=20)
    table = page.cells["histogram-table"][1:]
    assert [int(row[0]) for row in table] == list(range(len(table)))
    assert [number(row[1]) for row in table] == captions[: len(table)].tolist()
    assert [number(row[3]) for row in table] == archives[: len(table)].tolist()
    assert sum(number(row[1]) for row in table) == sum(number(row[3]) for row in table) == SHARDS * ROWS
    heights = {kind: [float(r["height"]) for r in page.of("rect", **{"class": kind})] for kind in ("before", "after")}
    expected = np.stack([captions, archives])[:, : len(table)]
    np.testing.assert_allclose(list(heights.values()), 210 * expected / expected.max(), atol=0.06)


def test_the_vocabulary_table_counts_captions_and_archives(page, finished):
    table = {row[0]: row for row in page.cells["vocabulary"][1:]}
    vocabulary = pq.read_table(finished / "vocabulary.parquet").to_pylist()
    archives = rows(finished, "archives")
    assert len(table) == len(vocabulary)
    for concept in vocabulary:
        _, said, found, visualness = table[concept["concept"]]
        assert number(said) == concept["count"]
        assert number(found) == sum(concept["concept"] in [c["concept"] for c in row["concepts"]] for row in archives)
        assert float(visualness) == pytest.approx(concept["visualness"], abs=0.0051)


def test_long_lists_share_the_last_bar():
    counts = np.arange(40)
    assert folded(counts).tolist() == [*range(24), sum(range(24, 40))]
    assert folded(np.array([3, 4])).tolist() == [3, 4]


# --- untrusted data ------------------------------------------------------------------------------------------------------


def test_text_is_escaped_cleaned_and_shortened():
    assert text('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert text("a\x00b\x1bc\nd") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}d"
    assert text("<" * 9, 5) == "&lt;" * 4 + "…"


def test_captions_keys_and_concepts_cannot_break_the_page(tmp_path, tiny_clip):
    members = []
    for row in range(5):
        members += [(f'k<i>&"{row}.jpg', jpeg(ground="white", a="red")), (f'k<i>&"{row}.txt', EVIL.encode())]
    write_tar(tmp_path / "00000.tar", members)
    (tmp_path / "concepts.txt").write_text("<b>apple</b>\nleaf\nboat\n")
    path = write_world(tmp_path / "evil.yaml", tiny_clip, shards="00000.tar")
    assert main(["--data", str(path), "--output", str(tmp_path / "out"), "--runner", "inprocess"]) == 0
    page = Page(tmp_path / "out/report.html")
    assert len(page.of("article")) == 5
    assert not page.of("script") + page.of("i", onerror="alert(2)") + page.of("img", src="x")
    assert {image["src"].partition(",")[0] for image in page.of("img")} == {"data:image/jpeg;base64"}
    assert page.words.count("<script>alert(1)</script>") == 5 * (1 + 3)  # as words: captions of samples and neighbours
    assert 'k<i>&"0' in page.words
    assert "\x00" not in page.source


# --- runs of other kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", ["caption", "tagging", "text"])
def test_every_expansion_has_a_page(expansion, finished, world, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "out")
    assert (
        main(["--data", str(world), "--output", str(folder), "--archive.expansion", expansion, "--runner", "inprocess"])
        == 0
    )
    page = Page(folder / "report.html")
    assert len(page.of("article")) == 24
    assert bool(page.of("ul", **{"class": "neighbours"})) == (expansion == "text")


def test_neighbours_of_another_run_are_shown_from_its_tars(finished, world, tiny_clip, tmp_path):
    write_tar(tmp_path / "new.tar", [("one.jpg", jpeg(ground="khaki", a="red")), ("one.txt", b"an apple")])
    path = write_world(
        tmp_path / "new.yaml",
        tiny_clip,
        name="new",
        shards="new.tar",
        vocabulary={"source": str(world.parent / "concepts.txt")},
    )
    run = [
        "--data",
        str(path),
        "--output",
        str(tmp_path / "out"),
        "--retrieval.data",
        str(finished),
        "--runner",
        "inprocess",
    ]
    assert main(run) == 0
    page = Page(tmp_path / "out/report.html")
    assert len(page.of("article")) == 1
    assert len(page.of("img")) == 1 + 4
    assert {image["alt"] for image in page.of("img")[1:]} <= {row["caption"] for row in rows(finished, "archives")}


def test_imported_embeddings_have_captions_but_no_pictures(world, tiny_clip, tmp_path):
    for kind in ("img_emb", "metadata"):
        (tmp_path / "import" / kind).mkdir(parents=True)
    captions = ["an apple", "a boat on snow", "a leaf", "two boats", "apple on sand"]
    embeddings = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float16)
    np.save(tmp_path / "import/img_emb/img_emb_0.npy", embeddings)
    table = pa.table({"key": [f"k{i}" for i in range(5)], "caption": captions})
    pq.write_table(table, tmp_path / "import/metadata/metadata_0.parquet")
    path = write_world(
        tmp_path / "import.yaml",
        tiny_clip,
        shards="",
        embeddings="import",
        vocabulary={"source": str(world.parent / "concepts.txt")},
    )
    assert main(["--data", str(path), "--output", str(tmp_path / "out"), "--runner", "inprocess"]) == 0
    page = Page(tmp_path / "out/report.html")
    assert (len(page.of("article")), len(page.of("img"))) == (5, 0)
    assert page.of("div", **{"class": "examples bare"})  # without places for pictures
    assert "imported embeddings, which come without images" in page.words
    assert all(caption in page.words for caption in captions)


# --- reading little, and failing softly ----------------------------------------------------------------------------------


def test_a_few_members_are_read_as_the_whole_tar_is(world):
    path = str(world.parent / "00001.tar")
    with open(path, "rb") as stream:
        whole = dict(read_members(stream))
    keys = ["010000", "010007", "010023", "bad1", "absent"]
    found = read_fields(path, keys, ["jpg", "JSON"])
    assert found == {
        key: {name: data for name, data in whole[key].items() if name in ("jpg", "json")}
        for key in keys
        if key in whole
    }
    with pytest.raises(InputError, match="cannot be read as a tar"):
        read_fields(str(world), keys, ["jpg"])


def test_thumbnails_are_bounded_and_never_enlarged():
    out = io.BytesIO()
    Image.new("RGBA", (600, 300), (255, 0, 0, 128)).save(out, "PNG")
    small = Image.open(io.BytesIO(base64.b64decode(thumbnail(out.getvalue(), 100).partition(",")[2])))
    assert (small.size, small.mode, small.format) == ((100, 50), "RGB", "JPEG")
    with pytest.raises(InputError, match="cannot be decoded"):
        thumbnail(b"no image", 100)


def test_only_as_much_is_read_as_allowed(finished, monkeypatch):
    monkeypatch.setattr(report_examples, "READ_AT_MOST", 1)
    found = report.collect(open_run(str(finished)))
    pictures = [example.picture for example in found.examples]
    with_image = {picture.shard.name for picture in pictures if picture.image}
    assert len(with_image) == 1
    assert all(bool(picture.image) == (picture.shard.name in with_image) for picture in pictures)
    assert "are not shown, because they would take too long to read" in found.notes[-1]


def test_many_rows_are_sampled(finished, monkeypatch):
    monkeypatch.setattr(survey, "ENOUGH", ROWS)
    monkeypatch.setattr(record, "EXAMPLE_SHARDS", 1)
    found = report.collect(open_run(str(finished)))
    assert found.survey.rows == ROWS
    assert len({example.picture.shard for example in found.examples}) == 1
    assert f"Of {ROWS} images in random shards, of {SHARDS * ROWS}." in report.page_of(open_run(str(finished)))


def test_the_same_run_gives_the_same_page(finished):
    assert report.page_of(open_run(str(finished))) == (finished / "report.html").read_text()


def test_a_tar_that_is_gone_costs_its_pictures_only(finished, tmp_path, world, capsys):
    data = shutil.copytree(world.parent, tmp_path / "data")
    folder = tmp_path / "out"
    assert main(["--data", str(data / "world.yaml"), "--output", str(folder), "--runner", "inprocess"]) == 0
    (data / "00001.tar").unlink()
    assert program.main([str(folder)]) == 0
    page = Page(folder / "report.html")
    assert len(page.of("article")) == 24
    cards = page.source[page.source.index("<article>") :]
    assert 0 < cards.count("<img") < 24 * 4
    assert "00001.tar: no such file" in page.words


def test_a_run_without_its_page_gets_it_and_a_failure_loses_nothing(finished, world, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "out")
    command = ["--data", str(world), "--output", str(folder), "--runner", "inprocess"]
    before = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    (folder / "vocabulary.csv").rename(folder / "gone.csv")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "already finished" in " ".join(out.split())
    assert f"try again with cocu report {folder}" in out
    assert program.main([str(folder)]) == 1
    assert "vocabulary.csv: no such file" in capsys.readouterr().err
    assert not (folder / "report.html").exists()
    (folder / "gone.csv").rename(folder / "vocabulary.csv")
    assert main(command) == 0
    assert "Pictures and numbers" in capsys.readouterr().out
    assert (folder / "report.html").read_text() == before


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_browser_draws_it_without_complaint(finished, tmp_path):
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    switches += (
        f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --enable-logging=stderr"
    )
    picture = tmp_path / "page.png"
    command = ["chromium", *switches.split(), f"--screenshot={picture}", "--window-size=500,900"]
    run = subprocess.run([*command, f"file://{finished}/report.html"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in run.stderr
    assert len(Image.open(picture).convert("RGB").getcolors(1 << 20)) > 100
