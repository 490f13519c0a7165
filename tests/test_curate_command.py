"""The command line of ``cocu curate``: which data is meant, and what is said where none is."""

from __future__ import annotations

import pytest
from tiny_world import jpeg, write_tar

from cocu.__main__ import main
from pipelines.curate import chosen_data


def error_of(capfd, *words: str) -> str:
    """The one line with which the command ends."""
    assert main(["curate", *words]) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(
    ("named", "words", "expected"),
    [
        (None, ["my.yaml"], ("my.yaml", [])),
        ("my.yaml", [], ("my.yaml", [])),
        (None, ["my.yaml", "--flink_master", "host:8081"], ("my.yaml", ["--flink_master", "host:8081"])),
        (None, ["--flink_master", "host:8081", "my.yaml"], ("my.yaml", ["--flink_master", "host:8081"])),
        (None, ["--flink_master=host:8081", "my.yaml"], ("my.yaml", ["--flink_master=host:8081"])),
        ("my.yaml", ["--flink_master", "host:8081"], ("my.yaml", ["--flink_master", "host:8081"])),
    ],
)
def test_data_is_a_word_that_is_no_value_of_beams(named, words, expected):
    assert chosen_data(named, words) == expected


def test_the_data_may_be_the_first_word_or_an_option(world, finished, capfd):
    for words in ([str(world)], ["--data", str(world)], ["--runner", "inprocess", str(world)]):
        assert main(["curate", *words, "--output", str(finished)]) == 0
        assert "already finished" in " ".join(capfd.readouterr().out.split())


def test_without_data_there_is_one_line_that_lists_what_there_is(capfd):
    error = error_of(capfd)
    assert "which data? give a YAML file (cocu init TARS writes one), or one of cc12m, cc12m_wds" in error


def test_data_that_is_given_twice_is_refused(world, capfd):
    assert "data: given twice, as demo and by --data" in error_of(capfd, "demo", "--data", str(world))


def test_a_folder_is_explained(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(jpeg())
    assert "photos/ is a folder; cocu pack photos -o 'photos-tars/{}.tar'" in error_of(capfd, "--data", "photos/")
    write_tar(tmp_path / "tars" / "0.tar", [("0.jpg", jpeg())])
    assert "tars is a folder of tars, not a configuration; cocu init tars writes one" in error_of(capfd, "tars")
    assert "tars/0.tar is a tar, not a configuration; cocu init tars/0.tar" in error_of(capfd, "tars/0.tar")
    (tmp_path / "clip" / "img_emb").mkdir(parents=True)
    assert "clip is a folder of embeddings; name it as embeddings:" in error_of(capfd, "clip")


def test_a_misspelt_name_suggests_the_nearest(capfd):
    assert "(did you mean 'yfcc14m'?)" in error_of(capfd, "yfcc15m")
    assert "nowhere.yaml: no such file" in error_of(capfd, "nowhere.yaml")
