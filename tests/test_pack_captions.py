"""Packing several columns of captions: what is in the tars, and the configuration that reads them back."""

from __future__ import annotations

import csv
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_world import jpeg, write_tar

from curation.config import load
from curation.samples import Reject, list_shards, read_samples
from curation.tools.pack.command import main

ALT = {"a": "a dog", "b": "", "c": ""}
BLIP = {"a": "two dogs", "b": "a cat", "c": " "}
TWO = ["--caption-column", "alt", "--caption-column", "b.lip"]


def images(folder, names=ALT):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.jpg").write_bytes(jpeg())
    return folder


def table(folder, suffix):
    rows = [{"file_name": f"{name}.jpg", "alt": ALT[name], "b.lip": BLIP[name]} for name in ALT]
    path = folder / f"my{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    return path


def packed(tmp_path, source, *options):
    """What curation reads from the packed tars: captions with their sources, by file name."""
    assert main([str(source), "-o", str(tmp_path / "packed" / "{}.tar"), *options]) == 0
    config = load(str(tmp_path / "packed.yaml"))
    (shard,) = list_shards(config.shards)
    with open(shard.path, "rb") as stream:
        items = list(read_samples(stream, shard.path, config.image, config.caption, captions=config.captions))
    assert not [item for item in items if isinstance(item, Reject)]
    return {item.key: {caption.text: caption.sources for caption in item.captions} for item in items}


EXPECTED = {
    "a": {"a dog": ("json:captions.alt",), "two dogs": ("json:captions.b.lip",)},
    "b": {"a cat": ("json:captions.b.lip",)},
}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_several_columns_of_a_table(tmp_path, suffix):
    images(tmp_path / "photos")
    source = table(tmp_path / "photos", suffix)
    assert packed(tmp_path, source, *TWO) == EXPECTED
    values = yaml.safe_load((tmp_path / "packed.yaml").read_text())
    assert values["captions"] == ["json:captions.alt", "json:captions.b.lip"]
    assert "caption" not in values
    with open(tmp_path / "packed" / "rejects.csv") as stream:
        assert [row["reason"] for row in csv.DictReader(stream)] == ["caption is empty"]
    with tarfile.open(tmp_path / "packed" / "00000.tar") as tar:
        assert tar.extractfile("b.txt").read() == b"a cat"  # the first that there is


def test_one_column_is_packed_as_before(tmp_path):
    images(tmp_path / "photos")
    source = table(tmp_path / "photos", ".csv")
    assert main([str(source), "-o", str(tmp_path / "packed" / "{}.tar"), "--caption-column", "b.lip"]) == 0
    values = yaml.safe_load((tmp_path / "packed.yaml").read_text())
    assert values["caption"] == "txt"
    assert "captions" not in values
    with tarfile.open(tmp_path / "packed" / "00000.tar") as tar:
        assert json.loads(tar.extractfile("a.json").read()) == {"file_name": "a.jpg"}


def test_files_and_fields_beside_pictures(tmp_path):
    folder = images(tmp_path / "photos")
    (folder / "a.txt").write_text("a dog")
    (folder / "a.json").write_text(json.dumps({"blip": ["two dogs", "a pet"], "url": "x"}))
    (folder / "b.json").write_text(json.dumps({"blip": "a cat"}))
    expected = {
        "a": {text: ("json:captions.txt",) for text in ["a dog"]}
        | {text: ("json:captions.blip",) for text in ["two dogs", "a pet"]},
        "b": {"a cat": ("json:captions.blip",)},
    }
    options = ["--caption-column", "txt", "--caption-column", "blip"]
    assert packed(tmp_path, folder, *options) == expected

    members = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]
    tar = write_tar(tmp_path / "unsorted.tar", members[::-1])
    (tmp_path / "again").mkdir()
    found = packed(tmp_path / "again", tar, *options)
    assert sorted(map(str, found.values())) == sorted(map(str, expected.values()))


def test_pictures_inside_parquet(tmp_path):
    rows = {"image": [jpeg()], "alt": ["a dog"], "b.lip": [["two dogs", "a pet"]], "size": [3]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    (captions,) = packed(tmp_path, tmp_path / "rows.parquet", *TWO).values()
    assert captions == {
        "a dog": ("json:captions.alt",),
        "two dogs": ("json:captions.b.lip",),
        "a pet": ("json:captions.b.lip",),
    }


def test_what_cannot_be(tmp_path, capsys):
    images(tmp_path / "photos")
    source = table(tmp_path / "photos", ".csv")
    output = ["-o", str(tmp_path / "packed" / "{}.tar")]
    assert main([str(source), *output, "--caption-column", "alt", "--caption-column", "blip"]) == 1
    assert "no column blip" in capsys.readouterr().err
    (tmp_path / "photos" / "list.txt").write_text("a.jpg\ta dog\n")
    assert main([str(tmp_path / "photos" / "list.txt"), *output, *TWO]) == 1
    assert "a list has one caption a line" in capsys.readouterr().err
