"""Completion, by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cocu.__main__ import main
from cocu.commands import COMMANDS

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
complete -p cocu | grep -q -- '-F _shtab_cocu' || exit 1
_shtab_cocu cocu "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory) -> dict[str, str]:
    """The path of each shell's script."""
    from cocu.completion import SHELLS, script

    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        (folder / shell).write_text(script([shell]))
    return {shell: str(folder / shell) for shell in SHELLS}


def answers(script: str, *words: str, cwd=None) -> list[str]:
    """What bash offers for the last word."""
    run = subprocess.run(["bash", "--norc", "-c", ASK, "x", script, *words], capture_output=True, text=True, cwd=cwd)
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_bash_completes_commands(scripts):
    assert answers(scripts["bash"], "cocu", "se") == ["search", "segment"]
    assert set(COMMANDS) <= set(answers(scripts["bash"], "cocu", ""))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["curate", "--only"], ["--only-shards"]),
        (["curate", "--archive.r"], ["--archive.ranking"]),
        (["train", "--data.sampler.k"], ["--data.sampler.kind"]),
        (["export", "--format", "j"], ["jsonl"]),
        (["browse", "--nothing"], []),
    ],
)
def test_bash_completes_options_and_their_choices(words, expected, scripts):
    assert answers(scripts["bash"], "cocu", *words) == expected


def test_bash_completes_files_as_values(scripts, tmp_path):
    (tmp_path / "photograph.png").touch()
    assert answers(scripts["bash"], "cocu", "search", "out", "--image", "pho", cwd=tmp_path) == ["photograph.png"]


def test_zsh_reads_its_script(scripts):
    if shutil.which("zsh") is None:
        assert Path(scripts["zsh"]).read_text().startswith("#compdef cocu")
        return
    run = subprocess.run(["zsh", "-n", scripts["zsh"]], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_another_shell_is_one_line(capsys):
    assert main(["--completion", "fish"]) == 1
    assert capsys.readouterr().err == "error: --completion: name one shell, bash or zsh\n"
