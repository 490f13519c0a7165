"""What experiments compare and how it is trained: arms, recipes in layers, and which runs are finished."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from benchmark_worlds import own
from rich.console import Console

from curation.base.errors import CocuError
from experiments import archives
from experiments.arms import Arm, Family, choose_arms, read_families
from experiments.commands import ExperimentError
from experiments.recipes import LAYERS, Recipe, read_recipe
from experiments.runs import Setting, is_finished

ROOT = Path(__file__).parent.parent


# --- arms -----------------------------------------------------------------------------------------------------------------


def test_the_arms_that_the_project_compares():
    (family,) = read_families(ROOT / "experiments" / "arms.yaml")
    arms = family.arms
    assert [arm.name for arm in arms if arm.group == "arm"] == [
        "caption", "cluster", "top", "weighted", "tagging", "text", "calibrated", "truth", "sure", "sure-32",
        "caption-outside", "caption-outside-32", "caption-outside-said", "caption-outside-tagging",
        "caption-outside-truth", "cluster-outside-32", "sure-outside-32", "truth-outside",
    ]  # fmt: skip
    assert {arm.name for arm in arms if arm.seeds >= 3} >= {"caption", "cluster"}
    assert {arm.archives for arm in arms} >= {
        "base",
        "truth",
        "expansion=tagging",
        "ranking=calibrated",
        "neighbors=32",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {title: x, trian: {}}", r"arms.yaml: unknown key a.trian \(did you mean 'train'\?\)"),
        ("a: {train: {}}", r"arms.yaml: a.title: missing"),
        ("a: {title: x, curate: nothing}", "curate: 'nothing' is neither a mapping nor truth"),
        ("a: {title: x, seeds: 0}", "seeds: 0 must be at least 1"),
        ("[]", "expected keys and values at the top"),
    ],
)
def test_a_bad_file_of_arms_is_one_line(tmp_path, text, message):
    path = tmp_path / "arms.yaml"
    path.write_text(text)
    with pytest.raises(CocuError, match=message) as error:
        read_families(path)
    assert "\n" not in str(error.value)


def test_arms_are_chosen_by_name():
    arms = [Arm("caption", "x"), Arm("cluster", "y")]
    only = [Family("", "GroupViT", arms)]
    assert choose_arms(only, []) == only
    assert [family.arms for family in choose_arms(only, ["cluster"])] == [arms[1:]]
    with pytest.raises(ExperimentError, match=r"--only: no arm is called claster \(did you mean 'cluster'\?\)"):
        choose_arms(only, ["claster"])


# --- recipes --------------------------------------------------------------------------------------------------------------


def pages_recipes(page: str) -> list[dict]:
    """The recipes that a committed page says its runs were made by."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "experiments" / page).read_text(), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


@pytest.mark.parametrize(
    ("page", "names"), [("README.md", ["recipe.yaml"]), ("started/README.md", ["recipe_started.yaml", "distil.yaml"])]
)
def test_layered_recipes_amount_to_those_of_the_committed_pages(page, names):
    for name, expected in zip(names, pages_recipes(page), strict=True):
        expected["model"]["sizes"] = expected["model"].pop("model")  # their name in version 0.1
        recipe = read_recipe(ROOT / "experiments" / name)
        assert recipe.settings() == expected
        assert yaml.safe_load(recipe.text()) == expected


def test_no_recipe_repeats_what_lies_beneath_it():
    def leaves(values: dict, prefix: str = "") -> dict[str, str]:
        flat = {}
        for key, value in values.items():
            flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: str(value)}
        return flat

    for name in LAYERS:
        *beneath, own = read_recipe(ROOT / "experiments" / name).files
        repeated = leaves(Recipe(tuple(beneath)).settings()).items() & leaves(Recipe((own,)).settings()).items()
        assert not repeated


def test_a_users_recipe_stands_for_itself(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("trainer: {max_epochs: 1}  # short\n")
    assert read_recipe(path) == Recipe((path,))
    assert read_recipe(path).text() == "trainer: {max_epochs: 1}  # short\n"
    over = tmp_path / "over.yaml"
    over.write_text("trainer: {devices: 2}\n")
    assert read_recipe(path, over).settings() == {"trainer": {"max_epochs": 1, "devices": 2}}


def test_runs_that_recorded_the_text_of_their_recipe_are_found_finished(tmp_path):
    """As version 0.1 did; the text is that of the committed page, with its comments and the sizes under model.model."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "experiments" / "README.md").read_text(), re.DOTALL)
    recipe = read_recipe(ROOT / "experiments" / "recipe.yaml")
    setting = Setting(recipe, "voc", "data", tmp_path / "archives", tmp_path / "runs", 1, ("--trainer.devices", "1"))
    arm = Arm("sure", "x", train={"data.filter.score": 1.9}, curate={"retrieval.neighbors": 32})
    asked = {"recipe": text, "train": {"data.filter.score": 1.9}, "archives": "neighbors=32",
             "options": ["--trainer.devices", "1"], "seed": 2}  # fmt: skip
    folder = tmp_path / "runs" / "sure" / "2"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"asked": asked, "seconds": 100}))
    assert setting.finished(arm, 2)
    assert not setting.finished(arm, 1)
    assert not is_finished(folder, setting.request(arm, 1))
    for old, new in (("rate: 2.0e-3", "rate: 1.0e-3"), ("groups: [4]", "groups: [8]"), ("neighbors=32", "base")):
        (folder / "result.json").write_text(json.dumps({"asked": asked, "seconds": 100}).replace(old, new))
        assert not setting.finished(arm, 2)


def test_a_run_is_known_by_what_it_was_measured_on_and_by_its_archives(tmp_path):
    """Not by where these are; a run of before, which recorded neither, stays finished, as does one without its archives."""
    recipe = read_recipe(ROOT / "experiments" / "recipe.yaml")
    archives = tmp_path / "archives" / "base" / "archives"
    archives.mkdir(parents=True)
    (archives / "0.parquet").write_bytes(b"one")

    def setting(folder: Path, benchmark: Path) -> Setting:
        return Setting(recipe, str(benchmark), "data", folder / "archives", folder / "runs", 1)

    first, second = own(tmp_path / "first", 2), own(tmp_path / "second", 3)
    arm = Arm("cluster", "x")
    asked = setting(tmp_path, first).request(arm, 0)
    result = tmp_path / "runs" / "cluster" / "0" / "result.json"
    result.parent.mkdir(parents=True)
    result.write_text(json.dumps({"asked": asked, "seconds": 1}))
    assert setting(tmp_path, first).finished(arm, 0)
    assert not setting(tmp_path, second).finished(arm, 0)
    moved = Path(shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-moved"))
    assert setting(moved, moved / "first" / "mine.yaml").finished(arm, 0)

    (archives / "0.parquet").write_bytes(b"two")
    assert not setting(tmp_path, first).finished(arm, 0)
    shutil.rmtree(archives)
    assert setting(tmp_path, first).finished(arm, 0)
    result.write_text(
        json.dumps({"asked": {k: v for k, v in asked.items() if k not in ("benchmark", "content")}, "seconds": 1})
    )
    assert setting(tmp_path, second).finished(arm, 0)


# --- archives -------------------------------------------------------------------------------------------------------------


def test_without_the_truth_all_other_arms_are_curated(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(archives, "run_module", lambda module, arguments, log: commands.append(arguments))
    monkeypatch.setattr(archives, "read_truth", lambda base: None)
    (tmp_path / "base").mkdir()
    arms = [Arm("caption", "a"), Arm("truth", "b", "truth"), Arm("wide", "c", {"retrieval.neighbors": 32})]
    assert [arm.name for arm in archives.curate("demo", arms, tmp_path, Console(quiet=True))] == ["caption", "wide"]
    assert commands == [
        ["--data", "demo", "--output", str(tmp_path / "base")],
        ["--data", "demo", "--output", str(tmp_path / "neighbors=32"), "--retrieval.neighbors", "32"],
    ]
