"""Kills, locks, forecasts, verification: a run that can be trusted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kills import campaign
from tiny_world import ROWS, SHARDS, jpeg, write_tar, write_world

from curation.archive import SCHEMA
from curation.base.errors import CocuError
from curation.config import load
from curation.run.forecast import forecast
from curation.run.lock import hold
from curation.run.progress import Progress, read_progress
from curation.run.run import Run, open_run, plan_run
from curation.run.stages import plan, run_stage
from curation.tools import verify
from pipelines.curate import main

ROOT = Path(__file__).parent.parent
NAMES = [f"{shard:05d}" for shard in range(SHARDS)]


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_killed_runs_come_to_the_same_archives(tmp_path):
    tally = campaign(tmp_path, kills=2, seed=int.from_bytes(os.urandom(2)))
    assert tally.kills >= 2
    assert tally.runs >= 1


# --- two runs into one folder ---


def test_a_second_run_says_who_holds_the_folder_and_takes_it_over_from_the_dead(world, tmp_path, capfd):
    code = "import sys, time; from curation.run.lock import hold; from curation.config import load; "
    code += "from curation.run.run import plan_run\n"
    code += "with hold(plan_run(load(sys.argv[1]), sys.argv[2])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, world, tmp_path / "out"], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    arguments = ["--data", str(world), "--output", str(tmp_path / "out"), "--runner", "inprocess"]
    assert main(arguments) == 1
    assert f"process {holder.pid} on" in capfd.readouterr().err
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert main(arguments) == 0
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_lock_is_free_again_after_an_error(world, tmp_path):
    outputs = plan_run(load(str(world)), str(tmp_path))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold(outputs):
            raise ZeroDivisionError


@pytest.mark.parametrize("unfinished", [True, False])
def test_a_folder_of_another_data_set_is_refused(world, copy, tiny_clip, capfd, unfinished):
    if unfinished:
        (copy / "manifest.json").unlink()
        (copy / ".owner.json").write_text('{"data": "world"}')
    other = write_world(world.parent / "else.yaml", tiny_clip, name="else", shards="00000.tar")
    assert main(["--data", str(other), "--output", str(copy), "--runner", "inprocess"]) == 1
    assert "holds the archives of world, not else" in capfd.readouterr().err
    assert len(list((copy / "archives").glob("*.parquet"))) == SHARDS


def test_foreign_files_in_the_output_folder_are_left_alone(world, copy):
    pq.write_table(pa.table({"mine": [1]}), copy / "embeddings" / "mine.parquet")
    (copy / "archives" / "00000.parquet").unlink()
    assert main(["--data", str(world), "--output", str(copy), "--runner", "inprocess"]) == 0
    assert pq.read_table(copy / "embeddings" / "mine.parquet").to_pydict() == {"mine": [1]}


# --- forecasts: what a change makes a run compute again ---

VOCABULARY = {"candidates", "visualness", "vocabulary", "concepts", "mentions", "archive"}
INDEX = {"train index", "fill index", "index", "tune index"}
TEXT_INDEX = {"train text index", "fill text index", "text index", "tune text index"}
EVERYTHING = VOCABULARY | INDEX | {"embed"}


def computed(outputs: Run) -> set[str]:
    return {step.stage for step in forecast(outputs) if not step.kept}


@pytest.mark.parametrize(
    ("change", "stages", "reason"),
    [
        ({}, set(), ""),
        ({"archive": {"ranking": "support"}}, {"archive"}, "ranking: True -> support"),
        ({"archive": {"seed": 1}}, {"archive"}, "seed: 0 -> 1"),
        ({"archive": {"expansion": "caption"}}, {"archive"}, "expansion: vision -> caption"),
        ({"archive": {"expansion": "text"}}, {"captions", "archive"} | TEXT_INDEX, "captions computed"),
        ({"retrieval": {"neighbors": 5}}, {"archive"}, "neighbors: 4 -> 5"),
        ({"retrieval": {"neighbors": 4, "index": "HNSW8"}}, {"archive"} | INDEX, "factory: Flat -> HNSW8"),
        ({"retrieval": {"neighbors": 4, "search": "nprobe=2"}}, {"tune index", "archive"}, "search: None -> nprobe=2"),
        ({"vocabulary": {"source": "other.txt"}}, VOCABULARY, "its inputs changed"),
        ({"vocabulary": {"source": "concepts.txt", "prompts": ["{c}"]}}, VOCABULARY, "prompts"),
        (
            {"vocabulary": {"source": "concepts.txt", "min_count": 1}},
            VOCABULARY - {"candidates", "visualness"},
            "min_count",
        ),
        ({"vocabulary": {"source": "build", "min_count": 1}}, VOCABULARY | {"nouns"}, "nouns computed"),
        ({"caption": "text;txt"}, EVERYTHING - {"candidates"}, "caption: txt -> text;txt"),
        ({"shards": ["00000.tar", "00002.tar"]}, VOCABULARY - {"candidates"} | INDEX, "its inputs changed"),
        ({"name": "renamed"}, set(), ""),
    ],
)
def test_a_change_is_forecast_to_recompute_what_depends_on_it(
    world, finished, tiny_clip, change, stages, reason, tmp_path
):
    (world.parent / "other.txt").write_text("boat\nsnow\n")
    path = write_world(world.parent / f"{tmp_path.name}.yaml", tiny_clip, **change)
    outputs = plan_run(load(str(path)), str(finished))
    assert computed(outputs) == stages
    assert any(reason in step.reason for step in forecast(outputs))
    assert not (finished / ".progress").exists()


def test_a_change_of_the_encoder_recomputes_everything(world, finished, tiny_clip, tmp_path):
    other = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    weights = other / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    path = write_world(world.parent / f"{tmp_path.name}.yaml", other)
    assert computed(plan_run(load(str(path)), str(finished))) == EVERYTHING


@pytest.mark.parametrize(
    ("lost", "stages"),
    [
        ("archives/00001.parquet", {"archive": {"00001"}}),
        ("index/image.faiss", {"index": {"all"}, "tune index": {"all"}, "archive": set(NAMES)}),
        ("index/mentions.arrow", {"mentions": {"all"}, "archive": set(NAMES)}),
        (
            "calibration.parquet",
            {"vocabulary": {"all"}, "concepts": set(NAMES), "mentions": {"all"}, "archive": set(NAMES)},
        ),
    ],
)
def test_a_lost_or_cut_file_is_forecast_and_made_again(world, finished, copy, lost, stages):
    outputs = plan_run(load(str(world)), str(copy))
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-20]), lambda path: path.unlink()):
        shutil.copy2(finished / lost, copy / lost)
        damage(copy / lost)
        if lost == "calibration.parquet" and (copy / lost).exists():
            continue  # read by one ranking only, which says that it is damaged
        found: dict[str, set[str]] = {}
        for step in forecast(outputs):
            if not step.kept:
                found.setdefault(step.stage, set()).add(step.part)
        assert found == stages
    (copy / "manifest.json").unlink()
    assert main(["--data", str(world), "--output", str(copy), "--runner", "inprocess"]) == 0
    assert pq.read_table(copy / "archives") == pq.read_table(finished / "archives")


@pytest.mark.parametrize("lost", ["embeddings/00001.parquet", "vocabulary.parquet", "candidates.parquet"])
def test_a_file_cut_by_hand_is_made_again(world, finished, copy, lost):
    (copy / lost).write_bytes((copy / lost).read_bytes()[:-20])
    (copy / "manifest.json").unlink()
    assert main(["--data", str(world), "--output", str(copy), "--runner", "inprocess"]) == 0
    assert pq.read_table(copy / "archives") == pq.read_table(finished / "archives")
    assert verify.main([str(copy)]) == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [("manifest.json", content) for content in ("", "[]", '{"config": 3}', '{"fingerprint": "x"}')]
    + [(name, content) for name in ("index/index.json", "stats/00000.json", ".owner.json") for content in ("null", "{")]
    + [("index/index.json", '{"index": 3, "mentions": []}')],
)
def test_a_damaged_json_file_is_written_again(world, finished, copy, name, content):
    (copy / name).write_text(content)
    if name != "manifest.json":
        (copy / "manifest.json").unlink()
    assert main(["--data", str(world), "--output", str(copy), "--runner", "inprocess"]) == 0
    assert pq.read_table(copy / "archives") == pq.read_table(finished / "archives")
    assert verify.main([str(copy)]) == 0


def test_dry_run_prints_a_table_and_does_nothing(world, copy, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    options = ["--dry-run", "--archive.ranking", "similarity"]
    assert main(["--data", str(world), "--output", str(copy), *options]) == 0
    text = capsys.readouterr().out
    assert re.search(r"embed +│ +3 │ +0", text)
    assert re.search(r"archive +│ +0 │ +3 │ ranking: True -> similarity", text)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


# --- verify ---


def test_verify_finds_nothing_wrong_with_a_finished_run(finished, capsys):
    assert verify.main([str(finished), "--sample", "1000"]) == 0
    assert f"{SHARDS * ROWS} archives are OK; {SHARDS * ROWS} of them computed again" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ["--archive.expansion", "text"],
        ["--archive.expansion", "tagging", "--archive.ranking", "calibrated"],
        ["--archive.expansion", "caption", "--archive.ranking", "support"],
        ["--archive.anchor_twice", "true"],
        ["--retrieval.include_anchor", "false", "--archive.ranking", "support"],
        ["--archive.ranking", "false", "--archive.clusters", "false"],
    ],
    ids=lambda options: options[1] + options[-1],
)
def test_verify_computes_every_ablation_again(world, copy, options):
    assert main(["--data", str(world), "--output", str(copy), "--runner", "inprocess", *options]) == 0
    assert verify.verify(open_run(str(copy)), sample=60) == []


def rewrite(path: Path, change) -> None:
    """Write an archive file again with changed rows, its metadata kept."""
    metadata = pq.read_metadata(path).metadata
    rows = pq.read_table(path).to_pylist()
    change(rows)
    schema = SCHEMA.with_metadata({b"cocu": metadata[b"cocu"]})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        writer.add_key_value_metadata({b"cocu.end": metadata[b"cocu.end"]})


def scale(rows):
    for concept in rows[3]["concepts"]:
        concept["score"] *= 1.01


def forge(rows):
    """Scores that keep every bound but are wrong."""
    for row in rows:
        for concept in row["concepts"]:
            concept["local"] += 0.01
            concept["score"] += 0.01


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: rows.pop(), "keys differ"),
        (lambda rows: rows.reverse(), "keys differ"),
        (lambda rows: rows[0].update(caption="other"), "captions differ"),
        (lambda rows: rows[2]["concepts"].reverse(), "not in descending score"),
        (lambda rows: rows[2]["concepts"][0].update(score=float("nan")), "not finite"),
        (lambda rows: rows[2]["concepts"][0].update({"global": 1.5}), "not in (0, 1]"),
        (lambda rows: rows[2]["concepts"][0].update(support=9), "support"),
        (lambda rows: rows[2]["concepts"][0].update(cluster=7), "clusters"),
        (lambda rows: rows[2]["concepts"][0].update(concept="unicorn"), "'unicorn' is not in the vocabulary"),
        (scale, "not global + local"),
        (forge, "by the formula"),
    ],
    ids=["row", "order", "caption", "sorting", "nan", "global", "support", "cluster", "concept", "sum", "forged"],
)
def test_verify_finds_what_was_changed_by_hand(copy, capsys, change, what):
    rewrite(copy / "archives" / "00001.parquet", change)
    assert verify.main([str(copy), "--sample", "72"]) == 1
    assert what in capsys.readouterr().out.replace("\n", " ")


def test_verify_finds_changed_inputs_and_missing_files(world, copy, tiny_clip, tmp_path, capsys):
    data = Path(shutil.copytree(world.parent, tmp_path / "data"))
    assert main(["--data", str(data / "world.yaml"), "--output", str(tmp_path / "out"), "--runner", "inprocess"]) == 0
    os.utime(data / "00000.tar", (1, 1))
    assert verify.main([str(tmp_path / "out")]) == 1
    assert "input files have changed since" in capsys.readouterr().out
    (copy / "rejects" / "00002.parquet").unlink()
    assert verify.main([str(copy)]) == 1
    assert "00002.parquet: no such file" in capsys.readouterr().out


def test_the_manifest_names_what_can_change_a_value(finished):
    versions = json.loads((finished / "manifest.json").read_text())["versions"]
    assert {
        "python",
        "cocu",
        "torch",
        "open_clip_torch",
        "faiss-cpu",
        "numpy",
        "pyarrow",
        "pillow",
        "spacy",
    } <= versions.keys()


# --- security ---


def test_nothing_loads_pickles_or_unsafe_yaml():
    forbidden = re.compile(
        r"pickle\.load|allow_pickle=True|torch\.load\((?!.*weights_only=True)|yaml\.load\(|(?<![.\w])(eval|exec)\("
    )
    for package in ("curation", "evaluation", "pipelines", "training"):
        for path in (ROOT / package).rglob("*.py"):
            assert not forbidden.search(path.read_text()), path


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_pickled_checkpoint_is_not_run(tiny_clip, tmp_path):
    import torch

    from curation.config import EncoderConfig
    from curation.encoder import load as load_encoder

    folder = Path(shutil.copytree(tiny_clip, tmp_path / "clip"))
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": Bomb(str(tmp_path / "made"))}, folder / "open_clip_pytorch_model.bin")
    with pytest.raises(CocuError, match="cannot be loaded"):
        load_encoder(EncoderConfig(model=f"local-dir:{folder}", precision="fp32"))
    assert not (tmp_path / "made").exists()


def test_keys_never_become_paths(tiny_clip, tmp_path):
    data = tmp_path / "in" / "deep"
    members = []
    for key in ("../../escape", "/absolute", "a/../../b", "plain"):
        members += [(f"{key}.jpg", jpeg(ground="red")), (f"{key}.txt", b"an apple")]
    write_tar(data / "00000.tar", members)
    (data / "concepts.txt").write_text("apple\n")
    path = write_world(data / "world.yaml", tiny_clip, shards="00000.tar")
    before = {item for item in tmp_path.rglob("*")}
    assert main(["--data", str(path), "--output", str(tmp_path / "out"), "--runner", "inprocess"]) == 0
    made = {item for item in tmp_path.rglob("*")} - before
    assert all(item == tmp_path / "out" or tmp_path / "out" in item.parents for item in made)
    assert len(pq.read_table(tmp_path / "out" / "archives")) + len(pq.read_table(tmp_path / "out" / "rejects")) == 4


# --- two attempts at one shard ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["embed", "archive"])
def test_an_attempt_that_was_overtaken_leaves_the_file_as_it_is(copy, world, stage, monkeypatch):
    """An engine that lost a machine tries a shard again while the first attempt works; the second is done first, and the
    next stages with it."""
    run = plan_run(load(str(world)), str(copy))
    stages = {item.name: item for item in plan(run)}
    path, shard = Path(stages[stage].output(run, run.shards[0])), run.shards[0]
    complete = path.read_bytes()
    path.unlink()
    really_advance = Progress.advance

    def overtake(self, samples):
        monkeypatch.setattr(Progress, "advance", really_advance)
        for name in ("embed", "concepts", "archive"):
            run_stage(stages[name], run, shard)
        assert path.read_bytes() == complete
        really_advance(self, samples)

    monkeypatch.setattr(Progress, "advance", overtake)
    run_stage(stages[stage], run, shard)
    assert Progress.advance is really_advance
    assert path.read_bytes() == complete
    assert [note.state for note in read_progress(run, stage)] == ["kept"]


def test_a_note_is_lost_while_notes_are_cleared_and_the_work_goes_on(world, tmp_path, monkeypatch):
    run = plan_run(load(str(world)), str(tmp_path / "out"))
    progress = Progress(run, "embed", "00000")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(FileNotFoundError()))
        progress.finish("computed")
    assert [note.state for note in read_progress(run, "embed")] == ["running"]
