"""What is shipped: source distribution and wheel are built, and the wheel works in an environment outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from cocu.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("cocu", "curation", "evaluation", "pipelines", "segmenters", "training")
SHIPPED = ("LICENSE", "NOTICE", "README.md", "pyproject.toml", "setup.cfg", *PACKAGES)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source distribution, which is built from what would be committed."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "checkout").mkdir()
    for name in SHIPPED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "checkout" / name)
    command = [
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        str(folder / "checkout"),
    ]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """A new environment with the wheel. The dependencies are those of this environment: installing them takes minutes.

    Its list of packages is added after the wheel is installed, so that nothing of this environment is touched.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--ignore-installed",  # of this project on PYTHONPATH, say
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    return python


@pytest.fixture
def run(python, tmp_path):
    """Runs the new environment's Python in an empty folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [python, *arguments], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    return run


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if ".dist-info/licenses/" in name}
    tops = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(PACKAGES)


def test_every_command_explains_itself_from_the_wheel(run, python):
    """All but experiments, which are not part of the package."""
    code = (
        "import contextlib, io, sys\nfrom cocu.__main__ import main\nfrom cocu.commands import COMMANDS\n"
        "for name in COMMANDS:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as error:\n"
        "        try: code = main([name, '--help'])\n"
        "        except SystemExit as ended: code = ended.code\n"
        "    print(name, code, (out.getvalue() or error.getvalue()).splitlines()[0])\n"
    )
    lines = run("-c", code).splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS)
    for line in lines:
        name, code, text = line.split(maxsplit=2)
        expected = "error: cocu experiments: works in a clone" if name == "experiments" else f"usage: cocu {name}"
        assert (code, text[: len(expected)]) == ("1" if name == "experiments" else "0", expected)


def test_the_program_that_pip_installs_is_cocu(python, tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [python.parent / "cocu", "--version"], cwd=tmp_path, env=clean, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "cocu"), done.stderr


def test_the_demo_configuration_runs_from_the_wheel(run, python, tmp_path):
    code = "import curation, pipelines.curate, training, evaluation as e; print(curation.__file__, e.__file__)"
    files = run("-c", code + "; pipelines.curate.main(['--help'])").split()[:2]
    assert all(Path(file).is_relative_to(python.parent.parent) for file in files), files
    run("-m", "pipelines.demo", "--shards", "1", "--scenes", "40", "--validation", "1", "--processes", "1")
    smaller = ["--shards", str(tmp_path / "artifacts/demo-world/train/00000.tar"), "--vocabulary.min_count", "2"]
    run("-m", "pipelines.curate", "--data", "demo", "--runner", "inprocess", *smaller)
    session = (
        f"import duckdb, os; s = open({str(ROOT / 'examples' / 'omitted.sql')!r}).read(); os.chdir('artifacts/demo'); "
    )
    text = run("-c", session + "print(*(duckdb.sql(found.query) for found in duckdb.extract_statements(s)))")
    assert "omits" in text and "butterfly" in text
