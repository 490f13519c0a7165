"""The layout of the project: who may import whom, what ships, and that the README's examples run."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from curation.archive.sampling import SAMPLERS
from curation.samples import list_shards
from evaluation.benchmark import packaged as benchmarks
from pipelines.curate import build_parser, packaged, read_config
from training.dense import DenseModule

ROOT = Path(__file__).parent.parent
PACKAGES = ("curation", "segmenters", "evaluation", "training", "pipelines", "experiments", "benchmarks", "cocu")
ALLOWED = {  # what a package may import, besides itself: packages, or parts of them
    "curation": set(),
    "segmenters": {"curation.base"},
    "evaluation": {"segmenters", "curation.base"},
    "training": {"segmenters", "evaluation", "curation.archive", "curation.base"},
    "pipelines": {"curation"},
    "experiments": set(PACKAGES),
    "benchmarks": set(PACKAGES),
    "cocu": {"curation.base"},  # what a command needs is imported when it runs
}
FORBIDDEN = {
    "curation": {"apache_beam", "lightning", "pytorch_lightning"},
    "segmenters": {"apache_beam", "lightning", "pytorch_lightning"},
    "evaluation": {"apache_beam", "lightning", "pytorch_lightning"},
    "training": {"apache_beam"},
    "pipelines": {"lightning", "pytorch_lightning"},
    "experiments": {"apache_beam"},
    "benchmarks": set(),
    "cocu": {"apache_beam", "torch", "lightning", "pytorch_lightning"},
}
# The floors of curation, from below: a module imports from its own floor and from those below it.
FLOORS = ("curation.base", "curation.archive", "curation.", "curation.run", "curation.tools")


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_only_what_the_design_allows(path):
    package = path.relative_to(ROOT).parts[0]
    allowed = ALLOWED[package] | {package}
    for name in imports(path):
        top = name.partition(".")[0]
        assert top not in FORBIDDEN[package], f"{path} imports {name}"
        if top in PACKAGES:
            inside = any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)
            assert inside or any(prefix.startswith(f"{name}.") for prefix in allowed), f"{path} imports {name}"


def floor(name: str) -> int:
    """The floor of a module of curation; its flat modules and the index are one floor."""
    above = [number for number, prefix in enumerate(FLOORS) if f"{name}.".startswith(f"{prefix}.")]
    return above[0] if above else FLOORS.index("curation.")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "curation").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_arrow_runs_upwards_in_curation(path):
    own = floor(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for name in imports(path):
        if name.startswith("curation."):
            assert floor(name) <= own, f"{path} imports {name}, which is above it"


def test_no_two_packages_import_each_other():
    known = {package: set() for package in PACKAGES}
    for path in sources():
        package = path.relative_to(ROOT).parts[0]
        known[package] |= {name.partition(".")[0] for name in imports(path)} & set(PACKAGES) - {package}
    pairs = [(one, other) for one in PACKAGES for other in known[one] if one in known[other]]
    assert not pairs


def test_no_test_imports_from_another_test():
    for path in (ROOT / "tests").glob("*.py"):
        assert not [name for name in imports(path) if name.split(".")[0].startswith(("test_", "conftest"))], path


def test_the_archive_module_is_light_to_import():
    code = "import sys, curation.archive; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"apache_beam", "torch", "open_clip", "faiss", "webdataset", "spacy"} & set(loaded.split())


def test_configurations_and_tables_need_no_torch():
    code = "import sys, curation.config, curation.expansion, curation.ranking; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "faiss", "open_clip", "spacy", "apache_beam"} & set(loaded.split())


def test_a_file_has_one_noun():
    for path in [*sources(), *(ROOT / "tests").glob("*.py")]:
        assert path.stem not in ("utils", "helpers", "common", "misc"), path
        assert len(path.read_text().splitlines()) <= 400, f"{path} is long: does it have one noun?"


@pytest.mark.parametrize("name", ["cc3m", "cc12m", "cc12m_wds", "yfcc14m", "redcaps12m"])
def test_packaged_configurations_are_valid(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = read_config(name, {})
    shards = list_shards(config.shards)
    assert config.name == name
    assert shards[0].path.startswith(str(tmp_path / "data"))
    counts = {"cc3m": 332, "cc12m": 1243, "cc12m_wds": 2176, "yfcc14m": 1483, "redcaps12m": 1202}
    assert len(shards) == counts[name]


def test_every_packaged_configuration_is_named_in_help_and_docs():
    text = build_parser().format_help()
    for name in packaged():
        assert name in text
        assert f"`{name}`" in (ROOT / "docs" / "data.md").read_text()


USING = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("data", "archives", "training", "evaluation"))]


def blocks_of(language: str, *pages: Path) -> list[str]:
    return [block for page in pages for block in re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)]


@pytest.mark.parametrize("block", blocks_of("python", ROOT / "README.md", ROOT / "docs" / "archives.md"))
def test_python_examples_of_the_readme_and_of_archives_run_as_written(block, finished, tmp_path):
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "my-data").symlink_to(finished)
    run = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "apple" in run.stdout


def test_the_yaml_example_of_your_own_data_is_a_valid_configuration(tmp_path):
    block, _ = blocks_of("yaml", ROOT / "docs" / "data.md")
    (tmp_path / "my-data.yaml").write_text(block)
    config = read_config(str(tmp_path / "my-data.yaml"), {})
    assert len(list_shards(config.shards)) == 100
    assert config.output_folder == "artifacts/my-data"


def test_every_configuration_key_of_the_pages_exists():
    from curation.config import options

    keys = {key for key, _, _ in options()}
    keys |= {f"model.{name}" for name in inspect.signature(DenseModule).parameters}
    pages = [page for page in USING if page.stem != "evaluation"]
    named = {name for page in pages for name in re.findall(r"^\| `([\w.]+)` \|", page.read_text(), re.MULTILINE)}
    assert len(named) > 30
    assert named <= keys | set(benchmarks()) | set(SAMPLERS) | {"data.sampler.kind"}


def test_make_targets_are_listed_by_help():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("curate", "show", "measure", "eval", "test", "lint", "bench", "gpu"):
        assert re.search(rf"^  {target}\s+\w", text, re.MULTILINE)
