"""Archives on their way through other programs and back."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from pathlib import Path

import duckdb
import pandas
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import NAMES, curate
from pandas._libs.parsers import STR_NA_VALUES
from tiny_world import jpeg, write_tar, write_world

from curation.archive import SCHEMA, ConceptArchive, Sampler, read_archive
from curation.base.errors import CocuError
from curation.run.run import open_run
from curation.tools import report, show
from curation.tools.export import main as export
from curation.tools.export.openclip import MISSING

# --- rewritten by other programs ----------------------------------------------------------------------------------------


def by_pandas(source: str, target: str) -> None:
    pandas.read_parquet(source).to_parquet(target)


def by_polars(source: str, target: str) -> None:
    polars.read_parquet(source).write_parquet(target)


def by_duckdb(source: str, target: str) -> None:
    duckdb.sql(f"COPY (SELECT caption, 1 AS more, concepts, key FROM '{source}') TO '{target}'")


def by_hand(source: str, target: str) -> None:
    """Types that Parquet's readers may choose: views of text, large lists, whole numbers and reals of 64 bits."""
    entry = pa.struct(
        [("support", pa.int64()), ("concept", pa.large_string()), ("cluster", pa.int64())]
        + [(name, pa.float64()) for name in ("local", "global", "score")]
    )
    schema = pa.schema([("concepts", pa.large_list(entry)), ("key", pa.large_string()), ("caption", pa.string_view())])
    rows = pq.read_table(source).to_pylist()
    with pq.ParquetWriter(target, schema) as writer:
        for start in range(0, len(rows), 7):  # several row groups
            writer.write_table(pa.Table.from_pylist(rows[start : start + 7], schema))


@pytest.mark.parametrize("program", [by_pandas, by_polars, by_duckdb, by_hand])
def test_archives_that_other_programs_wrote_are_read_back(program, finished, tmp_path, capsys):
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    for name in NAMES:
        program(str(finished / "archives" / f"{name}.parquet"), str(copy / "archives" / f"{name}.parquet"))
        table = read_archive(str(copy / "archives" / f"{name}.parquet"))
        assert table.schema.equals(SCHEMA)
        assert table.to_pylist() == read_archive(str(finished / "archives" / f"{name}.parquet")).to_pylist()

    ours, theirs = ConceptArchive.open(finished), ConceptArchive.open(copy)
    keys = ["010003", "000001"]
    assert theirs.select(keys).to_pylist() == ours.select(keys).to_pylist()
    assert theirs.prompts(keys, Sampler("cluster")) == ours.prompts(keys, Sampler("cluster"))
    assert list(theirs.filter(omitted=True, top=1)) == list(ours.filter(omitted=True, top=1))
    assert theirs.to_datasets().to_list() == ours.to_datasets().to_list()
    assert show.main([str(copy), "010003"]) == 0
    assert ours["010003"]["caption"] in capsys.readouterr().out
    assert report.page_of(open_run(str(copy))) == report.page_of(open_run(str(finished)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("caption"), "expected the columns key, caption, concepts, has key, concepts"),
        (lambda row: row.update(key=None), "24 rows have no key"),
        (lambda row: row.update(concepts=[3]), "the column concepts holds list"),
        (lambda row: [entry.pop("score") for entry in row["concepts"]], "no field score"),
        (lambda row: [entry.update(support=70_000) for entry in row["concepts"]], "70000 not in range"),
        (
            lambda row: [entry.update(concept=None) for entry in row["concepts"]],
            "an entry of an archive has no concept",
        ),
        (lambda row: [entry.update(score=float("inf")) for entry in row["concepts"]], "a score is not finite"),
        (
            lambda row: [entry.update(cluster="first") for entry in row["concepts"]],
            "cannot be read as a concept archive",
        ),
    ],
)
def test_other_tables_are_no_archives(change, message, finished, tmp_path):
    rows = pq.read_table(finished / "archives" / "00000.parquet").to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(CocuError, match=message) as raised:
        read_archive(str(tmp_path / "a.parquet"))
    assert "a.parquet: " in str(raised.value) and "\n" not in str(raised.value)


# --- csv ------------------------------------------------------------------------------------------------------------------

CAPTIONS = {
    "lone": "an apple\rand a boat",
    "first": "\ran apple",
    "breaks": "an apple\r\non\nsand",
    "tab": 'an "apple"\ton sand',
    "folder/NA": "NA",
    "0007": "null",
    "none": "None",
    "plain": "an apple",
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory, tiny_clip) -> Path:
    """A run over captions that tables have trouble with."""
    folder = tmp_path_factory.mktemp("odd")
    members = []
    for key, caption in CAPTIONS.items():
        members += [(f"{key}.JPG", jpeg(ground="red")), (f"{key}.txt", caption.encode())]
    write_tar(folder / "00000.tar", members)
    (folder / "concepts.txt").write_text("apple\nboat\nsand\n")
    data = write_world(folder / "odd.yaml", tiny_clip, shards="00000.tar")
    assert curate(data, folder / "out", "--archive.expansion", "caption") == 0
    return folder / "out"


def test_captions_survive_csv_in_every_reader(odd, tmp_path):
    options = ["--to", str(tmp_path), "--text", "{caption}{concepts}", "--score", "99"]
    assert export([str(odd), "--format", "csv", *options]) == 0
    expected = [caption.strip() for caption in CAPTIONS.values()]

    frame = pandas.read_csv(tmp_path / "train.csv", sep="\t")  # as open_clip's trainer does
    assert list(frame.columns) == ["filepath", "title", "key", "file"]
    assert [title.strip() for title in frame["title"]] == expected  # as its tokenizer does
    assert [title for title in frame["title"] if title.strip() not in MISSING] == [
        text for text in expected if text not in MISSING
    ]
    assert frame["key"].tolist() == list(CAPTIONS)
    assert frame["file"].tolist() == [f"{key}.jpg" for key in CAPTIONS]
    assert all(Path(path).is_file() for path in frame["filepath"])

    with open(tmp_path / "train.csv", newline="") as stream:
        assert [row["title"].strip() for row in csv.DictReader(stream, delimiter="\t")] == expected
    frame = polars.read_csv(tmp_path / "train.csv", separator="\t", infer_schema=False)
    assert [title.strip() for title in frame["title"]] == expected


def test_texts_that_pandas_takes_for_missing_are_known():
    assert STR_NA_VALUES - {""} == MISSING


# --- keys -----------------------------------------------------------------------------------------------------------------


def with_key(finished: Path, folder: Path, key: str) -> Path:
    """A copy of a run, one of whose archives has another key."""
    copy = Path(shutil.copytree(finished, folder / "copy"))
    path = copy / "archives" / "00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["key"] = key
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    return copy


@pytest.mark.parametrize("key", ["../../escape", "/absolute", "a/../../b", "..\\x", "C:\\x", ""])
def test_no_member_of_an_exported_tar_leaves_its_folder(key, finished, tmp_path, capsys):
    copy = with_key(finished, tmp_path, key)
    assert export([str(copy), "--format", "webdataset", "--to", str(tmp_path / "to")]) == 1
    assert "would be a file outside of the folder" in capsys.readouterr().err
    for path in (tmp_path / "to").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert not [name for name in tar.getnames() if ".." in name or name.startswith("/")]
    assert export([str(copy), "--format", "jsonl", "--to", str(tmp_path / "lines")]) == 0
    lines = [json.loads(line) for line in (tmp_path / "lines" / "00001.jsonl").read_text().splitlines()]
    assert lines[3]["key"] == key


def test_keys_with_folders_are_exported_as_they_are(finished, tmp_path):
    copy = with_key(finished, tmp_path, "train/a b/é.c")
    assert export([str(copy), "--format", "webdataset", "--to", str(tmp_path / "to")]) == 0
    with tarfile.open(tmp_path / "to" / "00001.concepts.tar") as tar:
        assert "train/a b/é.c.concepts.json" in tar.getnames()


def test_control_characters_are_not_printed(finished, tmp_path, capsys):
    key = "\x1b[2Jkey\x07"
    copy = with_key(finished, tmp_path, key)
    path = copy / "archives" / "00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[3]["caption"] = "\x1b]0;owned\x07 [red]dog\x9b"
    rows[3]["concepts"][0]["concept"] = "\x1b[8mcat"
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path)
    assert show.main([str(copy), key]) == 0
    out = io.StringIO(capsys.readouterr().out)
    assert all(line.rstrip("\n").isprintable() for line in out)
    assert "[red]dog" in out.getvalue() and "cat" in out.getvalue()
