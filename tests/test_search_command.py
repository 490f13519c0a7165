"""``cocu search``: the nearest images in the terminal."""

from __future__ import annotations

import subprocess
import sys
import tarfile

import pytest

from curation.tools.search import main


def keys(text: str) -> list[str]:
    return [word for line in text.splitlines() for word in line.split() if len(word) == 6 and word.isdigit()]


def test_words_find_images_with_their_archives(finished, capsys):
    assert main([str(finished), "red apple", "--count", "5"]) == 0
    out = capsys.readouterr().out
    assert len(keys(out)) == 5
    assert "A photo of" in out


def test_a_picture_of_the_run_finds_itself(finished, world, tmp_path, capsys):
    with tarfile.open(world.parent / "00001.tar") as tar:
        (tmp_path / "a.jpg").write_bytes(tar.extractfile("010003.jpg").read())
    assert main([str(finished), "--image", str(tmp_path / "a.jpg"), "--count", "3"]) == 0
    out = capsys.readouterr().out
    assert keys(out)[0] == "010003"
    assert out.splitlines()[1].split()[0] in ("1.000", "0.999")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nothing.jpg"], "nothing.jpg"),
        (["--image", __file__], "test_search_command.py"),
        (["  "], "no words to search by"),
    ],
)
def test_what_cannot_be_searched_by_is_one_line(arguments, message, finished, capsys):
    assert main([str(finished), *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("module", ["curation.tools.search", "curation.tools.browse.command"])
def test_help_needs_no_torch(module):
    code = f"import sys, {module}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "faiss", "open_clip", "starlette"} & set(out.split())
