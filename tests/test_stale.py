"""A run finishes about what it began with, and a finished one works from what it recorded."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from curated import NAMES, archived, curate
from tiny_world import jpeg, write_tar, write_world

from curation import encoder
from curation.archive import ConceptArchive, Sampler
from curation.base import files
from curation.base.errors import CocuError
from curation.config import load
from curation.run import inputs
from curation.run.run import open_run, plan_run
from curation.run.stages import embeddings
from curation.tools import report, show
from pipelines import execution
from training.plan import Span
from training.stream import Stream, TrainingShard


@pytest.fixture
def data(world, tiny_clip, tmp_path) -> Path:
    """A copy of the world with a CLIP of its own, to change."""
    folder = Path(shutil.copytree(world.parent, tmp_path / "data"))
    clip = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    return write_world(folder / "world.yaml", clip)


def other_tar(path: Path) -> None:
    write_tar(path, [("x.jpg", jpeg(ground="red")), ("x.txt", b"an apple")])


def other_weights(path: Path) -> None:
    weights = path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")


CHANGES = {
    "shard": lambda data: other_tar(data.parent / "00001.tar"),
    "shard gone": lambda data: (data.parent / "00001.tar").unlink(),
    "vocabulary": lambda data: (data.parent / "concepts.txt").write_text("apple\nsnow\n"),
    "weights": lambda data: other_weights(data.parent.parent / "clip"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_input_that_changes_while_a_run_works_ends_it_with_an_error(change, data, tmp_path, monkeypatch, capfd):
    run_pipeline = execution.run_pipeline

    def disturbed(*arguments, **options):
        run_pipeline(*arguments, **options)
        assert (tmp_path / "out" / "run.json").exists()
        change(data)

    monkeypatch.setattr(execution, "run_pipeline", disturbed)
    assert curate(data, tmp_path / "out") == 1
    error = capfd.readouterr().err
    assert "changed while the run was working" in error or "00001.tar: no such file" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()

    monkeypatch.undo()
    if not (data.parent / "00001.tar").exists():
        return
    assert curate(data, tmp_path / "out") == 0
    assert curate(data, tmp_path / "fresh") == 0
    assert archived(tmp_path / "out") == archived(tmp_path / "fresh")


@pytest.mark.parametrize("change", [CHANGES["shard"], CHANGES["weights"]], ids=["shard", "weights"])
def test_an_input_that_changes_while_a_stage_reads_it_is_found(change, data, tmp_path, monkeypatch, capfd):
    content = embeddings._Tar.content

    def disturbed(self):
        if self._shard.name == "00001":
            change(data)
        return content(self)

    monkeypatch.setattr(embeddings._Tar, "content", disturbed)
    assert curate(data, tmp_path / "out") == 1
    assert "00001.tar: changed while stage embed worked on it" in capfd.readouterr().err

    monkeypatch.undo()
    assert curate(data, tmp_path / "out") == 0
    assert curate(data, tmp_path / "fresh") == 0
    assert archived(tmp_path / "out") == archived(tmp_path / "fresh")


def test_weights_that_changed_are_loaded_again(tiny_clip, tmp_path):
    clip = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    config = encoder.EncoderConfig(f"local-dir:{clip}", precision="fp32")
    first = encoder.load(config)
    assert encoder.load(config) is first
    other_weights(clip)
    assert encoder.load(config).weights != first.weights


def test_what_a_run_is_made_of_is_written_first(data, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "run_pipeline", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        curate(data, tmp_path / "out")
    recorded = json.loads((tmp_path / "out" / "run.json").read_text())
    assert recorded["shards"] == NAMES
    assert recorded["paths"] == [f"../data/{name}.tar" for name in NAMES]
    assert recorded["config"]["name"] == "world"
    assert recorded["inputs"]["../data/00001.tar"] == files.version(str(data.parent / "00001.tar"))
    assert recorded["inputs"].keys() >= {"../data/concepts.txt", "../clip/open_clip_model.safetensors"}
    assert recorded["vocabulary"] == files.file_digest(str(data.parent / "concepts.txt"))
    assert recorded["encoder"]["files"].keys() == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert recorded["fingerprint"] == inputs.request(plan_run(load(str(data)), str(tmp_path / "out")))


# --- finished runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def globbed(data, tmp_path) -> Path:
    """A finished run over a glob; afterwards the glob matches one more tar, before all others, and its tars are gone."""
    write_world(data, tmp_path / "clip", shards="0*.tar")
    assert curate(data, tmp_path / "out") == 0
    shutil.copy(data.parent / "00002.tar", data.parent / "00000-more.tar")
    (tmp_path / "elsewhere").mkdir()
    for name in NAMES:
        (data.parent / f"{name}.tar").rename(tmp_path / "elsewhere" / f"{name}.tar")
    return tmp_path / "out"


def without_paths(folder: Path) -> None:
    """As runs before 0.2 left it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["paths"]
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("old", [False, True])
def test_tars_that_moved_or_came_later_shift_no_rows(globbed, old, capsys):
    if old:
        without_paths(globbed)
    assert [shard.name for shard in open_run(str(globbed)).shards] == NAMES
    archive = ConceptArchive.open(globbed)
    assert [source.name for source in archive.sources] == NAMES
    assert all(source.path.endswith(f"/{source.name}.tar") for source in archive.sources)

    row = pq.read_table(globbed / "archives" / "00001.parquet").to_pylist()[5]
    assert show.main([str(globbed), row["key"]]) == 0
    assert f"1.000  (itself) {row['caption']}" in capsys.readouterr().out
    page = report.page_of(open_run(str(globbed)))
    assert "00000.tar: no such file" in page and "00000-more" not in page


def test_the_trainer_says_which_tar_has_gone(globbed):
    archive = ConceptArchive.open(globbed)
    stream = Stream(tuple(TrainingShard(source, archive) for source in archive.sources), Sampler("top", 1), 0, 0)
    with pytest.raises(CocuError, match=r"00000\.tar: no such file"):
        list(stream.read([Span(0, 0, 10)], 0, 0))


def test_retrieval_from_a_run_whose_tars_are_gone(globbed, data, tmp_path):
    for name in NAMES:
        shutil.copy(tmp_path / "elsewhere" / f"{name}.tar", data.parent / f"0{name}.tar")
    (data.parent / "00000-more.tar").unlink()
    retrieval = {"neighbors": 4, "data": str(globbed)}
    write_world(data, tmp_path / "clip", shards="0*.tar", retrieval=retrieval)
    assert curate(data, tmp_path / "second") == 0
    assert archived(tmp_path / "second").keys() == archived(globbed).keys()

    # made again from other tars, the first run is no longer what the second one retrieved from
    write_world(data, tmp_path / "clip", shards="000002.tar")
    assert curate(data, globbed) == 0
    for tool in (lambda: show.show(open_run(str(tmp_path / "second")), [], 1, None), lambda: report_of(tmp_path)):
        with pytest.raises(CocuError, match=r"its shards are no longer those that .*second was made with"):
            tool()


def report_of(folder: Path) -> str:
    return report.page_of(open_run(str(folder / "second")))


def test_a_file_of_another_run_in_the_folder_is_named(globbed, tmp_path, capsys):
    path = globbed / "archives" / "00001.parquet"
    pq.write_table(pq.read_table(path).slice(3), path)
    assert show.main([str(globbed)]) == 1
    assert "00001.parquet: 21 rows for the 24 of" in capsys.readouterr().err
    assert os.path.exists(globbed / "report.html")
