"""What experiments compare and how it is trained: arms, recipes in layers, and which runs are finished."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from benchmark_worlds import own
from rich.console import Console

from curation.base.errors import CocuError
from experiments import archives
from experiments.__main__ import build_parser
from experiments.arms import Arm, Family, choose_arms, read_families
from experiments.commands import ExperimentError
from experiments.comparison import arms_of, plan
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
        ("families: {a: {title: x, recipe: r, arms: {}, stat: y}}", r"families.a.stat \(did you mean 'start'\?\)"),
        ("families: {a: {title: x, arms: {}}}", "families.a.recipe: missing"),
        ("families: {a: {title: x, recipe: r}}", "families.a.arms: expected keys and values"),
        (
            "families: {a: {title: x, recipe: r, arms: {b: {tilte: y}}}}",
            r"families.a.arms.b.tilte \(did you mean 'title'",
        ),
        ("families: {}\ncaption: {title: x}", "unknown key caption: a file with families has nothing beside them"),
        ("families: [1]", "families: expected keys and values"),
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


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["caption"], {"dense": ["caption"], "groups": ["caption"]}),
        (["groups"], {"groups": ["caption", "cluster"]}),
        (["dense/archive", "cluster"], {"dense": ["archive"], "groups": ["cluster"]}),
    ],
)
def test_arms_are_chosen_by_family_too(names, kept):
    families = [
        Family("dense", "x", [Arm("caption", "a"), Arm("archive", "b")], "r.yaml"),
        Family("groups", "y", [Arm("caption", "a"), Arm("cluster", "c")], "r.yaml"),
    ]
    chosen = choose_arms(families, names)
    assert {family.name: [arm.name for arm in family.arms] for family in chosen} == kept
    with pytest.raises(ExperimentError, match=r"no arm is called dense/cluster \(did you mean"):
        choose_arms(families, ["dense/cluster"])


def arguments(*words: str):
    return build_parser().parse_args(["--benchmark", "demo", *words])


def test_the_demo_has_families_of_its_own(monkeypatch):
    """Their recipes and starts are there, each has its baseline, and every arm says which negatives it has."""
    monkeypatch.chdir(ROOT.parent)
    comparison = plan(arguments("--data", "demo"))
    assert [part.family.name for part in comparison.families] == ["dense", "groupvit"]
    for part in comparison.families:
        names = {arm.name: arm.seeds for arm in part.family.arms}
        assert {"caption", part.family.method, part.family.chosen, "text", "tagging", "truth"} <= set(names)
        assert names["caption"] == names[part.family.method] == 3
        assert all("data.negatives" in arm.train for arm in part.family.arms)
        assert part.setting.limit == 200 and part.setting.recipe.settings()["data"]["batch_size"] == 64
        assert part.setting.request(part.family.arms[0], 0)["recipe"]["trainer"]["max_epochs"] == 1
    dense, groupvit = comparison.families
    assert dense.start is None and dense.setting.runs == comparison.folder / "runs" / "dense"
    assert groupvit.start.recipe and "teacher" in groupvit.start.recipe.settings()["model"]
    order = [(part.family.name, seed) for part, _, seed in comparison.runs()]
    assert order[:14] == [("dense", 0)] * 7 + [("groupvit", 0)] * 7 and len(order) == 13 + 15


def test_whose_arms_are_compared():
    assert arms_of(arguments("--data", "demo")).name == "arms_demo.yaml"
    assert arms_of(arguments("--data", "worlds/scenes.yaml")).name == "arms.yaml"
    assert arms_of(arguments("--data", "demo", "--start", "experiments/distil.yaml")).name == "arms.yaml"
    families = str(ROOT / "experiments" / "arms_demo.yaml")
    with pytest.raises(ExperimentError, match="its families name their recipes and starts"):
        plan(arguments("--arms", families, "--recipe", "x.yaml"))


def test_a_quick_comparison_has_captions_the_method_and_the_truth():
    quick = plan(arguments("--data", "demo", "--quick", "--only", "dense"))
    assert quick.families[0].setting.limit == 100 and quick.folder.name == "demo-quick"
    quick = plan(arguments("--data", "demo", "--quick"))
    assert [[arm.name for arm in part.family.arms] for part in quick.families] == [
        ["caption", "archive", "truth"],
        ["caption", "cluster", "truth"],
    ]
    assert len(quick.runs()) == 6


# --- recipes --------------------------------------------------------------------------------------------------------------


def pages_recipes(page: str) -> list[dict]:
    """The recipes that a committed page says its runs were made by."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "experiments" / "scenes" / page).read_text(), re.DOTALL)
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
    (text,) = re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "experiments" / "scenes" / "README.md").read_text(), re.DOTALL
    )
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


def test_a_comparison_without_arms_has_no_runs(tmp_path):
    """As --only truth leaves it where no sidecars tell the truth: the report then says that no run is finished."""
    args = build_parser().parse_args(["--only", "truth", "-o", str(tmp_path)])
    comparison = plan(args)
    without = [replace(part, family=replace(part.family, arms=[])) for part in comparison.families]
    assert len(comparison.runs()) > 0 and replace(comparison, families=without).runs() == []


@pytest.mark.parametrize("option", ["--jobs", "--seeds"])
def test_numbers_of_runs_are_at_least_one(option, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([option, "0"])
    assert "0 must be at least 1" in capsys.readouterr().err
