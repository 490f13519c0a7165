"""A dry run refuses what the run refuses, with the same line; a name for one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from curated import curate

from curation.run import lock
from pipelines import curate as command


@pytest.mark.parametrize(
    "options",
    [
        ["--encoder.precision", "fp16"],
        ["--encoder.device", "cuda:7"],
        ["--encoder.model", "ViT-B-16"],
        ["--encoder.model", "ViT-B-61", "--encoder.pretrained", "openai"],
        ["--encoder.model", "ViT-B-16", "--encoder.pretrained", "opneai"],
        ["--encoder.model", "local-dir:/nowhere"],
        ["--retrieval.device", "cuda:7"],
        ["--retrieval.index", "IVFF,Flat"],
        ["--retrieval.index", "IVF2,Flat", "--retrieval.search", "nporbe=1"],
        ["--vocabulary.source", "build", "--vocabulary.tagger", "no_such_pipeline"],
        ["--vocabulary.source", "nowhere.txt"],
        ["--retrieval.data", "nowhere"],
    ],
    ids=lambda options: " ".join(options),
)
def test_a_dry_run_refuses_what_the_run_refuses(options, world, tmp_path, capfd):
    lines = []
    for more in (["--dry-run"], []):
        assert curate(world, tmp_path / "out", *options, *more) == 1
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        lines.append(line)
    assert lines[0] == lines[1]
    assert not (tmp_path / "out" / "embeddings").exists()


def test_a_dry_run_into_the_folder_of_another_data_set_is_refused(world, finished, capfd):
    assert curate(world, finished, "--name", "else", "--dry-run") == 1
    assert "holds the archives of world, not else" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["other", "2024", "true"])
def test_a_name_can_be_given_for_one_run(name, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["--data", str(world), "--runner", "inprocess", "--name", name]) == 0
    manifest = json.loads((Path("artifacts") / name / "manifest.json").read_text())
    assert manifest["config"]["name"] == name


def test_notes_of_progress_are_cleared_before_another_run_may_begin(world, tmp_path, monkeypatch):
    """The lock is released last: whatever another run notes from then on stays."""
    seen = []
    release = lock.FileLock.release

    def released(self, *arguments, **more):
        seen.append((tmp_path / "out" / ".progress").exists())
        return release(self, *arguments, **more)

    monkeypatch.setattr(lock.FileLock, "release", released)
    assert curate(world, tmp_path / "out") == 0
    assert seen[0] is False
