"""Packing: images as people have them become tars that are read as samples, and every file is one or a reject."""

from __future__ import annotations

import csv
import json
import os
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed import NAMES, failed, pack, picture, rejects, samples, write_folder
from tiny_world import jpeg, write_tar

from curation.archive import ConceptArchive, read_tar
from pipelines.curate import main as curate

# --- folders ------------------------------------------------------------------------------------------------------------


def test_every_image_of_a_folder_is_a_sample_that_leads_back_to_its_file(tmp_path):
    content = write_folder(tmp_path / "some [photos]")
    # of same.jpg and same.png the captions are one file
    content["same.jpg"] = (content["same.jpg"][0], content["same.png"][1])
    assert pack(tmp_path / "some [photos]", tmp_path / "packed", "--count", "4") == 0
    assert samples(tmp_path / "packed") == content
    assert rejects(tmp_path / "packed") == {}
    for path in sorted((tmp_path / "packed").glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        keys = [name.partition(".")[0] for name in names]
        assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(jpg|json|png|txt)", name) for name in names)
        assert keys == [key for key in dict.fromkeys(keys) for _ in range(3)]  # adjacent
        for sample in read_tar(str(path), ["json"]):
            assert json.loads(sample["json"])["file_name"] in content


def test_what_is_packed_can_be_curated(tmp_path, tiny_clip, capfd):
    content = write_folder(tmp_path / "photos")
    (tmp_path / "concepts.txt").write_text("apple\nnumber\n")
    assert pack(tmp_path / "photos", tmp_path / "packed") == 0
    config = tmp_path / "packed.yaml"
    assert f"Next: cocu curate {config}" in capfd.readouterr().out
    options = ["--encoder.model", f"local-dir:{tiny_clip}", "--encoder.pretrained", "null"]
    options += ["--vocabulary.source", str(tmp_path / "concepts.txt"), "--retrieval.neighbors", "3"]
    assert curate(["--data", str(config), "--output", str(tmp_path / "out"), "--runner", "inprocess", *options]) == 0
    archive = ConceptArchive.open(tmp_path / "out")
    assert len(archive) == len(content)
    with open(tmp_path / "packed" / "keys.csv", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["file_name"] != "same.jpg":
                assert archive[row["key"]]["caption"] == content[row["file_name"]][1]


def test_what_cannot_be_packed_is_a_reject_with_its_reason(tmp_path, capfd):
    folder = tmp_path / "photos"
    write_folder(folder, ["good.jpg"])
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "inside.jpg").symlink_to(folder / "good.jpg")
    (folder / "folder").symlink_to(tmp_path)
    (folder / "round").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(folder / "nothing.jpg")
    os.mkfifo(folder / "pipe.jpg")
    broken = {"text.jpg": b"<html>", "empty.jpg": b"", "eps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}
    broken |= {"new.heic": b"x", "drawing.svg": b"<svg/>", "latin.jpg": picture(2), "blank.jpg": picture(3)}
    broken |= {"nothing said.jpg": picture(4)}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    for name in ("link", "inside", "gone", "pipe", "text", "empty", "eps", "blank"):
        (folder / f"{name}.txt").write_text("an apple" if name != "blank" else " \n")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / ".hidden.jpg").write_bytes(picture(5))
    (folder / "notes.pdf").write_bytes(b"x")

    assert pack(folder, tmp_path / "packed") == 0
    assert set(samples(tmp_path / "packed")) == {"good.jpg", "inside.jpg"}
    assert rejects(tmp_path / "packed") == {
        "blank.jpg": "caption is empty",
        "drawing.svg": "format svg is not one that curation reads",
        "empty.jpg": "not an image in JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, or its header is damaged",
        "eps.jpg": "not an image in JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, or its header is damaged",
        "folder": "a link to a folder, which is not followed",
        "gone.jpg": "no such file",
        "latin.jpg": "caption is not UTF-8",
        "link.jpg": "lies outside the folder",
        "new.heic": "format heic is not one that curation reads",
        "nothing said.jpg": "no caption",
        "pipe.jpg": "not a file",
        "round": "a link to a folder, which is not followed",
        "text.jpg": "not an image in JPEG, PNG, WEBP, GIF, BMP, TIFF or AVIF, or its header is damaged",
    }
    out = capfd.readouterr().out
    assert "2 samples in 1 tar (2 jpg)" in out
    assert "13 could not be packed" in out
    assert "3 x not an image in JPEG, PNG" in out and "damaged, such as empty.jpg, eps.jpg" in out


def test_tars_are_not_packed_into_themselves(tmp_path):
    write_folder(tmp_path / "photos")
    for _ in range(2):
        assert pack(tmp_path / "photos", tmp_path / "photos" / "packed") == 0
    assert len(samples(tmp_path / "photos" / "packed")) == len(NAMES)


# --- tables and lists ---------------------------------------------------------------------------------------------------

ROWS = [("IMG.1.jpg", 'a dog, "Rex"\nat home'), ("sub/two words.jpg", "a cat"), ("犬.jpg", "a dog 🐶")]


def write_table(path: Path, image: str, caption: str, rows: list[tuple[str, str]]) -> Path:
    records = [{"n": number, image: name, caption: text} for number, (name, text) in enumerate(rows)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    else:
        with open(path, "w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize(("image", "caption"), [("file_name", "text"), ("Filepath", "Caption"), ("key", "title")])
def test_captions_come_from_a_table(tmp_path, suffix, image, caption):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for number, (name, _) in enumerate(ROWS):
        (folder / name).write_bytes(picture(number))
    rows = [(name.removesuffix(".jpg") if image == "key" else name, text) for name, text in ROWS]
    table = write_table(folder / f"captions{suffix}", image, caption, rows)
    expected = {name: (picture(number), text) for number, (name, text) in enumerate(ROWS)}
    assert pack(folder, tmp_path / "by folder") == 0
    assert samples(tmp_path / "by folder") == expected
    assert pack(table, tmp_path / "by table") == 0
    assert samples(tmp_path / "by table") == expected
    table.rename(tmp_path / f"elsewhere{suffix}")
    assert pack(tmp_path / f"elsewhere{suffix}", tmp_path / "images", "--images", str(folder)) == 0
    assert samples(tmp_path / "images") == expected
    assert pack(folder, tmp_path / "captions", "--captions", str(tmp_path / f"elsewhere{suffix}")) == 0
    assert samples(tmp_path / "captions") == expected


def test_rows_without_an_image_and_images_without_a_row_are_rejects(tmp_path):
    folder = tmp_path / "photos"
    write_folder(folder, ["a.jpg", "sub/only-name.jpg", "beside.jpg"])
    (folder / "bare.jpg").write_bytes(picture(9))
    (tmp_path / "secret.jpg").write_bytes(picture(8))
    rows = [("a.jpg", "one"), ("a.jpg", "two"), ("only-name.jpg", "found"), ("gone.jpg", "x"), ("bad.jpg", "")]
    rows += [("../secret.jpg", "y"), (str(tmp_path / "secret.jpg"), "z"), ("/etc/passwd", "p")]
    (folder / "bad.jpg").write_bytes(picture(7))
    write_table(folder / "captions.csv", "file", "text", rows)
    assert pack(folder, tmp_path / "packed") == 0
    with open(tmp_path / "packed" / "keys.csv", newline="") as stream:
        assert [row["file_name"] for row in csv.DictReader(stream)] == [
            *["a.jpg", "a.jpg", "sub/only-name.jpg", "beside.jpg"]
        ]
    found = rejects(tmp_path / "packed")
    outside = {"../secret.jpg", str(tmp_path / "secret.jpg"), "/etc/passwd"}
    assert {name for name, reason in found.items() if reason == "lies outside the folder"} == outside
    assert found["gone.jpg"].startswith("no such image (row 4 of captions.csv")
    assert found["bad.jpg"] == "caption is empty"
    assert found["bare.jpg"] == "no caption"


def test_a_list_names_images_with_captions_beside_them_or_behind_a_tab(tmp_path):
    content = write_folder(tmp_path / "photos", ["a b.jpg", "c.jpg", "d.jpg"])
    (tmp_path / "photos" / "train.txt").write_text("c.jpg\na b.jpg\tan other caption\n\n")
    assert pack(tmp_path / "photos" / "train.txt", tmp_path / "packed") == 0
    expected = {"c.jpg": content["c.jpg"], "a b.jpg": (content["a b.jpg"][0], "an other caption")}
    assert samples(tmp_path / "packed") == expected


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_without_known_columns_is_named_with_those_it_has(tmp_path, capfd, suffix):
    (tmp_path / "a.jpg").write_bytes(picture(1))
    table = write_table(tmp_path / f"x{suffix}", "bild", "text", [("a.jpg", "an apple")])
    line = failed(capfd, table, "-o", f"{tmp_path}/packed/{{}}.tar")
    assert f"x{suffix}: no column with file names; the columns are n, bild, text; name it with --image-column" in line
    assert "did you mean 'bild'" in failed(capfd, table, "-o", f"{tmp_path}/packed/{{}}.tar", "--image-column", "bidl")
    assert pack(table, tmp_path / "packed", "--image-column", "bild") == 0
    assert set(samples(tmp_path / "packed")) == {"a.jpg"}


# --- img2dataset, Parquet, tars -----------------------------------------------------------------------------------------


def test_img2dataset_files(tmp_path):
    folder = tmp_path / "data"
    expected = {}
    for number in range(5):
        stem = f"0000{number // 3}/{number:09d}"
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        sidecar = {"caption": "in json", "url": "https://x.test", "key": f"{number:09d}", "width": 40}
        (folder / f"{stem}.json").write_text(json.dumps(sidecar))
        if number != 2:
            (folder / f"{stem}.txt").write_text(f"caption {number}")
        (folder / f"{stem}.jpg").write_bytes(picture(number))
        expected[f"{stem}.jpg"] = (picture(number), f"caption {number}" if number != 2 else "in json")
    (folder / "00000_stats.json").write_text("{}")
    pq.write_table(pa.table({"key": ["000000000"], "caption": ["x"]}), folder / "00000.parquet")
    assert pack(folder, tmp_path / "packed") == 0
    assert samples(tmp_path / "packed") == expected
    (first, *_) = read_tar(str(tmp_path / "packed" / "00000.tar"), ["json"])
    assert json.loads(first["json"])["url"] == "https://x.test"


def test_img2dataset_parquet_and_hugging_face(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    columns = {
        "key": ["000000000", "000000001"],
        "caption": ["one", "two"],
        "status": ["success", "failed_to_download"],
    }
    pq.write_table(pa.table({"jpg": [picture(0), None], **columns}), folder / "00000.parquet")
    assert pack(folder, tmp_path / "a") == 0
    assert samples(tmp_path / "a") == {"00000/000000000": (picture(0), "one")}
    assert rejects(tmp_path / "a") == {"00000/000000001": "no image (failed_to_download)"}
    images = [{"bytes": picture(3), "path": "x.jpg"}, {"bytes": picture(4), "path": None}]
    pq.write_table(pa.table({"image": images, "text": ["three", ["four"][0]]}), tmp_path / "train.parquet")
    assert pack(tmp_path / "train.parquet", tmp_path / "b") == 0
    assert samples(tmp_path / "b") == {"train/x.jpg": (picture(3), "three"), "train/000001": (picture(4), "four")}


def test_tars_that_curation_refuses_are_packed(tmp_path, capfd):
    names = ["IMG.1", "IMG.2", "b"]
    members = [(f"./{name}.jpg", jpeg(apple="red")) for name in names]
    members += [(f"./{name}.txt", f"caption {name}".encode()) for name in reversed(names)]
    members += [("j.png", picture(1, "PNG")), ("j.json", b'{"title": "in json"}')]
    write_tar(tmp_path / "odd.tar", members)
    assert pack(tmp_path / "odd.tar", tmp_path / "packed") == 0
    captions = {name: caption for name, (_, caption) in samples(tmp_path / "packed").items()}
    assert captions == {f"odd/{name}.jpg": f"caption {name}" for name in names} | {"odd/j.png": "in json"}
    whole = (tmp_path / "odd.tar").read_bytes()
    with tarfile.open(tmp_path / "odd.tar") as tar:
        header = tar.getmembers()[2].offset
    for content in (whole + whole, whole[:header], whole[:header] + b"\x55" * 512 + whole[header + 512 :]):
        (tmp_path / "bad.tar").write_bytes(content)
        assert "cannot be read as a plain tar" in failed(capfd, tmp_path / "bad.tar", "-o", f"{tmp_path}/bad/{{}}.tar")
