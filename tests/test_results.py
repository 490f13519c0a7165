"""results.json and pictures over several evaluations: nothing that was measured is lost."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from benchmark_worlds import own

from evaluation.__main__ import main
from evaluation.results import merge, results
from segmenters.checkpoint import save


@pytest.fixture(scope="module")
def models(groupvit, tmp_path_factory) -> tuple[Path, Path]:
    """Two checkpoints whose weights differ."""
    folder = tmp_path_factory.mktemp("models")
    save(groupvit, folder / "one")
    other = copy.deepcopy(groupvit)
    with torch.no_grad():
        other.logit_scale.add_(0.5)
    save(other, folder / "two")
    return folder / "one", folder / "two"


def benchmark(folder: Path, name: str, count: int) -> Path:
    path = own(folder / name, count)
    return path.rename(path.with_name(f"{name}.yaml"))


def evaluate(output: Path, model: Path, *benchmarks: Path, more: tuple[str, ...] = (), code: int = 0) -> dict:
    names = ",".join(map(str, benchmarks))
    arguments = ["--checkpoint", str(model), "--benchmarks", names, "--output", str(output), "--device", "cpu", *more]
    assert main(arguments) == code
    return json.loads(output.read_text())


def test_a_second_evaluation_keeps_the_results_of_the_first(models, tmp_path):
    """First one benchmark, then another; then another checkpoint, other settings, a benchmark that is gone, and back."""
    one, two = models
    voc, ade = benchmark(tmp_path, "voc1", 3), benchmark(tmp_path, "ade1", 2)
    output = tmp_path / "results.json"
    first = evaluate(output, one, voc)["benchmarks"]["voc1"]
    second = evaluate(output, one, ade, more=("--batch-size", "3"))
    assert second["benchmarks"]["voc1"] == first
    assert list(second["benchmarks"]) == ["ade1", "voc1"] and "earlier" not in second
    assert [second["benchmarks"][name]["options"]["batch_size"] for name in ("voc1", "ade1")] == [16, 3]

    third = evaluate(output, two, voc)
    assert list(third["benchmarks"]) == ["voc1"]
    kept = {(result["benchmark"], result["checkpoint"]["path"]) for result in third["earlier"]}
    assert kept == {("voc1", str(one)), ("ade1", str(one))}

    fourth = evaluate(output, one, voc, more=("--limit", "1"))
    assert fourth["benchmarks"]["voc1"]["images"]["evaluated"] == 1
    assert fourth["benchmarks"]["ade1"] == second["benchmarks"]["ade1"]
    kept = [(result["checkpoint"]["path"], result["images"]["evaluated"]) for result in fourth["earlier"]]
    assert sorted(kept) == [(str(one), 3), (str(two), 3)]

    gone = tmp_path / "ade1" / "data" / "images"
    gone.rename(tmp_path / "gone")
    fifth = evaluate(output, one, ade, code=1)
    assert fifth["benchmarks"]["ade1"]["miou"] == second["benchmarks"]["ade1"]["miou"]
    sixth = evaluate(output, one, voc)
    assert sixth["benchmarks"]["voc1"]["iou"] == first["iou"]
    assert len(results(sixth)) == 4  # voc1 by both, voc1 of one image, ade1


def test_a_file_of_version_01_is_kept_too(models, tmp_path):
    """There the options stood at the top only."""
    output = tmp_path / "results.json"
    voc, ade = benchmark(tmp_path, "voc1", 2), benchmark(tmp_path, "ade1", 2)
    old = evaluate(output, models[0], voc)
    del old["benchmarks"]["voc1"]["options"], old["benchmarks"]["voc1"]["versions"]
    output.write_text(json.dumps(old))
    now = evaluate(output, models[0], ade)
    assert now["benchmarks"]["voc1"]["miou"] == old["benchmarks"]["voc1"]["miou"]
    assert now["benchmarks"]["voc1"]["options"] == old["options"]


@pytest.mark.parametrize("content", [{}, {"benchmarks": []}, {"benchmarks": {"a": {"status": "done"}}}, {"earlier": 3}])
def test_what_is_no_document_of_ours_has_no_results(content):
    now = {"checkpoint": {"sha256": "x"}, "options": {}, "versions": {}, "benchmarks": {}}
    assert results(content) == []
    assert merge(content, now) == now


def test_pictures_of_another_checkpoint_are_set_aside(models, tmp_path):
    voc, ade = benchmark(tmp_path, "voc1", 2), benchmark(tmp_path, "ade1", 2)
    output = tmp_path / "results.json"
    sha = evaluate(output, models[0], voc, more=("--visualize", "2"))["checkpoint"]["sha256"]
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "pictures" / "voc1").iterdir()}
    evaluate(output, models[0], ade, more=("--visualize", "1"))
    evaluate(output, models[0], voc, more=("--visualize", "1"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "pictures" / "voc1").iterdir()} == drawn
    evaluate(output, models[1], voc, more=("--visualize", "1"))
    aside = tmp_path / "pictures" / f"voc1-{sha[:8]}"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == drawn
    assert len(list((tmp_path / "pictures" / "voc1").iterdir())) == 1
    assert len(list((tmp_path / "pictures" / "ade1").iterdir())) == 1
