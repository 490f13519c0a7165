"""A vocabulary that is built, from captions to archives: parts of speech, names, and words that stay."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from curated import curate
from tiny_world import COLOURS, jpeg, write_tar, write_world

from curation.config import VocabularyConfig, from_mapping
from curation.mentions import open_mentions
from curation.run.inputs import request
from curation.run.run import open_run, plan_run, portable
from curation.tools import verify

CAPTIONS = [
    "Two boys watch a red apple on sand",
    "A gold watch and a blue boat",
    "A white boat on sand",
    "A woman with short hair and blue shorts",
    "A boy in red shorts on a boat",
    "They watch a boat in the parking lot",
    "A parking lot and a watch",
    "An apple in the parking lot",
]


@pytest.fixture(scope="module")
def words(tmp_path_factory, tiny_clip) -> Path:
    """A YAML file of a data set of two shards whose captions use words as several parts of speech."""
    folder = tmp_path_factory.mktemp("words")
    colours = list(COLOURS.values())
    for shard in range(2):
        members = []
        for row, caption in enumerate(CAPTIONS * 2):
            key = f"{shard}{row:03d}"
            members += [(f"{key}.jpg", jpeg(a=colours[row % 5], b=colours[shard])), (f"{key}.txt", caption.encode())]
        write_tar(folder / f"{shard:05d}.tar", members)
    vocabulary = {"source": "build", "min_count": 4, "visualness": -10.0}
    return write_world(folder / "words.yaml", tiny_clip, shards="{00000..00001}.tar", vocabulary=vocabulary)


@pytest.fixture(scope="module")
def built(words, tmp_path_factory) -> Path:
    """The output folder of a run over them. Not to be changed."""
    folder = tmp_path_factory.mktemp("built") / "out"
    assert curate(words, folder) == 0
    return folder


def mentioned(folder: Path) -> dict[str, set[str]]:
    """The concepts of each caption, by caption."""
    names = pq.read_table(folder / "vocabulary.parquet")["concept"].to_pylist()
    rows = [row for path in sorted((folder / "embeddings").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {row["caption"]: {names[identifier] for identifier in row["concepts"]} for row in rows}


def table(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of vocabulary.csv, by concept."""
    return {row["concept"]: row for row in csv.DictReader((folder / "vocabulary.csv").read_text().splitlines())}


def test_other_parts_of_speech_are_no_mention(built):
    concepts = mentioned(built)
    assert concepts["Two boys watch a red apple on sand"] == {"boy", "apple", "sand"}
    assert "watch" in concepts["A gold watch and a blue boat"]
    assert "watch" not in concepts["They watch a boat in the parking lot"]
    assert concepts["A woman with short hair and blue shorts"] == {"woman", "hair", "shorts"}


def test_the_table_says_how_often_a_word_is_a_noun_and_why_it_was_left_out(built):
    rows = table(built)
    assert float(rows["watch"]["noun_share"]) == pytest.approx(0.5)
    assert (rows["watch"]["count"], rows["watch"]["kept"]) == ("8", "true")
    assert (rows["parking"]["kept"], rows["parking"]["reason"]) == ("false", "only before other nouns")
    assert rows["parking lot"]["kept"] == "true"
    assert not {"red", "blue", "white", "short"} & {name for name, row in rows.items() if row["kept"] == "true"}


def test_a_run_is_computed_again_by_the_plain_formula(built):
    assert verify.main([str(built)]) == 0


def test_words_that_a_person_lists_stay(words, tmp_path):
    assert curate(words, tmp_path / "out", "--vocabulary.keep", "[parking, gold, zebra]") == 0
    rows = table(tmp_path / "out")
    assert [rows[name]["kept"] for name in ("parking", "gold", "zebra")] == ["true", "true", "false"]
    assert (rows["zebra"]["count"], rows["zebra"]["reason"]) == ("0", "rare")


def test_captions_of_another_run_are_read_as_it_tagged_them(words, built, tmp_path):
    assert curate(words, tmp_path / "out", "--name", "second", "--retrieval.data", str(built)) == 0
    first, second = (open_mentions(str(folder / "index/mentions.arrow")) for folder in (built, tmp_path / "out"))
    assert second.concepts.values.tolist() == first.concepts.values.tolist()
    assert second.concepts.offsets.tolist() == first.concepts.offsets.tolist()


def test_the_summary_names_what_was_left_out(words, tmp_path, capsys):
    assert curate(words, tmp_path / "out", "--vocabulary.visualness", "100", "--vocabulary.keep", "[boat]") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "left out, only before other nouns: parking (12), gold (4)" in lines
    (line,) = [line for line in lines if line.startswith("left out, not visual: ")]
    assert "watch (16)" in line


def test_captions_are_tagged_again_where_the_tags_are_gone(words, tmp_path):
    assert curate(words, tmp_path / "out") == 0
    before = pq.read_table(tmp_path / "out/tags/00001.parquet")
    (tmp_path / "out/tags/00001.parquet").unlink()
    (tmp_path / "out/manifest.json").unlink()
    assert curate(words, tmp_path / "out") == 0
    assert pq.read_table(tmp_path / "out/tags/00001.parquet").equals(before)


def test_a_file_of_concepts_is_matched_by_any_word(words, tmp_path):
    (tmp_path / "concepts.txt").write_text("watch\nshorts\nboat\n")
    options = ["--vocabulary.source", str(tmp_path / "concepts.txt"), "--vocabulary.visualness", "-10"]
    assert curate(words, tmp_path / "out", *options) == 0
    concepts = mentioned(tmp_path / "out")
    assert concepts["They watch a boat in the parking lot"] == {"watch", "boat"}
    assert not (tmp_path / "out/tags").exists()
    assert pq.read_schema(tmp_path / "out/vocabulary.parquet").names == ["concept", "count", "visualness", "embedding"]


def test_settings_that_finished_runs_did_not_know_leave_their_request_as_it_was(built):
    run = open_run(str(built))
    recorded = portable(run.config, run.folder)["vocabulary"]
    assert not {"noun_share", "head_share", "kinds", "keep"} & recorded.keys()
    changed = from_mapping({"name": "a", "shards": "a.tar", "vocabulary": {"noun_share": 0.5, "keep": ["dog"]}})
    values = portable(changed, str(built))["vocabulary"]
    assert (values["noun_share"], values["keep"]) == (0.5, ["dog"])
    assert np.isclose(VocabularyConfig().noun_share, 0.3)
    assert request(run) == request(plan_run(run.config, str(built)))
