"""Whole runs with other expansions, rankings, vocabularies and inputs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import archived, copy, curate, tables
from tiny_world import ROWS, write_world

from curation.mentions import open_mentions

# --- ablations ---


@pytest.fixture
def ablation(world, finished, tmp_path):
    """Run with changed options on a copy of the finished run; the archives by key."""

    def run(*options: str) -> dict[str, list[dict]]:
        folder = tmp_path / "copy" if (tmp_path / "copy").exists() else copy(finished, tmp_path)
        assert curate(world, folder, *options) == 0
        return archived(folder)

    return run


def captions_concepts(finished: Path) -> dict[str, set[str]]:
    names = pq.read_table(finished / "vocabulary.parquet")["concept"].to_pylist()
    rows = [row for table in tables(finished, "embeddings").values() for row in table.to_pylist()]
    return {row["key"]: {names[number] for number in row["concepts"]} for row in rows}


def test_caption_expansion_is_the_concepts_of_the_caption(ablation, finished):
    found = ablation("--archive.expansion", "caption")
    assert {key: {item["concept"] for item in concepts} for key, concepts in found.items()} == captions_concepts(
        finished
    )
    assert {item["local"] for concepts in found.values() for item in concepts} == {1.0}


def test_tagging_expansion_is_the_nearest_concepts(ablation, finished):
    found = ablation("--archive.expansion", "tagging", "--archive.ranking", "similarity")
    vocabulary = pq.read_table(finished / "vocabulary.parquet").to_pylist()
    texts = np.array([row["embedding"] for row in vocabulary], np.float64)
    for row in tables(finished, "embeddings")["00000"].to_pylist():
        order = np.argsort(-(texts @ np.array(row["embedding"], np.float64)) / np.linalg.norm(texts, axis=1))
        assert {item["concept"] for item in found[row["key"]]} == {vocabulary[c]["concept"] for c in order[:4]}
        assert {item["support"] for item in found[row["key"]]} == {0}


def test_text_expansion_retrieves_captions(ablation, finished, tiny_clip):
    found = ablation("--archive.expansion", "text")
    from curation.config import EncoderConfig
    from curation.encoder import load as load_encoder

    encoder = load_encoder(EncoderConfig(model=f"local-dir:{tiny_clip}", precision="fp32"))
    rows = [row for table in tables(finished, "embeddings").values() for row in table.to_pylist()]
    texts = encoder.encode_texts([row["caption"] for row in rows]).astype(np.float16).astype(np.float64)
    said = captions_concepts(finished)
    checked = 0
    for row in rows:
        cosines = texts @ np.array(row["embedding"], np.float64)
        order = np.argsort(-cosines)
        if cosines[order[3]] - cosines[order[4]] > 1e-4:  # many captions are the same
            checked += 1
            expected = set().union(*(said[rows[j]["key"]] for j in order[:4]))
            assert {item["concept"] for item in found[row["key"]]} == expected
    assert checked >= 3


def test_leaving_the_anchor_out_takes_it_from_its_neighbours(ablation, finished):
    with_anchor, without = archived(finished), ablation("--retrieval.include_anchor", "false")
    said = captions_concepts(finished)
    assert any(not said[key] <= {item["concept"] for item in concepts} for key, concepts in without.items())
    assert without != with_anchor


def test_counting_the_anchor_twice_pulls_local_scores_towards_one(ablation, finished):
    once, twice = archived(finished), ablation("--archive.anchor_twice", "true")
    changed = 0
    for key in once:
        for before, after in zip(sorted_by_name(once[key]), sorted_by_name(twice[key]), strict=True):
            assert abs(after["local"] - 1) <= abs(before["local"] - 1) + 1e-6
            changed += after["local"] != before["local"]
    assert changed


def sorted_by_name(concepts: list[dict]) -> list[dict]:
    return sorted(concepts, key=lambda item: item["concept"])


@pytest.mark.parametrize("ranking", ["similarity", "support", "calibrated", "supported", "false"])
def test_rankings_change_order_and_nothing_else(ablation, finished, ranking):
    base, found = archived(finished), ablation("--archive.ranking", ranking)
    for key in base:
        for before, after in zip(sorted_by_name(base[key]), sorted_by_name(found[key]), strict=True):
            for name in ("concept", "global", "local", "support"):
                assert before[name] == after[name]
        scores = [item["score"] for item in found[key]]
        assert scores == sorted(scores, reverse=True)
        if ranking == "support":
            assert scores == [item["support"] for item in found[key]]
        if ranking == "false":
            assert set(scores) <= {1.0}


def test_without_clusters_every_concept_is_its_own(ablation):
    for concepts in ablation("--archive.clusters", "false").values():
        assert [item["cluster"] for item in concepts] == list(range(len(concepts)))


def test_a_trained_index_that_probes_everything_finds_the_same(ablation, finished):
    assert ablation("--retrieval.index", "IVF4,Flat", "--retrieval.search", "nprobe=4") == archived(finished)


def test_another_runs_index_can_be_searched(world, finished, tiny_clip, tmp_path):
    path = write_world(world.parent / "part.yaml", tiny_clip, name="part", shards="00001.tar")
    assert curate(path, tmp_path / "out", "--retrieval.data", str(finished)) == 0
    assert not (tmp_path / "out" / "index" / "image.faiss").exists()
    found, base = archived(tmp_path / "out"), archived(finished)
    assert len(found) == ROWS
    for key in found:  # here the anchor's own image is just another reference, so that local scores may differ
        for ours, theirs in zip(sorted_by_name(found[key]), sorted_by_name(base[key]), strict=True):
            assert [ours[name] for name in ("concept", "support")] == [theirs[name] for name in ("concept", "support")]
            assert ours["global"] == pytest.approx(theirs["global"], rel=1e-5)


def test_another_runs_index_is_read_with_this_runs_own_vocabulary(world, finished, tiny_clip, tmp_path):
    """Other words, in another order: what its captions mention, and how similar images are to that, is looked up anew."""
    words = ["grape", "photo", "sand", "apple", "banana"]
    (world.parent / "others.txt").write_text("\n".join(words) + "\n")
    path = write_world(world.parent / "others.yaml", tiny_clip, name="others", shards="00001.tar",
                       vocabulary={"source": "others.txt"})  # fmt: skip
    out = tmp_path / "out"
    assert curate(path, out, "--retrieval.data", str(finished), "--archive.ranking", "similarity") == 0
    vocabulary = pq.read_table(out / "vocabulary.parquet").to_pylist()
    texts = {row["concept"]: np.array(row["embedding"], np.float64) for row in vocabulary}
    assert set(texts) == set(words)

    indexed = [row for table in tables(finished, "embeddings").values() for row in table.to_pylist()]
    said = [{word for word in words if re.search(rf"\b{word}s?\b", row["caption"])} for row in indexed]
    mentions = open_mentions(str(out / "index" / "mentions.arrow"))
    names = [row["concept"] for row in vocabulary]
    start = mentions.concepts.offsets
    for number, (row, expected) in enumerate(zip(indexed, said, strict=True)):
        ids = mentions.concepts.values[start[number] : start[number + 1]]
        assert {names[concept] for concept in ids} == expected
        cosines = [texts[names[concept]] @ np.array(row["embedding"], np.float64) for concept in ids]
        np.testing.assert_allclose(mentions.similarities[start[number] : start[number + 1]], cosines, atol=2e-3)

    images = np.array([row["embedding"] for row in indexed], np.float64)
    own = {row["key"]: np.array(row["embedding"], np.float64) for row in tables(out, "embeddings")["00001"].to_pylist()}
    for key, concepts in archived(out).items():
        cosines = images @ own[key]
        order = np.argsort(-cosines)
        if cosines[order[3]] - cosines[order[4]] > 1e-4:
            assert {item["concept"] for item in concepts} == set().union(*(said[j] for j in order[:4]))


def test_another_runs_index_needs_the_same_encoder(world, finished, tiny_clip, tmp_path, capfd):
    other = shutil.copytree(tiny_clip, tmp_path / "other-clip")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["mean"] = [0.4] * 3
    (other / "open_clip_config.json").write_text(json.dumps(config))
    path = write_world(world.parent / "other.yaml", other, name="other")
    assert curate(path, tmp_path / "out", "--retrieval.data", str(finished)) == 1
    assert "embedded by another encoder" in capfd.readouterr().err


# --- a vocabulary built from the data, imported embeddings ---


def test_a_vocabulary_is_built_from_the_captions(world, tiny_clip, tmp_path):
    vocabulary = {"source": "build", "min_count": 5, "visualness": -10.0}
    path = write_world(world.parent / "built.yaml", tiny_clip, vocabulary=vocabulary)
    assert curate(path, tmp_path / "out") == 0
    table = pq.read_table(tmp_path / "out" / "vocabulary.parquet")
    found = dict(zip(table["concept"].to_pylist(), table["count"].to_pylist(), strict=True))
    assert {"apple", "boat", "sand"} <= found.keys()
    assert "photo" not in found  # every caption has it: no telling whether it is visual
    captions = [row["caption"] for t in tables(tmp_path / "out", "embeddings").values() for row in t.to_pylist()]
    assert found["apple"] == sum("apple" in caption for caption in captions)
    assert min(found.values()) >= 5
    report = (tmp_path / "out" / "vocabulary.csv").read_text().splitlines()
    assert report[0] == "concept,count,noun_share,visualness,kept,reason"
    # The table that a person may edit can be given back as the vocabulary.
    assert curate(path, tmp_path / "again", "--vocabulary.source", str(tmp_path / "out" / "vocabulary.csv")) == 0
    again = pq.read_table(tmp_path / "again" / "vocabulary.parquet")
    assert set(again["concept"].to_pylist()) == set(found)


def test_an_empty_vocabulary_is_an_error_that_names_the_remedy(world, tiny_clip, tmp_path, capfd):
    path = write_world(world.parent / "none.yaml", tiny_clip, vocabulary={"source": "build", "min_count": 1000})
    assert curate(path, tmp_path / "out") == 1
    assert "vocabulary.min_count: no noun is in 1000 captions" in capfd.readouterr().err


def test_clip_retrieval_embeddings_are_imported(world, finished, tiny_clip, tmp_path):
    folder = tmp_path / "clip-retrieval"
    for kind in ("img_emb", "metadata"):
        (folder / kind).mkdir(parents=True)
    for number, table in enumerate(tables(finished, "embeddings").values()):
        embeddings = np.array(table["embedding"].to_pylist(), np.float16)
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", embeddings)
        columns = {"image_path": table["key"], "caption": table["caption"]}
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    path = write_world(world.parent / "imported.yaml", tiny_clip, shards="", embeddings=str(folder))
    assert curate(path, tmp_path / "out") == 0
    found, base = archived(tmp_path / "out"), archived(finished)
    assert found.keys() == base.keys()
    for key in base:
        for ours, theirs in zip(sorted_by_name(found[key]), sorted_by_name(base[key]), strict=True):
            assert ours["concept"] == theirs["concept"]
            assert ours["score"] == pytest.approx(theirs["score"], rel=1e-3)
