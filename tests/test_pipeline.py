"""Whole runs: files, runners, restarts, errors."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import duckdb
import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import NAMES, archived, copy, curate, tables
from tiny_world import COLOURS, GROUNDS, ROWS, SHARDS, jpeg, write_tar, write_world

from curation.archive import SCHEMA, archive_batch, read_archive, read_shard
from curation.base.errors import CocuError
from curation.base.parquet import parquet_writer
from curation.config import load
from curation.run.manifest import begin, finish
from curation.run.progress import clear_progress, read_progress
from curation.run.run import Run, open_run, plan_run
from curation.run.stages import plan, run_stage
from curation.samples import Shard
from curation.tools import verify
from pipelines.curate import main

# --- files ---


def test_every_file_of_the_contract_is_written(finished):
    written = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    expected = {"manifest.json", "vocabulary.parquet", "index/image.faiss", "index/index.json"}
    for name in NAMES:
        expected |= {f"{kind}/{name}.parquet" for kind in ("embeddings", "archives", "rejects")} | {
            f"stats/{name}.json"
        }
    assert expected <= written
    assert not [name for name in written if "partial" in name or "progress" in name]


def test_archive_schema_is_the_documented_one(finished):
    table = tables(finished, "archives")["00000"]
    concept = pa.struct(
        [
            ("concept", pa.dictionary(pa.int32(), pa.string())),
            ("score", pa.float32()),
            ("global", pa.float32()),
            ("local", pa.float32()),
            ("cluster", pa.int16()),
            ("support", pa.int16()),
        ]
    )
    assert table.schema.equals(
        pa.schema([("key", pa.string()), ("caption", pa.string()), ("concepts", pa.list_(concept))])
    )
    assert json.loads(table.schema.metadata[b"cocu"])["parameters"]["neighbors"] == 4


def test_embedding_and_vocabulary_schemas_are_the_documented_ones(finished):
    embeddings = tables(finished, "embeddings")["00000"].schema
    assert embeddings.names == ["key", "caption", "concepts", "embedding"]
    assert embeddings.field("concepts").type == pa.list_(pa.int32())
    assert embeddings.field("embedding").type == pa.list_(pa.float16(), 32)
    vocabulary = pq.read_table(finished / "vocabulary.parquet")
    assert vocabulary.schema.names == ["concept", "count", "visualness", "embedding"]
    assert vocabulary["concept"].to_pylist() == [*COLOURS, *GROUNDS]


def test_rows_and_rejects_add_up_to_the_samples_of_each_tar(finished):
    for name in NAMES:
        stats = json.loads((finished / "stats" / f"{name}.json").read_text())
        rows = pq.read_metadata(finished / "archives" / f"{name}.parquet").num_rows
        rejects = pq.read_table(finished / "rejects" / f"{name}.parquet").to_pylist()
        assert rows == stats["rows"] == ROWS
        assert rows + len(rejects) == stats["samples"]
    assert json.loads((finished / "manifest.json").read_text())["counts"]["samples"] == SHARDS * ROWS + 3


def test_rejects_say_why(finished):
    reasons = {row["key"]: row["reason"] for row in pq.read_table(finished / "rejects" / "00001.parquet").to_pylist()}
    assert "cannot be decoded" in reasons["bad0"]
    assert "no image field" in reasons["bad1"]
    assert reasons["bad2"] == "caption is empty"


def test_rows_keep_the_order_of_the_tar(finished):
    for number, name in enumerate(NAMES):
        expected = [f"{number:02d}{row:04d}" for row in range(ROWS)]
        assert tables(finished, "archives")[name]["key"].to_pylist() == expected
        assert tables(finished, "embeddings")[name]["key"].to_pylist() == expected


def test_captions_mention_what_was_written_into_them(finished):
    names = pq.read_table(finished / "vocabulary.parquet")["concept"].to_pylist()
    for table in tables(finished, "embeddings").values():
        for row in table.to_pylist():
            said = {names[number] for number in row["concepts"]}
            assert said == {name for name in names if name in row["caption"]}


def test_archives_are_sorted_finite_and_include_the_own_caption(finished):
    said = {
        row["key"]: row["concepts"] for table in tables(finished, "embeddings").values() for row in table.to_pylist()
    }
    names = pq.read_table(finished / "vocabulary.parquet")["concept"].to_pylist()
    for key, concepts in archived(finished).items():
        scores = [item["score"] for item in concepts]
        assert scores == sorted(scores, reverse=True)
        assert np.isfinite([[item[name] for name in ("score", "global", "local")] for item in concepts]).all()
        assert {names[number] for number in said[key]} <= {item["concept"] for item in concepts}


def test_every_score_can_be_recomputed_from_the_files(finished):
    """docs/method.md §2 and §3, literally, from nothing but embeddings/ and vocabulary.parquet."""
    rows = [row for table in tables(finished, "embeddings").values() for row in table.to_pylist()]
    unit = lambda v: np.asarray(v, np.float64) / np.linalg.norm(np.asarray(v, np.float64))  # noqa: E731
    images = np.array([unit(row["embedding"]) for row in rows])
    vocabulary = pq.read_table(finished / "vocabulary.parquet").to_pylist()
    texts = np.array([unit(row["embedding"]) for row in vocabulary])
    archives = archived(finished)
    for i, row in enumerate(rows):
        neighbours = sorted(range(len(rows)), key=lambda j: (j != i, -round(float(images[i] @ images[j]), 6), j))[:4]
        cosines = [float(images[i] @ images[j]) for j in sorted(range(len(rows)), key=lambda j: -images[i] @ images[j])]
        if cosines[3] - cosines[4] < 1e-5:
            continue  # a tie at the border: either neighbour is right
        archive = {c for j in neighbours for c in rows[j]["concepts"]}
        s = {(c, j): max(float(texts[c] @ images[j]), 1e-4) for c in archive for j in {*neighbours, i}}
        refs = {c: {j for j in neighbours if c in rows[j]["concepts"]} | {i} for c in archive}
        largest = max(s[c, j] for c in archive for j in refs[c]) if archive else 0
        expected = {
            vocabulary[c]["concept"]: s[c, i] / largest + s[c, i] / np.mean([s[c, j] for j in refs[c]]) for c in archive
        }
        found = {item["concept"]: item["score"] for item in archives[row["key"]]}
        assert found.keys() == expected.keys()
        assert [found[name] for name in expected] == pytest.approx(list(expected.values()), rel=1e-4)


def test_duckdb_reads_archives_with_nothing_of_ours(finished):
    query = f"""select c.concept, count(*) n, avg(c.score) from
        (select unnest(concepts) c from '{finished}/archives/*.parquet') group by 1 order by n desc"""
    found = {name: count for name, count, _ in duckdb.sql(query).fetchall()}
    expected: dict[str, int] = {}
    for concepts in archived(finished).values():
        for item in concepts:
            expected[item["concept"]] = expected.get(item["concept"], 0) + 1
    assert found == expected


def test_the_manifest_has_no_absolute_path_and_opens_the_run_again(finished, world):
    text = (finished / "manifest.json").read_text()
    assert f'"{world.parent}' not in text
    assert f":{world.parent}" not in text
    assert open_run(str(finished)).shards == plan_run(load(str(world)), str(finished)).shards


# --- runners, runs, kills ---


def test_worker_processes_and_one_process_give_the_same_archives(world, finished, tmp_path):
    assert curate(world, tmp_path / "out", "--workers", "2", runner="DirectRunner") == 0
    for kind in ("archives", "embeddings", "rejects"):
        assert tables(tmp_path / "out", kind) == tables(finished, kind)


def test_blocks_do_not_show_in_the_files(world, finished, tmp_path, monkeypatch):
    """Archives are ranked in blocks, and one file is one row group, which every reader of Parquet can read whole."""
    monkeypatch.setattr("curation.run.stages.archives.BLOCK", 7)
    assert curate(world, tmp_path / "out") == 0
    for path in sorted((finished / "archives").iterdir()):
        written = pq.ParquetFile(tmp_path / "out" / "archives" / path.name)
        assert written.num_row_groups == 1
        assert written.read().to_pylist() == pq.read_table(path).to_pylist()


def test_archives_in_several_row_groups_with_names_of_their_own_are_read(tmp_path):
    path, columns = str(tmp_path / "a.parquet"), {name: np.ones(3) for name in ("score", "global", "local")}
    columns |= {name: np.zeros(3, np.int16) for name in ("cluster", "support")}
    with parquet_writer(path, SCHEMA, {}) as writer:
        for names, concepts in ((["x", "y", "z"], [0, 1, 2]), (["p", "z"], [1, 0, 1])):
            rows = (
                pa.array(["a", "b"]),
                pa.array(["c", "d"]),
                pa.array(names),
                np.array([0, 1, 3]),
                np.array(concepts),
            )
            writer.write_batch(archive_batch(*rows, **columns))
    archives = read_shard(path)
    assert [archives.names[number] for number in archives.concepts] == ["x", "y", "z", "z", "p", "z"]
    assert archives.offsets.tolist() == [0, 1, 3, 4, 6]
    found = [[concept["concept"] for concept in row["concepts"]] for row in read_archive(path).to_pylist()]
    assert found == [["x"], ["y", "z"], ["z"], ["p", "z"]]


def test_a_finished_run_is_found_finished(world, finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert curate(world, finished) == 0
    assert "already finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def computed(outputs: Run) -> dict[str, list[str]]:
    """Run all stages without an engine; which parts of each stage were computed, not kept."""
    made = {}
    clear_progress(outputs)
    begin(outputs)
    for stage in plan(outputs):
        for shard in outputs.shards if stage.per_shard else [None]:
            run_stage(stage, outputs, shard)
        made[stage.name] = [note.part for note in read_progress(outputs, stage.name) if note.state == "computed"]
    finish(outputs)
    return {name: parts for name, parts in made.items() if parts}


def test_only_what_depends_on_a_change_is_computed_again(world, finished, tiny_clip, tmp_path):
    folder = copy(finished, tmp_path)

    def again(**changes: object) -> dict[str, list[str]]:
        path = write_world(world.parent / f"{tmp_path.name}.yaml", tiny_clip, **changes)
        return computed(plan_run(load(str(path)), str(folder)))

    assert again() == {}
    assert again(archive={"ranking": "similarity"}) == {"archive": NAMES}
    assert again(retrieval={"neighbors": 3}, archive={"ranking": "similarity"}) == {"archive": NAMES}
    assert again() == {"archive": NAMES}
    (world.parent / "fewer.txt").write_text("apples\nsand\n")
    assert again(vocabulary={"source": "fewer.txt"}) == {
        "candidates": ["all"],
        "visualness": NAMES,
        "vocabulary": ["all"],
        "concepts": NAMES,
        "mentions": ["all"],
        "archive": NAMES,
    }
    assert "index" in again(retrieval={"neighbors": 4, "index": "HNSW8"}, vocabulary={"source": "fewer.txt"})


def test_an_approximate_index_is_filled_in_parts_tuned_and_kept(world, finished, tiny_clip, tmp_path):
    retrieval = {"neighbors": 4, "index": "IVF2,SQfp16"}
    path = write_world(world.parent / f"{tmp_path.name}.yaml", tiny_clip, retrieval=retrieval)
    folder = copy(finished, tmp_path)
    made = computed(plan_run(load(str(path)), str(folder)))
    assert made == {
        "train index": ["all"],
        "fill index": NAMES,
        "index": ["all"],
        "tune index": ["all"],
        "archive": NAMES,
    }
    notes = json.loads((folder / "index" / "index.json").read_text())
    rows = sum(len(table) for table in tables(folder, "archives").values())
    assert faiss.read_index(str(folder / "index" / "image.faiss")).ntotal == notes["index"]["rows"] == rows
    assert notes["tune index"]["recall"] >= 0.95
    assert notes["tune index"]["search"] in ("nprobe=1", "nprobe=2")
    assert json.loads((folder / "manifest.json").read_text())["index"]["index"]["factory"] == "IVF2,SQfp16"
    assert not (folder / "image-codes").exists()  # they are in the index now
    (folder / "archives" / f"{NAMES[1]}.parquet").unlink()
    assert computed(plan_run(load(str(path)), str(folder))) == {"archive": [NAMES[1]]}
    (folder / "index" / "image.faiss").unlink()
    again = computed(plan_run(load(str(path)), str(folder)))
    assert again == {"fill index": NAMES, "index": ["all"]}
    assert verify.main([str(folder)]) == 0


def test_a_missing_or_damaged_file_is_made_again_and_nothing_else(world, finished, tmp_path):
    folder = copy(finished, tmp_path)
    outputs = plan_run(load(str(world)), str(folder))
    (folder / "archives" / "00001.parquet").unlink()
    path = folder / "archives" / "00002.parquet"
    path.write_bytes(path.read_bytes()[:200])
    assert computed(outputs) == {"archive": ["00001", "00002"]}
    assert tables(folder, "archives") == tables(finished, "archives")


def test_a_touched_shard_is_kept_and_a_changed_one_is_not(world, finished, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world.parent, data)
    outputs = plan_run(load(str(data / world.name)), str(copy(finished, tmp_path)))
    os.utime(data / "00000.tar")
    assert computed(outputs) == {}
    write_tar(data / "00000.tar", [("x.jpg", jpeg(ground="red")), ("x.txt", b"an apple")])
    made = computed(outputs)
    assert made["embed"] == ["00000"]
    assert made["concepts"] == ["00000"]
    assert made["archive"] == NAMES  # the index has changed


def test_a_shard_that_is_no_longer_asked_for_leaves_no_files(world, finished, tiny_clip, tmp_path):
    folder = copy(finished, tmp_path)
    path = write_world(world.parent / "two.yaml", tiny_clip, shards=["00000.tar", "00002.tar"])
    assert curate(path, folder) == 0
    for kind in ("archives", "embeddings", "rejects"):
        assert list(tables(folder, kind)) == ["00000", "00002"]


# --- errors ---


@pytest.mark.parametrize("runner", ["inprocess", "DirectRunner"])
def test_a_truncated_shard_stops_the_run_with_its_name(world, tiny_clip, tmp_path, capfd, runner):
    whole = (world.parent / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole)
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 2 + 700])
    shutil.copy(world.parent / "concepts.txt", tmp_path)
    path = write_world(tmp_path / "broken.yaml", tiny_clip, shards="*.tar")
    assert curate(path, tmp_path / "out", "--workers", "1", runner=runner) == 1
    error = capfd.readouterr().err.replace("\n", " ")
    assert str(tmp_path / "00001.tar") in error
    assert "cannot be read as a tar" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--retrieval.neighbours", "3"],
            "unknown option --retrieval.neighbours (did you mean '--retrieval.neighbors'?)",
        ),
        (["--retrieval.neighbors", "many"], "retrieval.neighbors: expected int, found 'many'"),
        (["--archive.expansion", "visoin"], "did you mean 'vision'"),
        (["--encoder.device", "cuda:99"], "cuda:99 was asked for"),
        (["--encoder.model", "local-dir:nowhere"], "nowhere is not a folder"),
        (["--encoder.model", "ViT-B-99"], "encoder.pretrained: missing for ViT-B-99"),
        (["--shards", "nowhere/{0..3}.tar"], "nowhere/0.tar: no such file"),
        (["--shards", "nowhere/*.tar"], "matches no file"),
        (["--retrieval.data", "nowhere"], "no manifest.json"),
        (["--retrieval.index", "IVF4,Flut"], "FAISS cannot build IVF4,Flut"),
    ],
)
def test_mistakes_get_one_clear_line(world, tmp_path, capfd, options, message):
    assert curate(world, tmp_path / "out", *options) == 1
    error = capfd.readouterr().err.replace("\n", " ")
    assert message in error
    assert "Traceback" not in error


def test_an_unknown_data_set_lists_the_packaged_ones(capfd):
    assert main(["--data", "cc12"]) == 1
    error = capfd.readouterr().err.replace("\n", " ")
    assert "did you mean 'cc12m'?" in error
    assert "redcaps12m" in error


def test_an_error_inside_a_stage_names_the_shard(world, tmp_path):
    outputs = plan_run(load(str(world)), str(tmp_path))
    failing = replace(plan(outputs)[0], compute=lambda run, shard, record, progress: 1 / 0)
    with pytest.raises(CocuError, match=r"00000\.tar: stage embed failed: ZeroDivisionError"):
        run_stage(failing, outputs, Shard(0, "00000", str(world.parent / "00000.tar")))
