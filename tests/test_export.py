"""Archives for FiftyOne, for Lance and for others: files that their readers take."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset as wds
import yaml
from tiny_world import ROWS, SHARDS, write_world

from curation.archive import ConceptArchive
from curation.archive.huggingface import FEATURES, SEVERAL
from curation.archive.parquet import SCHEMA
from curation.archive.parquet import SEVERAL as SEVERAL_SCHEMA
from curation.tools.export import main as export
from curation.tools.export.card import front_matter

NAMES = [f"{shard:05d}" for shard in range(SHARDS)]


@pytest.fixture(scope="module")
def pictures(world):
    """The image of every key, as webdataset reads it."""
    tars = [str(world.parent / f"{name}.tar") for name in NAMES]
    return {sample["__key__"]: sample.get("jpg") for sample in wds.WebDataset(tars, shardshuffle=False)}


# --- FiftyOne -----------------------------------------------------------------------------------------------------------


OWN = {"id", "tags", "label", "confidence", "logits", "attributes"}  # fields that a Classification has already


def imported(folder):
    """{id: (picture, [(label, confidence, attributes)])}, by what FiftyOne's importer reads of a folder.

    It takes pictures anywhere below data/, by their paths without endings; of labels.json the lists of each id, and of an
    item label, confidence and attributes, which become fields of a Classification. A number would be one of ``classes``.
    """
    pictures = {
        os.path.splitext(os.path.relpath(os.path.join(parent, name), folder / "data"))[0]: os.path.join(parent, name)
        for parent, _, names in os.walk(folder / "data")
        for name in names
    }
    labels = json.loads((folder / "labels.json").read_text())
    assert labels.keys() == {"classes", "labels"}
    assert all(isinstance(name, str) for name in labels["classes"])
    for items in labels["labels"].values():
        for item in items:
            assert item.keys() == {"label", "confidence", "attributes"}
            assert item["label"] in labels["classes"]
            assert isinstance(item["confidence"], float)
            assert all(re.fullmatch(r"[a-z]\w*", name) and name not in OWN for name in item["attributes"])
    return {
        name: (pictures[name], [(item["label"], item["confidence"], item["attributes"]) for item in items])
        for name, items in labels["labels"].items()
    }


def test_fiftyone_gets_a_picture_and_its_labels_for_every_archive(archive, finished, pictures, tmp_path):
    assert export([str(finished), "--format", "fiftyone", "--to", str(tmp_path), "--concept", "boat"]) == 0
    expected = list(archive.filter(concept="boat"))
    samples = imported(tmp_path)
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert samples.keys() == captions.keys()
    assert len(samples) == len(expected)
    by_key = {caption["key"]: name for name, caption in captions.items()}
    for row in expected:
        picture, labels = samples[by_key[row["key"]]]
        assert Path(picture).read_bytes() == pictures[row["key"]]
        assert captions[by_key[row["key"]]]["caption"] == row["caption"]
        assert labels == [
            (
                entry["concept"],
                entry["score"],
                {name: entry[name] for name in ("global", "local", "cluster", "support")},
            )
            for entry in row["concepts"]
        ]


# --- Lance --------------------------------------------------------------------------------------------------------------


def test_lance_reads_archives_embeddings_and_pictures(archive, finished, pictures, tmp_path):
    lance = pytest.importorskip("lance", reason="pylance is not installed")
    for _ in range(2):  # the second writes it anew
        assert export([str(finished), "--format", "lance", "--to", str(tmp_path), "--support", "2"]) == 0
    table = lance.dataset(str(tmp_path / "archives.lance"))
    rows = table.to_table().to_pylist()
    expected = list(archive.filter(support=2))
    assert [{name: row[name] for name in ("key", "caption", "concepts")} for row in rows] == expected
    assert all(row["image"] == pictures[row["key"]] for row in rows)
    assert [row["shard"] for row in rows] == [name for name in NAMES for _ in range(ROWS)]
    paths = [finished / "embeddings" / f"{name}.parquet" for name in NAMES]
    embeddings = [row["embedding"] for path in paths for row in pq.read_table(path).to_pylist()]
    np.testing.assert_array_equal([row["embedding"] for row in rows], embeddings)
    assert (
        table.to_table(filter="key = '010003'", columns=["caption"])["caption"][0].as_py()
        == archive["010003"]["caption"]
    )


def test_without_pylance_a_line_says_what_to_install(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lance", None)
    assert export([str(finished), "--format", "lance", "--to", str(tmp_path)]) == 1
    assert "pylance is not installed; run pip install" in capsys.readouterr().err


# --- a folder for others ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(finished, tmp_path_factory) -> Path:
    """The archives that hold a boat, at least two captions agreeing."""
    folder = tmp_path_factory.mktemp("given") / "boats"
    words = ["--format", "archives", "--concept", "boat", "--support", "2", "--identities"]
    assert export([str(finished), *words, "--to", str(folder)]) == 0
    return folder


def test_a_subset_is_read_like_a_run(archive, given, world):
    expected = list(archive.filter(support=2).filter(concept="boat"))
    assert 0 < len(expected) < len(archive)
    subset = ConceptArchive.open(given)
    assert list(subset) == expected
    assert subset.vocabulary == archive.vocabulary
    unsaid = archive.filter(support=2).filter(concept="boat").filter(omitted=True)
    assert list(subset.filter(omitted=True)) == list(unsaid)
    tars = [str(world.parent / f"{name}.tar") for name in subset.shards]
    assert [Path(source.path).resolve() for source in subset.sources] == [Path(tar).resolve() for tar in tars]
    joined = wds.WebDataset(tars, shardshuffle=False).compose(subset.join)
    assert [sample["__key__"] for sample in joined] == [row["key"] for row in expected]

    counts = subset.manifest["counts"]
    assert counts["rows"] == len(expected)
    assert counts["samples"] == SHARDS * ROWS + 3
    assert counts["rejects"] == counts["samples"] - counts["rows"]
    assert counts["archive_concepts"] == sum(len(row["concepts"]) for row in expected)
    assert counts["gained"] == sum(bool(row["concepts"]) for row in unsaid)
    said = [row for name in NAMES for row in pq.read_table(given / "embeddings" / f"{name}.parquet").to_pylist()]
    assert counts["caption_concepts"] == sum(len(row["concepts"]) for row in said)


def test_training_takes_a_subset(given, tmp_path):
    """The samples that were left out are passed over like rejects."""
    from training_runs import write_config

    from training.cli import main as train

    config = write_config(given, tmp_path / "tiny.yaml")
    words = ["--trainer.max_epochs", "1", "--output", str(tmp_path / "run")]
    assert train(["fit", "--config", str(config), *words]) == 0


def test_pictures_are_known_by_their_content(given, pictures):
    rows = [row for name in NAMES for row in pq.read_table(given / "identities" / f"{name}.parquet").to_pylist()]
    assert [row["key"] for row in rows] == [row["key"] for row in ConceptArchive.open(given)]
    assert all(row["content"] == hashlib.sha256(pictures[row["key"]]).hexdigest() for row in rows)
    assert {(row["url"], row["original"]) for row in rows} == {(None, None)}


def test_the_data_card_says_what_hugging_face_needs(given, finished):
    """The schema is that of ``datasets``, which loads the folder by it; no path of this machine is in it."""
    card = (given / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    values = yaml.safe_load(front)
    assert values["dataset_info"]["features"] == FEATURES._to_yaml_list()
    assert values["size_categories"] == ["n<1K"]
    assert str(finished.parent) not in card
    assert "| expansion | vision |" in body
    for name in ("key", "caption", "concepts", "concepts[].concept", "concepts[].support"):
        assert f"\n| `{name}` |" in body

    loaded = datasets.load_dataset(str(given), split="train")
    assert loaded.features == FEATURES
    assert loaded.to_list() == list(ConceptArchive.open(given))


def test_the_card_knows_archives_of_several_captions():
    assert front_matter("x", 10**6, SEVERAL_SCHEMA)["dataset_info"]["features"] == SEVERAL._to_yaml_list()
    assert front_matter("x", 10**6, SCHEMA)["size_categories"] == ["1M<n<10M"]


def test_a_run_is_not_written_over_and_nothing_is_no_subset(finished, tmp_path, capsys):
    assert export([str(finished), "--format", "archives", "--to", str(finished)]) == 1
    assert "holds a run; choose another folder" in capsys.readouterr().err
    assert (finished / "manifest.json").exists()
    assert (
        export([str(finished), "--format", "archives", "--score", "99", "--concept", "boat", "--to", str(tmp_path)])
        == 1
    )
    assert "no archive is left to write" in capsys.readouterr().err
    assert export([str(finished), "--format", "jsonl", "--concept", "baot", "--to", str(tmp_path)]) == 1
    assert "did you mean 'boat'" in capsys.readouterr().err


def test_imported_embeddings_are_given_away_too(finished, world, tiny_clip, tmp_path):
    for kind in ("img_emb", "metadata"):
        (tmp_path / "import" / kind).mkdir(parents=True)
    table = pq.read_table(finished / "embeddings" / "00000.parquet")
    np.save(tmp_path / "import/img_emb/img_emb_0.npy", np.array(table["embedding"].to_pylist(), np.float16))
    pq.write_table(table.select(["key", "caption"]), tmp_path / "import/metadata/metadata_0.parquet")
    shutil.copy(world.parent / "concepts.txt", tmp_path)
    from pipelines.curate import main as curate

    path = write_world(tmp_path / "import.yaml", tiny_clip, shards="", embeddings="import")
    assert curate(["--data", str(path), "--output", str(tmp_path / "out"), "--runner", "inprocess"]) == 0
    assert export([str(tmp_path / "out"), "--format", "archives", "--to", str(tmp_path / "given"), "--top", "2"]) == 0
    expected = list(ConceptArchive.open(tmp_path / "out").filter(top=2))
    assert list(ConceptArchive.open(tmp_path / "given")) == expected
