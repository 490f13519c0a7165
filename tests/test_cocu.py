"""The command ``cocu``: every name leads to a command that explains itself."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from cocu.__main__ import main, usage
from cocu.commands import COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out.lower()


def test_the_help_has_a_line_for_each_command(capsys):
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert sum(line.split() == [name, *command.summary.split()] for line in lines) == 2


def test_a_misspelt_command_suggests_the_nearest(capsys):
    assert main(["meassure"]) == 1
    assert "unknown command meassure (did you mean 'measure'?)" in capsys.readouterr().err


def test_its_own_help_imports_nothing_heavy():
    code = "import sys; from cocu.__main__ import main; main(['--help']); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert usage() in out
    assert not {"torch", "apache_beam", "lightning", "pyarrow", "numpy"} & set(out.split())


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"cocu \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_what_is_not_installed_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "experiments", None)
    monkeypatch.delitem(sys.modules, "experiments.__main__", raising=False)
    assert main(["experiments"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
