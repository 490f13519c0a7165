"""Reading archives: by key and shard, filtered, as tables of other tools, joined with samples, exported."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from hypothesis import given
from hypothesis import strategies as st
from tiny_world import ROWS, SHARDS

from curation.archive import SCHEMA, ConceptArchive, Filter, Sampler, UnknownKey, archive_batch, flatten
from curation.archive.keys import Footer, locate
from curation.base.errors import CocuError
from curation.base.parquet import parquet_writer
from curation.run.run import open_run, portable
from curation.tools.export import main as export

NAMES = [f"{shard:05d}" for shard in range(SHARDS)]


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "out"))


# --- by key, by shard, all of them ----------------------------------------------------------------------------------------


def test_all_archives_come_in_the_order_of_the_tars(archive, rows):
    assert archive.shards == NAMES
    assert len(archive) == len(rows) == SHARDS * ROWS
    assert list(archive) == rows
    assert archive.to_arrow().to_pylist() == rows
    assert archive.table("00001").to_pylist() == rows[ROWS : 2 * ROWS]


def test_an_archive_is_found_by_its_key(archive, rows):
    assert archive["010003"] == next(row for row in rows if row["key"] == "010003")
    assert "010003" in archive
    assert "bad0" not in archive
    keys = ["020005", "000001", "020004", "000001"]
    assert archive.select(keys)["key"].to_pylist() == keys
    assert archive.select([]).num_rows == 0
    with pytest.raises(UnknownKey, match=r"out: no archive has the key bad0; rejected samples are in rejects/"):
        archive["bad0"]
    with pytest.raises(KeyError):
        archive.select(["000001", "bad0"])


def test_a_key_is_looked_for_only_where_it_may_be(archive):
    opened = []

    def column(shard):
        opened.append(shard)
        return archive.table(NAMES[shard])["key"].combine_chunks()

    shards, found = locate(["010003", "010000"], archive._footers, column)
    assert (shards.tolist(), found.tolist(), opened) == ([1, 1], [3, 0], [1])


@given(st.lists(st.lists(st.text("ab", max_size=2), unique=True, max_size=4), max_size=4), st.data())
def test_keys_are_located_as_a_search_through_all_rows_does(shards, data):
    statistics = [data.draw(st.booleans()) and bool(keys) for keys in shards]
    footers = [
        Footer(len(keys), min(keys), max(keys)) if known else Footer(len(keys), None, None)
        for keys, known in zip(shards, statistics, strict=True)
    ]
    wanted = data.draw(st.lists(st.text("ab", max_size=2), max_size=6))
    shard, row = locate(wanted, footers, lambda number: pa.array(shards[number], pa.string()))
    for key, *place in zip(wanted, shard.tolist(), row.tolist(), strict=True):
        holders = [number for number, keys in enumerate(shards) if key in keys]
        assert place == ([holders[0], shards[holders[0]].index(key)] if holders else [-1, -1])


def test_a_run_whose_manifest_does_not_list_shards_and_whose_tars_are_gone_is_read(copied, rows):
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["shards"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert list(ConceptArchive.open(copied)) == rows


def test_archives_are_read_from_a_remote_file_system(finished, rows):
    memory = fsspec.filesystem("memory")
    memory.put(str(finished), "/reuse", recursive=True)
    try:
        remote = ConceptArchive.open("memory://reuse")
        assert remote["020007"] == next(row for row in rows if row["key"] == "020007")
        assert remote.filter(omitted=True, top=1).to_arrow().num_rows == len(rows)
    finally:
        memory.rm("/reuse", recursive=True)


def test_files_of_several_row_groups_are_read(tmp_path):
    """Arrow's own reader fails for them in one go; a written table gets a group every few rows here."""
    names = pa.array(["cat", "dog", "tree"])
    path = str(tmp_path / "out" / "archives" / "00000.parquet")
    with parquet_writer(path, SCHEMA, {}) as writer:
        for start in range(0, 12, 4):
            keys = pa.array([f"{number:03d}" for number in range(start, start + 4)])
            columns = {name: np.full(4, 1.5, np.float32) for name in ("score", "global", "local")}
            columns |= {name: np.zeros(4, np.int16) for name in ("cluster", "support")}
            writer.write_batch(archive_batch(keys, keys, names, np.arange(5), np.arange(4) % 3, **columns))
    assert pq.ParquetFile(path).num_row_groups == 3
    (tmp_path / "out" / "manifest.json").write_text(json.dumps({"config": {}}))
    opened = ConceptArchive.open(tmp_path / "out")
    assert [row["concepts"][0]["concept"] for row in opened] == ["cat", "dog", "tree", "cat"] * 3
    assert opened["011"]["concepts"][0]["concept"] == "cat"
    assert flatten(opened.to_arrow())["concept"].to_pylist() == ["cat", "dog", "tree", "cat"] * 3
    assert opened.read("00000").keys[-1] == "011"


# --- filters --------------------------------------------------------------------------------------------------------------


def left(row, score=-np.inf, support=0, top=None, omitted=False):
    """A filter, written plainly."""
    kept = [c for c in row["concepts"] if c["score"] >= score and c["support"] >= support]
    # the tiny world's concepts are words that are no part of each other, and their plurals begin with them
    kept = [c for c in kept if not omitted or c["concept"] not in row["caption"]]
    return row | {"concepts": kept[:top]}


@pytest.mark.parametrize(
    "condition",
    [{"score": 1.8}, {"support": 2}, {"top": 2}, {"omitted": True}, {"score": 1.7, "support": 1, "top": 1, "omitted": True},
     {"score": 99}],
)  # fmt: skip
def test_filters_keep_what_they_say(archive, rows, condition):
    expected = [left(row, **condition) for row in rows]
    found = archive.filter(**condition)
    assert list(found) == expected
    assert expected != rows
    assert found["000004"] == expected[4]
    arrays = found.read("00000")
    assert np.diff(arrays.offsets).tolist() == [len(row["concepts"]) for row in expected[:ROWS]]


def test_filters_apply_in_turn(archive, rows):
    found = list(archive.filter(top=2).filter(support=2))
    assert found == [left(left(row, top=2), support=2) for row in rows]
    assert found != list(archive.filter(top=2, support=2))


@pytest.mark.parametrize(("wrong", "message"), [({"top": 0}, "filter.top"), ({"support": -1}, "filter.support"),
                                                ({"score": float("nan")}, "filter.score")])  # fmt: skip
def test_filters_are_checked(wrong, message):
    with pytest.raises(CocuError, match=message):
        Filter(**wrong)


# --- other tools ----------------------------------------------------------------------------------------------------------


def plain(value):
    """Without numpy."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, np.ndarray)):
        return [plain(item) for item in value]
    return value


def test_tables_of_other_tools_hold_the_same_rows(archive, rows):
    flat = [{"key": row["key"], "caption": row["caption"], **concept} for row in rows for concept in row["concepts"]]
    assert plain(archive.to_pandas().to_dict("records")) == rows
    assert archive.to_pandas(flat=True).to_dict("records") == flat
    assert archive.to_polars().to_dicts() == rows
    assert archive.to_polars(flat=True).to_dicts() == flat
    assert archive.filter(top=1).to_polars(flat=True).height == sum(bool(row["concepts"]) for row in rows)


def test_hugging_face_data_sets_hold_the_same_rows(archive, rows):
    whole, streamed = archive.to_datasets(), archive.to_datasets(streaming=True)
    assert whole.to_list() == rows
    assert list(streamed) == rows
    assert streamed.num_shards == SHARDS
    assert whole.features == streamed.features


def test_files_are_read_with_nothing_of_ours(finished, rows):
    import datasets
    import duckdb

    pattern = str(finished / "archives" / "*.parquet")
    assert duckdb.sql(f"SELECT key FROM '{pattern}' ORDER BY key").fetchall() == [(row["key"],) for row in rows]
    assert polars.read_parquet(pattern).to_dicts() == rows
    assert list(datasets.load_dataset("parquet", data_files=pattern, split="train", streaming=True)) == rows


# --- sampling and joining -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cluster", "top", "weighted", "caption"])
def test_prompts_of_keys_are_those_of_the_trainer(archive, kind):
    """The trainer draws for whole shards."""
    sampler = Sampler(kind, temperature=0.5)
    expected = {}
    for name in NAMES:
        archives = archive.read(name, kind == "caption")
        expected |= dict(zip(archives.keys, archives.prompts(sampler, 3, 5), strict=True))
    keys = ["020001", "000002", "010000", "000001"]
    assert archive.prompts(keys, sampler, seed=3, epoch=5) == [expected[key] for key in keys]
    assert archive.prompts(keys, sampler, seed=3, epoch=6) != [expected[key] for key in keys] or kind == "top"


def tars(world):
    return [str(world.parent / f"{name}.tar") for name in NAMES]


@pytest.mark.parametrize("first", [True, False])
def test_a_webdataset_pipeline_is_joined_in_one_line(archive, world, rows, first):
    """Before decoding, which leaves out what curation rejected, or after it."""
    data = wds.WebDataset(tars(world), shardshuffle=False)
    if first:
        data = data.compose(archive.join).decode("pil", partial=True)
    else:
        data = data.decode("pil", handler=wds.ignore_and_continue).compose(archive.join)
    found = list(data)
    assert [sample["__key__"] for sample in found] == [row["key"] for row in rows]
    assert [sample["concepts"] for sample in found] == [row["concepts"] for row in rows]
    assert [sample["txt"].strip() for sample in found] == [row["caption"] for row in rows]
    assert {sample["jpg"].size for sample in found} == {(40, 40)}


def test_shuffled_samples_get_the_prompts_of_the_trainer(archive, world):
    sampler, numbers = Sampler("cluster", 2, 0.3), iter([0] * 30 + [1] * 1000)
    for epoch in (2, lambda: 2):
        join = partial(archive.join, sampler=sampler, seed=1, epoch=epoch)
        found = list(wds.WebDataset(tars(world), shardshuffle=False).shuffle(50).compose(join))
        assert len({sample["__key__"] for sample in found}) == SHARDS * ROWS
        keys = [sample["__key__"] for sample in found]
        assert keys != sorted(keys)
        assert [sample["prompts"] for sample in found] == archive.prompts(keys, sampler, 1, 2)
    changing = partial(archive.join, sampler=sampler, epoch=lambda: next(numbers))
    found = list(wds.WebDataset(tars(world), shardshuffle=False).compose(changing))
    keys = [sample["__key__"] for sample in found]
    drawn = archive.prompts(keys, sampler), archive.prompts(keys, sampler, epoch=1)
    assert [sample["prompts"] for sample in found[:20]] == drawn[0][:20]
    assert [sample["prompts"] for sample in found[40:]] == drawn[1][40:]


def test_samples_without_an_archive_are_an_error_or_keep_their_caption(archive):
    stray = {"__key__": "000099", "__url__": "data/00000.tar", "txt": b" a kite ", "jpg": b""}
    other = stray | {"__url__": "elsewhere/00077.tar"}
    rejected = {"__key__": "bad0", "__url__": "pipe:curl -s https://host/00001.tar?signature=1/2", "jpg": b""}
    assert list(archive.join([rejected])) == []
    for sample in (stray, other):
        with pytest.raises(CocuError, match=r"tar: 000099 has no archive in .*; set required to false"):
            list(archive.join([sample]))
        (found,) = archive.join([sample], Sampler(concepts=2), required=False)
        assert (found["concepts"], found["prompts"]) == ([], ["a kite", "a kite"])
    (found,) = archive.filter(top=1).join([stray | {"__key__": "000001"}])
    assert len(found["concepts"]) == 1


def test_an_archive_travels_to_worker_processes(archive, rows):
    assert len(archive) and pickle.loads(pickle.dumps(archive.filter(top=1)))["000000"] == left(rows[0], top=1)


# --- export ---------------------------------------------------------------------------------------------------------------


def test_exported_lines_are_the_archives(finished, tmp_path, rows, capsys):
    assert export([str(finished), "--format", "jsonl", "--to", str(tmp_path), "--top", "2", "--workers", "2"]) == 0
    lines = [json.loads(line) for name in NAMES for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert lines == [left(row, top=2) for row in rows]
    assert "72 samples of 3 shards as jsonl" in capsys.readouterr().out


def test_exported_tars_join_with_the_images_by_key(finished, tmp_path, world, rows):
    assert export([str(finished), "--format", "webdataset", "--to", str(tmp_path), "--support", "2"]) == 0
    sidecars = [str(tmp_path / f"{name}.concepts.tar") for name in NAMES]
    found = {
        sample["__key__"]: sample["concepts.json"] for sample in wds.WebDataset(sidecars, shardshuffle=False).decode()
    }
    assert found == {row["key"]: left(row, support=2)["concepts"] for row in rows}
    with tarfile.open(sidecars[0]) as tar:
        assert tar.getnames() == [f"{row['key']}.concepts.json" for row in rows[:ROWS]]


def test_exported_csv_names_images_and_what_captions_omit(finished, tmp_path, world, rows):
    assert export([str(finished), "--format", "csv", "--to", str(tmp_path), "--omitted", "--score", "1.9"]) == 0
    with open(tmp_path / "train.csv", newline="") as stream:
        lines = list(csv.DictReader(stream, delimiter="\t"))
    assert len(lines) == len(rows)
    texts = set()
    images = [
        sample["jpg"] for sample in wds.WebDataset(tars(world), shardshuffle=False) if "bad" not in sample["__key__"]
    ]
    for line, row, image in zip(lines, rows, images, strict=True):
        names = [concept["concept"] for concept in left(row, score=1.9, omitted=True)["concepts"]]
        assert line["title"] == row["caption"] + (f", with {', '.join(names)}" if names else "")
        assert Path(line["filepath"]).read_bytes() == image
        texts.add(bool(names))
    assert texts == {True, False}


def test_an_export_of_another_tar_is_refused(copied, tmp_path, world, capsys):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["paths"] = [str(tmp_path / "00000.tar"), *tars(world)[1:]]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(tars(world)[0]) as whole, tarfile.open(tmp_path / "00000.tar", "w") as cut:
        for member in whole.getmembers()[:30]:
            cut.addfile(member, io.BytesIO(whole.extractfile(member).read()))
    assert export([str(copied), "--format", "csv", "--to", str(tmp_path / "csv")]) == 1
    assert "00000.tar: 000010 is missing: the tar is not the one that was curated" in capsys.readouterr().err
    assert not (tmp_path / "csv" / "train.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--text", "{caption}"], "has no {concepts}"), (["--top", "0"], "filter.top: 0 must be at least 1")],
)
def test_mistakes_of_an_export_get_one_line(finished, tmp_path, capsys, arguments, message):
    assert export([str(finished), "--format", "csv", "--to", str(tmp_path), *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert export([str(tmp_path), "--format", "jsonl"]) == 1
    assert "no manifest.json" in capsys.readouterr().err


def test_the_command_exists():
    text = subprocess.run(
        [sys.executable, "-m", "curation.tools.export", "--help"], capture_output=True, text=True, check=True
    )
    assert "open_clip" in text.stdout


def test_reading_needs_no_torch(finished):
    code = (
        f"from curation.archive import ConceptArchive, Sampler; a = ConceptArchive.open({str(finished)!r}); "
        "a.filter(top=2, omitted=True).to_arrow(flat=True); a.prompts(['000001'], Sampler()); next(iter(a)); "
        "import sys; print('torch' in sys.modules, 'apache_beam' in sys.modules, 'datasets' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split() == ["False"] * 3, run.stderr


def test_an_output_folder_may_be_named_by_a_link(finished, tmp_path):
    """Its files say where the tars are, relative to where it really is."""
    link = tmp_path / "deep" / "er" / "link"
    link.parent.mkdir(parents=True)
    link.symlink_to(finished)
    assert ConceptArchive.open(str(link)).sources == ConceptArchive.open(str(finished)).sources
    found = open_run(str(link))
    assert [shard.path for shard in found.shards] == [shard.path for shard in open_run(str(finished)).shards]
    assert portable(found.config, str(link)) == portable(found.config, str(finished))
