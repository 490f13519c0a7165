"""What packing writes is whole or not there, resumes, and overwrites nothing of others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from packed import NAMES, failed, pack, picture, samples, write_folder

from curation.archive import read_tar
from curation.config import load
from curation.samples import list_shards
from curation.tools.pack import main
from curation.tools.pack import shards as pack_shards


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "."}


@pytest.mark.parametrize("stop", [1, 5, 8, 14])
def test_an_interrupted_packing_resumes_and_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, stop):
    write_folder(tmp_path / "photos")
    (tmp_path / "photos" / "c.jpg").write_bytes(b"broken")
    assert pack(tmp_path / "photos", tmp_path / "whole", "--count", "3") == 0

    write, written = pack_shards.Packer._write, []

    def interrupt(self, writer, packed):
        if len(written) == stop:
            raise KeyboardInterrupt
        written.append(packed.key)
        write(self, writer, packed)

    monkeypatch.setattr(pack_shards.Packer, "_write", interrupt)
    assert pack(tmp_path / "photos", tmp_path / "packed", "--count", "3") == 130
    complete = tars(tmp_path / "packed")
    assert all(content == tars(tmp_path / "whole")[name] for name, content in complete.items())
    assert not (tmp_path / "packed.yaml").exists()

    monkeypatch.setattr(pack_shards.Packer, "_write", write)
    assert pack(tmp_path / "photos", tmp_path / "packed", "--count", "3") == 0
    assert tars(tmp_path / "packed") == tars(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "packed").iterdir()} == {*tars(tmp_path / "whole"), ".packed.json"}


def test_what_is_packed_already_is_left_alone_and_what_changed_is_packed_again(tmp_path, capfd):
    write_folder(tmp_path / "photos")
    assert pack(tmp_path / "photos", tmp_path / "packed", "--count", "3") == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()}
    capfd.readouterr()
    assert pack(tmp_path / "photos", tmp_path / "packed", "--count", "3") == 0
    assert "already packed; nothing to do" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "packed").iterdir()} == before
    for name in NAMES[4:]:
        (tmp_path / "photos" / name).unlink()
    assert pack(tmp_path / "photos", tmp_path / "packed", "--count", "3") == 0
    assert set(samples(tmp_path / "packed")) == set(NAMES[:4])
    assert [path.name for path in sorted((tmp_path / "packed").glob("*.tar"))] == ["00000.tar", "00001.tar"]


def test_tars_of_others_are_not_overwritten(tmp_path, capfd):
    write_folder(tmp_path / "photos")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "00000.tar").write_bytes(b"precious")
    line = failed(capfd, tmp_path / "photos", "-o", f"{tmp_path}/packed/{{}}.tar")
    assert "00000.tar: is there, but was not packed here" in line
    assert (tmp_path / "packed" / "00000.tar").read_bytes() == b"precious"


def test_tars_end_at_a_count_or_a_size(tmp_path):
    write_folder(tmp_path / "photos")
    assert main([str(tmp_path / "photos"), "-o", f"{tmp_path}/packed/photos-{{:03d}}.tar", "--size", "2k"]) == 0
    counts = [len(list(read_tar(str(path), ["txt"]))) for path in sorted((tmp_path / "packed").glob("photos-???.tar"))]
    assert len(counts) > 2
    assert max(counts) < 10
    assert len(samples(tmp_path / "packed")) == len(NAMES)


@pytest.mark.parametrize(
    "pattern", ["packed", "packed/", "packed/x.tar", "packed/{}{}.tar", "packed/[{}].tar", "{}.zip"]
)
def test_a_pattern_that_does_not_number_tars_is_refused(tmp_path, pattern, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "photos", ["a.jpg"])
    assert "-o:" in failed(capfd, "photos", "-o", pattern)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_what_is_no_source_is_named(tmp_path, capfd):
    output = f"{tmp_path}/packed/{{}}.tar"
    assert "nothing: no such file or folder" in failed(capfd, tmp_path / "nothing", "-o", output)
    (tmp_path / "empty").mkdir()
    assert "empty: no images in it" in failed(capfd, tmp_path / "empty", "-o", output)
    (tmp_path / "x.pdf").write_bytes(b"x")
    assert "x.pdf: not a folder, a table" in failed(capfd, tmp_path / "x.pdf", "-o", output)
    (tmp_path / "empty" / "a.jpg").write_bytes(picture(1))
    assert "not one of 1 images can be packed" in failed(capfd, tmp_path / "empty", "-o", output)


def test_the_configuration_is_the_data_sets(tmp_path):
    write_folder(tmp_path / "my photos (2)", ["a.jpg", "b.png", "c.png"])
    assert pack(tmp_path / "my photos (2)", tmp_path / "packed") == 0
    values = yaml.safe_load((tmp_path / "packed.yaml").read_text())
    assert (values["name"], values["image"], values["caption"]) == ("my-photos-2", "png;jpg", "txt")


def test_a_configuration_of_others_is_not_overwritten(tmp_path, capfd):
    write_folder(tmp_path / "photos", ["a.jpg"])
    (tmp_path / "packed.yaml").write_text("name: mine\n")
    assert "packed.yaml: is there, but was not written by packing" in failed(
        capfd, tmp_path / "photos", "-o", f"{tmp_path}/packed/{{}}.tar"
    )
    assert (tmp_path / "packed.yaml").read_text() == "name: mine\n"


def test_tars_in_the_folder_that_we_are_in(tmp_path, monkeypatch):
    write_folder(tmp_path / "photos", ["a.jpg"])
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["../photos", "-o", "{}.tar"]) == 0
    (shard,) = list_shards(load("packed.yaml").shards)
    assert Path(shard.path).resolve() == tmp_path / "here" / "00000.tar"
