"""Runs whose embeddings are all given, so that no encoder is needed, and vocabularies that people give back."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from curated import archived, curate, tables
from tiny_world import COLOURS, GROUNDS

from curation.run.run import open_run
from curation.tools import measure, verify


@pytest.fixture(scope="module")
def imported(finished, tmp_path_factory) -> Path:
    """A clip-retrieval folder with the embeddings of the finished run, and its captions' embeddings (of no meaning)."""
    folder = tmp_path_factory.mktemp("clip-retrieval")
    for kind in ("img_emb", "metadata", "text_emb"):
        (folder / kind).mkdir()
    for number, table in enumerate(tables(finished, "embeddings").values()):
        images = np.array(table["embedding"].to_pylist(), np.float16)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", images)
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", np.roll(images, 1, axis=0))
        pq.write_table(table.select(["key", "caption"]), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


@pytest.fixture
def data(imported, finished, tmp_path) -> Path:
    """A configuration without an encoder: images from the import, concepts from the vocabulary of the finished run."""
    shutil.copy(finished / "vocabulary.parquet", tmp_path / "given.parquet")
    values = {"name": "world", "embeddings": str(imported), "retrieval": {"neighbors": 4, "duplicates": "keep"}}
    path = tmp_path / "world.yaml"
    path.write_text(yaml.safe_dump(values | {"vocabulary": {"source": "given.parquet"}}))
    return path


@pytest.fixture
def no_encoder(monkeypatch):
    def load(config):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr("curation.encoder.load", load)


def failed(data: Path, output: Path, capfd, *options: str) -> str:
    assert curate(data, output, *options) == 1
    return " ".join(capfd.readouterr().err.split())


def test_given_embeddings_make_the_archives_that_the_encoder_makes(data, finished, tmp_path, no_encoder, capfd):
    assert curate(data, tmp_path / "out") == 0
    ours, theirs = archived(tmp_path / "out"), archived(finished)
    assert ours.keys() == theirs.keys()
    for key, items in theirs.items():
        scores = {item["concept"]: item["score"] for item in items}
        assert {item["concept"]: item["score"] for item in ours[key]} == pytest.approx(scores, rel=2e-3)
    assert "No encoder: given embeddings" in capfd.readouterr().out
    assert verify.main([str(tmp_path / "out")]) == 0

    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert "encoder" not in manifest["config"]
    assert manifest["embeddings"]["images"]["from"] == "import"
    concepts = manifest["embeddings"]["concepts"]
    assert (concepts["from"], concepts["path"], concepts["width"]) == ("file", "../given.parquet", 32)
    assert concepts["embedded by"]["encoder"]["model"].startswith("local-dir:")  # what the vocabulary says of itself


def test_measure_needs_no_encoder_either(data, finished, tmp_path, no_encoder, capfd):
    assert curate(data, tmp_path / "out") == 0
    truth = tmp_path / "truth.json"
    keys = sorted(archived(finished))
    truth.write_text(json.dumps({key: {"concepts": ["apple", "sand"]} for key in keys}))
    capfd.readouterr()
    assert measure.main([str(tmp_path / "out"), "--truth", str(truth)]) == 0
    assert "text " in capfd.readouterr().out  # by the embeddings of captions that came with the import
    assert measure.main([str(tmp_path / "out")]) == 1
    assert "give a file of the truth with --truth" in " ".join(capfd.readouterr().err.split())


def test_text_expansion_takes_the_embeddings_of_captions_that_came_along(data, imported, tmp_path, no_encoder, capfd):
    assert curate(data, tmp_path / "out", "--archive.expansion", "text") == 0
    stored = tables(tmp_path / "out", "captions")["1"]
    given = np.load(imported / "text_emb" / "text_emb_1.npy")
    assert np.array(stored["embedding"].to_pylist()) == pytest.approx(given.astype(np.float64), abs=1e-3)
    assert verify.main([str(tmp_path / "out")]) == 0

    bare = tmp_path / "bare"
    shutil.copytree(imported, bare, ignore=shutil.ignore_patterns("text_emb_2.npy"))
    line = failed(data, tmp_path / "other", capfd, "--embeddings", str(bare), "--archive.expansion", "text")
    assert "archive.expansion: text needs embeddings of captions" in line
    assert "text_emb_2.npy is missing" in line


def test_a_vocabulary_can_be_built_from_the_nouns_that_have_an_embedding(data, tmp_path, no_encoder):
    options = ["--vocabulary.source", "build", "--vocabulary.embeddings", str(tmp_path / "given.parquet")]
    limits = ["--vocabulary.min_count", "1", "--vocabulary.visualness", "-9"]
    assert curate(data, tmp_path / "out", *options, *limits) == 0
    names = pq.read_table(tmp_path / "out" / "vocabulary.parquet")["concept"].to_pylist()
    assert {"apple", "banana"} <= set(names) <= {*COLOURS, *GROUNDS}  # "photo" has none


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        ({"source": "build"}, "build has no text embeddings, and no encoder is named"),
        ({"source": "words.txt"}, "words.txt has no text embeddings, and no encoder is named"),
        ({"source": "words.txt", "embeddings": "given.parquet"}, "has no embedding of unicorn; add them"),
        ({"source": "narrow.parquet"}, "image embeddings have 32 dimensions, but the text embeddings of"),
        ({"source": "bare.parquet"}, "no column embedding"),
        ({"source": "long.txt", "embeddings": "given.parquet"}, "entry 1, 'one two three four five'"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_read(data, vocabulary, words, tmp_path, capfd):
    (tmp_path / "words.txt").write_text("apple\nunicorn\n")
    (tmp_path / "long.txt").write_text("one two three four five\n")
    pq.write_table(pa.table({"concept": ["apple"], "embedding": [[1.0, 2.0]]}), tmp_path / "narrow.parquet")
    pq.write_table(pa.table({"concept": ["apple"]}), tmp_path / "bare.parquet")
    values = yaml.safe_load(data.read_text()) | {"vocabulary": vocabulary}
    data.write_text(yaml.safe_dump(values))
    assert words in failed(data, tmp_path / "out", capfd)
    assert not (tmp_path / "out" / "embeddings").exists()


def test_tars_need_an_encoder(world, tmp_path, capfd):
    values = yaml.safe_load(world.read_text())
    del values["encoder"]
    values["shards"] = str(world.parent / values["shards"])
    (tmp_path / "tars.yaml").write_text(yaml.safe_dump(values | {"vocabulary": {"source": "words.txt"}}))
    (tmp_path / "words.txt").write_text("apple\n")
    assert "encoder.pretrained: missing for ViT-B-16" in failed(tmp_path / "tars.yaml", tmp_path / "out", capfd)


def test_given_embeddings_of_another_width_than_the_encoders_are_an_error(world, tmp_path, capfd):
    pq.write_table(pa.table({"concept": ["apple"], "embedding": [[1.0, 2.0]]}), tmp_path / "narrow.parquet")
    options = ["--vocabulary.source", str(tmp_path / "narrow.parquet")]
    options += ["--vocabulary.embeddings", str(tmp_path / "narrow.parquet")]
    assert "image embeddings have 32 dimensions" in failed(world, tmp_path / "out", capfd, *options)


# --- vocabularies that people give ----------------------------------------------------------------------------------------


def test_concepts_that_no_caption_mentions_are_named_with_what_captions_say(data, tmp_path, capfd):
    table = pq.read_table(tmp_path / "given.parquet", columns=["concept", "embedding"]).to_pylist()
    more = [{"concept": "bananna", "embedding": table[0]["embedding"]}]
    more += [{"concept": "Zeppelin", "embedding": table[2]["embedding"]}]
    pq.write_table(pa.Table.from_pylist(table + more), tmp_path / "given.parquet")
    assert curate(data, tmp_path / "out") == 0
    printed = capfd.readouterr().out
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    noted = manifest["unmentioned"]
    assert (noted["count"], noted["of"]) == (2, 10)
    assert noted["nearest"]["bananna"][0] == "banana"  # spelt alike
    assert noted["nearest"]["Zeppelin"][0] == table[2]["concept"]  # nothing is spelt alike: the nearest embedding
    assert "2 of 10 concepts are in no caption: bananna (nearest: banana, " in printed


def test_the_table_of_a_run_given_back_to_it_keeps_what_a_person_left_out(data, tmp_path, capfd):
    out = tmp_path / "out"
    assert curate(data, out) == 0
    path = out / "vocabulary.csv"
    rows = list(csv.DictReader(path.open()))
    edited = "# without fruit\n" + path.read_text().replace("\r", "")
    for row in rows:
        if row["concept"] in ("apple", "banana"):
            edited = edited.replace(
                f"{row['concept']},{row['count']},{row['visualness']},true", f"{row['concept']},,,no"
            )
    path.write_text(edited)

    options = ["--vocabulary.source", str(path), "--vocabulary.embeddings", str(tmp_path / "given.parquet")]
    assert curate(data, out, *options) == 0
    assert path.read_text() == edited
    names = pq.read_table(out / "vocabulary.parquet")["concept"].to_pylist()
    assert sorted(names) == sorted({*COLOURS, *GROUNDS} - {"apple", "banana"})
    capfd.readouterr()
    assert curate(data, out, *options) == 0
    assert "already finished" in " ".join(capfd.readouterr().out.split())
    assert path.read_text() == edited
    assert open_run(str(out)).config.vocabulary.source == str(path)


def test_a_file_that_the_run_writes_itself_cannot_be_its_source(data, tmp_path, capfd):
    out = tmp_path / "out"
    assert curate(data, out) == 0
    line = failed(data, out, capfd, "--vocabulary.source", str(out / "vocabulary.parquet"))
    assert "this run writes" in line
    assert "vocabulary.csv" in line
