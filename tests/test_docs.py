"""The documentation is right: snippets and commands run, names and messages exist, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
from functools import lru_cache
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tiny_world import write_world

from cocu.__main__ import main as cocu
from cocu.commands import COMMANDS
from curation.archive import SCHEMA, archive_batch, read_archive
from curation.base.parquet import parquet_writer
from curation.config import from_mapping

ROOT = Path(__file__).parent.parent
PACKAGES = ("curation", "evaluation", "pipelines", "segmenters", "training")
PAGES = sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
METHOD = ROOT / "docs" / "method.md"
CITED = "docs/method.md §"  # and a number; "§2 and §3" and "§2 to §4" name two
ARROWS_OWN = "Nested data conversions not implemented for chunked array outputs"
OF_OTHERS = (ARROWS_OWN,)


def named(pages):
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and content of every fenced block; those with a second word (``yaml evaluation``) other tests run."""
    blocks = re.findall(r"^```(\w*)( \w+)?\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, content) for language, of_other_tests, content in blocks if not of_other_tests]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


# --- snippets and commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def workspace(finished, world, tiny_clip, tmp_path, monkeypatch) -> Path:
    """A working directory as the pages assume: artifacts/demo, my-data.yaml, concepts.txt, examples/."""
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "demo").symlink_to(finished)
    (tmp_path / "artifacts" / "my-data").symlink_to(finished)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    shutil.copy(world.parent / "concepts.txt", tmp_path)
    write_world(tmp_path / "my-data.yaml", tiny_clip, shards=str(world.parent / "{00000..00002}.tar"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMBEDDINGS", str(tmp_path))
    return tmp_path


def run(command: str) -> None:
    """Run a command, cocu ... or python -m MODULE ..., by calling its main function."""
    words = shlex.split(command)
    if words[0] == "cocu":
        assert cocu(words[1:]) == 0, command
        return
    assert words[:2] == ["python", "-m"], command
    assert importlib.import_module(words[2]).main(words[3:]) == 0, command


@named([page for page in PAGES if fences(page)])
def test_every_snippet_runs_in_the_order_of_its_page(page, workspace, monkeypatch, capfd):
    for language, content in fences(page):
        assert language in ("python", "console", "yaml", "text", "mermaid"), f"{page.name}: what is {language!r}?"
        monkeypatch.chdir(workspace)
        if language == "python":
            exec(compile(content, f"{page.name}", "exec"), {"__name__": "snippet"})
        elif language == "console":
            for line in content.splitlines():
                run(line.removeprefix("$ "))
        elif language == "yaml":
            from_mapping({"name": "snippet", **yaml.safe_load(content)})
    capfd.readouterr()


def command_lines(page: Path) -> list[list[str]]:
    """The words of every indented line of a page that is a command of ours, without what the shell makes of it."""
    text = page.read_text().replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^    (cocu .*)$", text, re.MULTILINE)]
    return [list(takewhile(lambda word: word not in ("|", ">", "&&", "..."), words))[1:] for words in lines]


@named(WRITTEN)
def test_every_command_line_is_one_that_its_command_takes(page):
    """But for those of curate and train, which have parsers of other libraries."""
    for name, *words in command_lines(page):
        assert name in COMMANDS or name.startswith("-"), f"{page.name}: cocu {name}"
        if name in COMMANDS and name not in ("curate", "train") and "--help" not in words:
            importlib.import_module(COMMANDS[name].module).build_parser().parse_args(words)


@named(WRITTEN)
def test_make_knows_every_target_that_is_named(page):
    mentioned = set(re.findall(r"(?:^    |`)make ([a-z]+)", page.read_text(), re.MULTILINE))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert mentioned <= targets
    for line in re.findall(r"^    (make [^#\n]*)", page.read_text(), re.MULTILINE):
        words = shlex.split(line)
        subprocess.run([*words, "-n", "-o", ".venv/installed"], cwd=ROOT, check=True, capture_output=True)


# --- names, messages, links -----------------------------------------------------------------------------------------------


@named(WRITTEN)
def test_every_name_of_the_code_exists(page):
    packages = "|".join(PACKAGES)
    text = re.sub(r"^\| `[^|]*", "", prose(page), flags=re.MULTILINE) if page.stem == "CHANGELOG" else prose(page)
    for name in re.findall(rf"`((?:{packages})\.[\w.]+)(?:\(.*?\))?`", text):
        assert_exists(name, page.name)


def assert_exists(name: str, where: str) -> None:
    """A dotted name is a module, or something in one."""
    parts = name.split(".")
    module, owner = parts, None
    while owner is None:
        try:
            owner = importlib.import_module(".".join(module))
        except ModuleNotFoundError:
            module = module[:-1]
            assert module, f"{where}: {name}"
    for part in parts[len(module) :]:
        assert hasattr(owner, part) or part in getattr(owner, "__annotations__", {}), f"{where}: {name}"
        owner = getattr(owner, part, None)


def test_the_changelogs_old_names_are_gone_and_its_new_ones_exist():
    """Its table of moves, whose first column names what was there: ``test_every_name_of_the_code_exists`` skips that."""
    moves = re.findall(r"^\| `([^|]*)` \| (.*) \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(moves) > 20
    for old, new in moves:
        module = ROOT / f"{old.replace('.', '/')}.py"
        assert not module.exists(), f"{old} did not move"
        names = re.findall(r"`([\w.]+)`", new)
        assert names, old
        for name in names:
            assert_exists(name, f"CHANGELOG.md: {old}")


@named([*PAGES, ROOT / "CONTRIBUTING.md"])
def test_every_file_that_is_named_exists(page):
    top = "|".join((*PACKAGES, "tests", "examples", "benchmarks", "docs"))
    for name in re.findall(rf"`((?:{top})/[\w./*-]*)", prose(page)):
        assert list(ROOT.glob(name.rstrip("/"))), f"{page.name}: {name}"


@named(WRITTEN)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: {target}"


# --- sections of the method ----------------------------------------------------------------------------------------------


def cited_sections(text: str) -> set[int]:
    """The sections of docs/method.md that a text cites, wherever its lines break."""
    runs = re.findall(re.escape(CITED) + r"\d+(?:[\s#]*(?:,|and|to)[\s#]+§\d+)*", text)
    return {int(number) for run in runs for number in re.findall(r"§(\d+)", run)}


def missing_sections(text: str, page: str) -> set[int]:
    """The sections that ``text`` cites and the page ``page`` does not have, as headings such as ``## 3. Ranking``."""
    return cited_sections(text) - {int(number) for number in re.findall(r"^## (\d+)\. \S", page, re.MULTILINE)}


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (f"Ranking ({CITED}1): x", set()),
        (f"Ranking ({CITED}3): x", {3}),
        (f"{CITED}12", {12}),
        (f"{CITED}1 and §2, and later §7 of another text", set()),
        (f"what {CITED}1 to §4 say", {4}),
        (f"{CITED}1, §3 and §5", {3, 5}),
        (f"# wraps: {CITED}2\n# and §9", {9}),
        ("§9 of another page", set()),
    ],
)
def test_a_citation_of_a_section_that_does_not_exist_is_noticed(text, missing):
    page = "# The method\n\n## 1. Concepts\n\n### 3. Not a section\n\n## 2. Expansion\n\n## 4.\n"
    assert missing_sections(text, page) == missing


def test_every_section_of_the_method_that_is_cited_exists():
    page = METHOD.read_text()
    written = [path for suffix in ("py", "md") for path in ROOT.glob(f"*.{suffix}")]
    for folder in (*PACKAGES, "benchmarks", "docs", "examples", "experiments", "tests"):
        written += [path for suffix in ("py", "md") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    cited = {path: cited_sections(path.read_text()) for path in written}
    assert {1, 2, 3, 4, 5} <= set().union(*cited.values())  # so many are found, at least
    for path in written:
        missing = missing_sections(path.read_text(), page)
        assert not missing, f"{path.relative_to(ROOT)}: {METHOD.name} has no section {missing}"


def test_the_sections_of_the_method_are_numbered_in_order():
    page = METHOD.read_text()
    numbers = re.findall(r"^## (\d+)\. ", page, re.MULTILINE)
    assert numbers == ["1", "2", "3", "4", "5", "6"]
    assert set(re.findall(r"§(\d+)", page)) <= set(numbers)


@lru_cache(maxsize=1)
def messages() -> list[str]:
    """Every string of the code, with {} for what is filled in."""
    strings = []
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
                strings.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
    return strings


def test_every_message_of_troubleshooting_is_one_of_the_code():
    headings = re.findall(r"^### (.*)$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    quoted = [message for heading in headings for message in re.findall(r"`([^`]+)`", heading)]
    assert len(quoted) > 15
    for message in quoted:
        assert message in OF_OTHERS or any(message in string for string in messages()), message


def test_arrow_says_what_the_pages_quote(tmp_path):
    """Of a dictionary inside a struct over several row groups; our own reader reads it."""
    path, names = str(tmp_path / "several.parquet"), pa.array(["cat", "dog"])
    with parquet_writer(path, SCHEMA, {}) as writer:
        for key in ("0", "1"):
            columns = {name: np.ones(1, np.float32) for name in ("score", "global", "local")}
            columns |= {name: np.ones(1, np.int16) for name in ("cluster", "support")}
            keys = pa.array([key])
            writer.write_batch(archive_batch(keys, keys, names, np.array([0, 1]), np.array([int(key)]), **columns))
    with pytest.raises(pa.ArrowNotImplementedError, match=ARROWS_OWN):
        pq.ParquetFile(path).read()
    assert ARROWS_OWN in (ROOT / "docs" / "formats.md").read_text()
    assert [row["concepts"][0]["concept"] for row in read_archive(path).to_pylist()] == ["cat", "dog"]
    assert pq.read_table(path).num_rows == 2


def test_index_and_readme_name_every_page():
    for folder, text in (("", (ROOT / "docs" / "README.md").read_text()), ("docs/", (ROOT / "README.md").read_text())):
        missing = [page.name for page in PAGES if page.name != "README.md" and f"({folder}{page.name}" not in text]
        assert not missing


def test_the_citation_is_valid_and_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    setup = (ROOT / "setup.cfg").read_text()
    assert f"version = {citation['version']}\n" in setup
    assert f"license = {citation['license']}\n" in setup
    releases = re.findall(r"^## (\d\S*), (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == (citation["version"], str(citation["date-released"])), "the newest release of the changelog"
    assert citation["preferred-citation"]["authors"][0]["family-names"] == "Xing"
