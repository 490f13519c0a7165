"""What people give packing by mistake: one line that names the file, what is wrong with it, and what to do."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed import failed, pack, picture, samples

from curation.tools.init.command import main as init

ADDRESSES = "image,caption\nhttps://nowhere.invalid/1.jpg,a dog\nhttp://nowhere.invalid/2.jpg,a cat\n"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("t.csv", "caption,size\na dog,3\n", "no column with file names; the columns are caption, size; name it with"),
        ("t.csv", "p.jpg,a dog\n", "its first line is p.jpg, a dog, not names of columns; put a line such as image,"),
        ("t.tsv", "p.jpg\ta dog\n", "its first line is p.jpg, a dog, not names of columns"),
        ("t.csv", "\nimage,caption\n", "its first line is empty; it must name the columns"),
        ("t.csv", "image,size\np.jpg,3\n", "no column with captions; the columns are image, size; name it with --capt"),
        ("t.csv", "url,caption\nhttp://a/1.jpg,a dog\n", "only addresses in url; download the images first"),
        (
            "t.csv",
            ADDRESSES,
            "not one of 2 images can be packed (is an address, not a file); download the images first",
        ),
        (
            "t.csv",
            "image,caption\nq.jpg,a dog\n",
            "(no such image); name the folder that the file names are relative to",
        ),
        ("t.csv", "image,caption\n", "names no image; give a folder of images, or a table"),
        ("t.csv", "", "is empty; give a file with images"),
        ("t.json", "", "is empty; give a file with images"),
        ("t.json", "[]", "names no image; give"),
        ("t.json", '{"images": []}', "is not a list; write [...] of objects"),
        ("t.json", '[{"image": "p.jpg",\n"caption"}]', "line 2 is not JSON (Expecting ':' delimiter at character 10)"),
        (
            "t.jsonl",
            '{"image": "p.jpg", "caption": "x"}\n\n{"image": p}\n',
            "line 3 is not JSON (Expecting value at char",
        ),
        ("t.parquet", "junk", "not a complete Parquet file"),
        ("t.zip", "PK", "is packed already, in another way; unpack it, and give the folder"),
    ],
)
def test_a_table_that_cannot_be_packed_ends_in_one_line(tmp_path, capfd, name, content, line):
    (tmp_path / name).write_text(content)
    (tmp_path / "p.jpg").write_bytes(picture(1))
    message = failed(capfd, tmp_path / name, "-o", f"{tmp_path}/new/packed/{{}}.tar")
    assert f"{name}: " in message
    assert line in message
    assert "delete it" not in message  # it is theirs


def test_what_fails_before_anything_is_packed_leaves_no_folder_but_those_that_were_there(tmp_path, capfd):
    (tmp_path / "t.csv").write_text("caption\na dog\n")
    (tmp_path / "mine").mkdir()
    failed(capfd, tmp_path / "t.csv", "-o", f"{tmp_path}/mine/new/packed/{{}}.tar")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "t.csv"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "image;caption\np.jpg;a dog, on grass\n"),
        ("t.csv", "image\tcaption\np.jpg\ta dog, on grass\n"),
        ("t.csv", 'image,"caption;of it",caption\np.jpg,x,"a dog, on grass"\n'),
        ("t.tsv", 'image\tcap;x\tcaption\np.jpg\tx\t"a dog, on grass"\n'),
    ],
)
def test_a_csv_is_read_with_the_separator_of_its_first_line(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    (tmp_path / "p.jpg").write_bytes(picture(1))
    assert pack(tmp_path / name, tmp_path / "packed") == 0
    assert [caption for _, caption in samples(tmp_path / "packed").values()] == ["a dog, on grass"]


def test_images_without_captions_and_parquet_of_other_columns(tmp_path, capfd):
    output = f"{tmp_path}/packed/{{}}.tar"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "p.jpg").write_bytes(picture(1))
    assert "(no caption); put a .txt beside each" in failed(capfd, tmp_path / "photos", "-o", output)
    pq.write_table(pa.table({"url": ["http://a"], "caption": ["x"]}), tmp_path / "url.parquet")
    assert "only addresses in url" in failed(capfd, tmp_path / "url.parquet", "-o", output)
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "caption": []}), tmp_path / "none.parquet")
    assert "none.parquet: names no image" in failed(capfd, tmp_path / "none.parquet", "-o", output)


def test_init_sends_nobody_to_pack_what_packing_refuses(tmp_path, capfd):
    for name, line in (("a.zip", "or unpack it, and pack the folder"), ("a.csv", "or pack what is there: cocu pack")):
        (tmp_path / name).write_text("x")
        assert init([str(tmp_path / name)]) == 1
        assert f"{name}: is no tar; give tars, {line}" in capfd.readouterr().err


def test_json_that_is_not_utf_8_is_said_to_be_that(tmp_path, capfd):
    for name in ("t.json", "t.jsonl"):
        (tmp_path / name).write_bytes(json.dumps([{"image": "é"}], ensure_ascii=False).encode("latin-1"))
        assert f"{name}: not UTF-8" in failed(capfd, tmp_path / name, "-o", f"{tmp_path}/packed/{{}}.tar")
