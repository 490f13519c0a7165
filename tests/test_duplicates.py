"""Runs in which near-identical images count once: planted copies are found, and what is made of them."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import archived, curate
from tiny_world import write_world

from curation.archive import ConceptArchive
from curation.base.embeddings import normalise
from curation.run import manifest
from curation.run.curator import open_curator
from curation.run.forecast import forecast
from curation.run.indexes import read_duplicates
from curation.run.run import open_run, plan_run
from curation.run.stages import duplicates as stages
from curation.run.stages import graph as graph_stages
from curation.tools import export
from curation.tools.browse.catalogue import open_catalogue
from curation.tools.browse.pages.layout import Site
from curation.tools.browse.pictures import Pictures
from curation.tools.browse.views import Views
from curation.tools.copies import Groups
from curation.tools.report.duplicates import EACH, LARGEST
from curation.tools.verify import verify
from experiments import duplicates as planted_copies
from pipelines.curate import read_config
from pipelines.demo.world import WorldConfig, ensure_world
from training.stream import LeftOut, TrainingShard, count_pairs, read_pairs

# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A drawn world, clean and with copies of three in ten pictures, curated with the demo's CLIP."""
    folder = tmp_path_factory.mktemp("planted")
    ensure_world(str(folder / "world"), WorldConfig(shards=3, scenes=90, validation=1), processes=1)
    kinds = planted_copies.plant(sorted((folder / "world/train").glob("*.tar")), folder / "planted")
    concepts = folder / "world/concepts.txt"
    for name, shards in (("clean", "world/train/*.tar"), ("planted", "planted/*.tar")):
        data = planted_copies.write_config(folder / f"{name}.yaml", shards, concepts)
        assert curate(data, folder / name) == 0
    return folder, kinds


def test_planted_copies_are_found(worlds) -> None:
    folder, kinds = worlds
    run = open_run(str(folder / "planted"))
    assert len(kinds) > 80
    assert planted_copies.found_groups(run).f1 >= 0.95
    assert min(planted_copies.recall_by_kind(run, kinds).values()) > 0.85


def test_archives_are_as_right_as_without_copies(worlds) -> None:
    folder, _ = worlds
    clean, planted = (planted_copies.originals_quality(open_run(str(folder / name))) for name in ("clean", "planted"))
    assert abs(clean.recall - planted.recall) <= 0.01
    assert abs(clean.precision[3] - planted.precision[3]) <= 0.01


def test_a_run_in_which_copies_count_once_is_what_it_says(worlds) -> None:
    folder, kinds = worlds
    run = open_run(str(folder / "planted"))
    assert verify(run, 60) == []
    archive = ConceptArchive.open(folder / "planted")
    duplicates = read_duplicates(run)
    assert duplicates is not None
    assert archive.schema.names == ["key", "caption", "duplicate_of", "concepts"]
    named = [row for row in archive if row["duplicate_of"]]
    assert len(named) == len(duplicates) == json.loads(Path(run.index_json).read_text())["duplicates"]["duplicates"]
    keys = planted_copies.keys_of(run)
    by_key = dict(zip(keys, range(len(keys)), strict=True))
    expected = dict(zip(*(duplicates[name].to_pylist() for name in ("row", "representative")), strict=True))
    for row in named:
        first = row["duplicate_of"]
        assert first["key"] in archive.table(first["shard"])["key"].to_pylist()
        assert expected[by_key[row["key"]]] == by_key[first["key"]]
    names = [
        [key.removeprefix(planted_copies.MARK) for key in (row["key"], row["duplicate_of"]["key"])] for row in named
    ]
    assert sum(one == other for one, other in names) > 0.85 * len(kinds)

    # No group votes twice, and none of the anchor's own copies votes at all.
    curator = open_curator(run)
    vectors = np.concatenate(
        [
            pq.read_table(path, columns=["embedding"])["embedding"]
            .combine_chunks()
            .flatten()
            .to_numpy()
            .reshape(-1, 128)
            for path in run.of_shards("embeddings")
        ]
    )
    ids, _ = curator.neighbours(normalise(vectors), np.arange(len(vectors)))
    assert (ids[:, 0] == np.arange(len(ids))).all()
    groups = curator.representatives[ids]
    assert all(len(set(row)) == 8 for row in groups.tolist())
    assert (ids[:, 1:] == groups[:, 1:]).all()


def test_equal_archives_whatever_the_workers_and_after_kills(worlds, tmp_path, monkeypatch) -> None:
    folder, _ = worlds
    expected = archived(folder / "planted")
    groups = (folder / "planted/index/duplicates.arrow").read_bytes()
    output = shutil.copytree(folder / "planted", tmp_path / "workers")
    for path in ("manifest.json", "index", "archives"):
        shutil.rmtree(output / path) if (output / path).is_dir() else os.remove(output / path)
    assert curate(folder / "planted.yaml", output, "--workers", "2", runner="DirectRunner") == 0
    assert archived(output) == expected
    assert (output / "index/duplicates.arrow").read_bytes() == groups

    killed = shutil.copytree(folder / "planted", tmp_path / "killed")
    for path in ("manifest.json", "index/duplicates.arrow", "index/graph.npy", "archives/00001.parquet"):
        os.remove(killed / path)
    monkeypatch.setattr(stages, "BLOCK", 37)
    monkeypatch.setattr(graph_stages, "EXACT_TOGETHER", 1)
    assert curate(folder / "planted.yaml", killed) == 0
    assert archived(killed) == expected
    assert (killed / "index/duplicates.arrow").read_bytes() == groups


def test_identical_and_few_images(world, tiny_clip, tmp_path) -> None:
    """Forty copies of one picture, and two others, for L = 8: too few, and nothing but ties."""
    random = np.random.default_rng(3)
    vectors = normalise(random.normal(size=(3, 32)))[[0] * 40 + [1, 2]]
    for kind in ("img_emb", "metadata"):
        (tmp_path / "embeddings" / kind).mkdir(parents=True)
    for part, rows in enumerate(np.array_split(random.permutation(42), 3)):
        np.save(tmp_path / f"embeddings/img_emb/img_emb_{part}.npy", vectors[rows].astype(np.float16))
        columns = {
            "key": [f"{row:03d}" for row in rows],
            "caption": [f"an apple on {['sand', 'snow'][row % 2]}" for row in rows],
        }
        pq.write_table(pa.table(columns), tmp_path / f"embeddings/metadata/metadata_{part}.parquet")
    data = write_world(
        world.parent / "identical.yaml",
        tiny_clip,
        shards="",
        embeddings=str(tmp_path / "embeddings"),
        retrieval={"neighbors": 8, "duplicates": "once"},
    )
    assert curate(data, tmp_path / "out") == 0
    assert verify(open_run(str(tmp_path / "out")), 42) == []
    rows = [row for table in ConceptArchive.open(tmp_path / "out").tables() for row in table.to_pylist()]
    assert sum(row["duplicate_of"] is not None for row in rows) == 39
    assert {entry["support"] for row in rows for entry in row["concepts"]} <= {1, 2, 3}
    assert curate(data, tmp_path / "again", "--workers", "2", runner="DirectRunner") == 0
    assert archived(tmp_path / "again") == archived(tmp_path / "out")


def test_runs_of_before_stay_as_they_are(world, finished, tmp_path, capsys) -> None:
    """A finished run that knows of no duplicates is finished for a configuration that says nothing of them."""
    folder = Path(shutil.copytree(finished, tmp_path / "out"))
    values = json.loads((folder / "manifest.json").read_text())
    assert "duplicates" not in values["config"]["retrieval"]  # ``keep`` is recorded as runs of before recorded nothing
    assert open_run(str(folder)).config.retrieval.duplicates == "keep"
    silent = tmp_path / "silent.yaml"
    text = world.read_text().replace("duplicates: keep\n", "")
    assert text != world.read_text()
    silent.write_text(
        text.replace("{00000", f"{world.parent}/{{00000").replace("concepts.txt", f"{world.parent}/concepts.txt")
    )
    run = manifest.settled(plan_run(read_config(str(silent), {}), str(folder)))
    assert run.config.retrieval.duplicates == "keep"
    assert manifest.finished(run)
    assert {step.kept for step in forecast(run)} == {True}
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert curate(silent, folder) == 0
    assert "already finished" in capsys.readouterr().out.replace("\n", " ")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before

    # Asked for in so many words, only what depends on them is computed.
    assert curate(silent, folder, "--retrieval.duplicates", "once") == 0
    kept = {path for path, time in before.items() if path.stat().st_mtime_ns == time}
    assert {path.parent.name for path in before.keys() - kept} == {"archives"}


# --- what is made of them ---------------------------------------------------------------------------------------------


def test_duplicates_are_listed_shown_and_left_out_of_training(worlds, tmp_path) -> None:
    folder, _ = worlds
    run = open_run(str(folder / "planted"))
    groups = Groups(run)
    duplicates = read_duplicates(run)
    assert duplicates is not None
    first = duplicates["representative"].to_pylist()
    sizes = [len(groups.rows(number)) for number in range(len(groups))]
    assert sizes == sorted((1 + first.count(row) for row in set(first)), reverse=True)
    assert groups.duplicates == len(first) == sum(sizes) - len(sizes)

    # A list of what to delete.
    assert export.main([run.folder, "--format", "duplicates", "--to", str(tmp_path)]) == 0
    header, *lines = csv.reader((tmp_path / "duplicates.csv").open())
    assert header == ["shard", "key", "kept_shard", "kept_key"]
    keys = planted_copies.keys_of(run)
    assert [line[1] for line in lines] == [keys[row] for row in duplicates["row"].to_pylist()]
    assert [line[3] for line in lines] == [keys[row] for row in first]
    assert all(
        line[1] in pq.read_table(run.path("archives", f"{line[0]}.parquet"))["key"].to_pylist() for line in lines
    )

    # The report, with pictures of the largest groups.
    page = (folder / "planted" / "report.html").read_text()
    section = page[page.index('id="duplicates"') : page.index('id="examples"')]
    assert f"{len(first):,} of {len(keys):,} images" in section
    assert section.count("<img src=") == sum(min(size, EACH) for size in sizes[:LARGEST])

    # Pages of groups, and archives and training without duplicates.
    nothing: Any = None
    views = Views(run, open_catalogue(run, str(tmp_path / "cache")), nothing, Pictures(run, str(tmp_path)), nothing)
    shown = views.duplicates(Site("/token", "planted"), 1)
    assert f"{sizes[0]} images" in shown
    assert all(f"/token/image/{row}" in shown for row in groups.rows(0)[:12])
    assert "page 1 of" in shown
    archive = ConceptArchive.open(run.folder).filter(distinct=True)
    assert all(not row["concepts"] for row in archive if row["duplicate_of"])
    assert sum(bool(row["concepts"]) for row in archive) == len(keys) - len(first)
    shards = tuple(TrainingShard(source, archive) for source in archive.sources)
    outcomes = [
        outcome for shard in shards for outcome in read_pairs(shard, archive.read(shard.source.name).keys, True)
    ]
    assert outcomes.count(LeftOut.DUPLICATE) == len(first)
    assert sum(count_pairs(shards, required=True)) == len(outcomes) - len(first) == len(keys) - len(first)


def test_a_run_in_which_all_count_has_no_list(finished, tmp_path, capsys) -> None:
    assert export.main([str(finished), "--format", "duplicates", "--to", str(tmp_path)]) == 1
    assert "retrieval.duplicates: once" in capsys.readouterr().err
    assert len(Groups(open_run(str(finished)))) == 0


@pytest.mark.parametrize(
    "options", [["--archive.expansion", "caption"], ["--archive.expansion", "tagging"], ["--retrieval.data"]]
)
def test_images_of_which_no_groups_are_made_count_themselves(world, finished, tmp_path, options) -> None:
    if options == ["--retrieval.data"]:
        options = ["--retrieval.data", str(finished)]
    assert curate(world, tmp_path / "out", "--retrieval.duplicates", "once", *options) == 0
    archive = ConceptArchive.open(tmp_path / "out")
    assert archive.schema.names == ["key", "caption", "duplicate_of", "concepts"]
    assert {row["duplicate_of"] for row in archive} == {None}
    assert not (tmp_path / "out/index/duplicates.arrow").exists()
    assert verify(open_run(str(tmp_path / "out")), 20) == []


@pytest.mark.parametrize("index", ["Flat", "IVF4,Flat", "HNSW8", "IVF4,SQ8"])
def test_text_expansion_and_indexes_that_are_named(worlds, tmp_path, index) -> None:
    """Every kind of index gives groups of the same copies; captions are retrieved once a group."""
    folder, _ = worlds
    output = shutil.copytree(folder / "planted", tmp_path / "out")
    expansion = ["--archive.expansion", "text"] if index == "Flat" else []
    assert curate(folder / "planted.yaml", output, "--retrieval.index", index, *expansion) == 0
    run = open_run(str(output))
    assert planted_copies.found_groups(run).f1 >= 0.95
    curator = open_curator(run)
    path = run.of_shards("embeddings")[0]
    vectors = (
        pq.read_table(path, columns=["embedding"])["embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 128)
    )
    ids, _ = curator.neighbours(normalise(vectors), np.arange(len(vectors)))
    assert all(len(set(curator.representatives[row])) == len(row) for row in ids)
