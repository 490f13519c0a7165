"""Log files in output folders, and what -q and -v print."""

from __future__ import annotations

import re

import pytest
from rich.console import Console
from rich.progress import Progress

from cocu.__main__ import main
from curation.base.errors import CocuError, OutputError, one_line
from curation.base.logs import DETAIL, SpokenConsole, command_line, log_to, speak
from curation.base.terminal import print_error, run_command

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (INFO|WARNING|ERROR) +\S")


def test_a_run_keeps_what_it_printed(finished):
    lines = (finished / "curate.log").read_text().splitlines()
    assert all(LINE.match(line) for line in lines if line.strip() and not line.endswith("INFO"))
    text = "\n".join(lines)
    assert "--- cocu curate --data" in lines[0] and "torch" in lines[1]
    assert "Curating world" in text and "concepts per archive" in text and "embed" in text
    assert lines[-1].endswith("--- ended") and "\x1b" not in text


def test_quiet_prints_nothing_and_verbose_what_the_log_has(world, tmp_path, capsys):
    command = ["curate", str(world), "--runner", "inprocess", "-o"]
    assert main([*command, str(tmp_path / "q"), "-q"]) == 0
    assert capsys.readouterr().out == ""
    assert "concepts per archive" in (tmp_path / "q" / "curate.log").read_text()
    assert main([*command, str(tmp_path / "v"), "-v", "--only-shards", "0:3"]) == 0
    printed = capsys.readouterr()
    assert "--- cocu curate" in printed.err and "Curating world" in printed.out
    assert (tmp_path / "v" / "curate-0-3.log").exists()


def test_an_error_is_in_the_log_and_printed_once(tmp_path, capsys):
    def work():
        with log_to(str(tmp_path / "x.log"), ["cocu", "x"]):
            print_error("careful", "note")
            raise CocuError("x: y; z")

    assert run_command(work) == 1
    assert capsys.readouterr().err == "note: careful\nerror: x: y; z\n"
    text = (tmp_path / "x.log").read_text()
    assert "WARNING note: careful" in text and "ERROR   x: y; z" in text and "ended" not in text


def test_what_nobody_expected_has_its_stack_in_the_log(tmp_path):
    with pytest.raises(ZeroDivisionError), log_to(str(tmp_path / "x.log"), ["cocu"]):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in (tmp_path / "x.log").read_text()


def test_bars_are_not_in_the_log(tmp_path):
    with open(tmp_path / "terminal", "w") as terminal, log_to(str(tmp_path / "x.log"), ["cocu"]):
        console = SpokenConsole(file=terminal, force_terminal=True, width=80)
        with Progress(console=console) as bar:
            task = bar.add_task("work in progress", total=50)
            for _ in range(50):
                bar.update(task, advance=1, refresh=True)
            bar.console.print("a line")
    text = (tmp_path / "x.log").read_text()
    assert "a line" in text and "work in progress" not in text and "━" not in text
    assert "work in progress" in (tmp_path / "terminal").read_text()


def test_a_notebook_shows_a_line_once_and_the_log_has_it(tmp_path, monkeypatch):
    """In a kernel, rich shows what any console is given, whatever its file."""
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))
    with log_to(tmp_path / "x.log", []):
        SpokenConsole().print("a line")
    assert shown == ["a line\n"]
    assert (tmp_path / "x.log").read_text().count("a line") == 1


def test_secrets_and_control_characters_stay_out(tmp_path):
    address = "https://user:hunter2@host/x.tar?X-Amz-Signature=hunter2"
    with log_to(
        str(tmp_path / "x.log"), ["cocu", "curate", "--shards", address, "--s3_secret_access_key", "hunter2", "-q"]
    ):
        SpokenConsole(quiet=True).print(f"from {address}\x1b[2J", markup=False)
        DETAIL.info(f"again {address}")
    text = (tmp_path / "x.log").read_text()
    assert text.count("host/x.tar") == 3 and "hunter2" not in text and "\x1b" not in text


@pytest.mark.parametrize("name", ["--s3_session_token", "--azure_connection_string", "--my-password", "--api_key"])
@pytest.mark.parametrize("together", [True, False])
def test_options_that_are_secrets_are_hidden(name, together):
    words = [f"{name}=hunter2"] if together else [name, "hunter2"]
    shown = command_line(["cocu", *words, "--output", "x y"])
    assert "hunter2" not in shown and name in shown and shown.endswith("--output 'x y'")


def test_without_a_log_file_nothing_is_kept_and_details_are_for_those_who_ask(capsys):
    DETAIL.info("unheard")
    SpokenConsole().print("heard")
    with speak(verbose=True):
        DETAIL.info("a detail")
    captured = capsys.readouterr()
    assert captured.out == "heard\n" and "a detail" in captured.err and "unheard" not in captured.err


def test_a_log_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"), log_to(str(tmp_path / "file" / "x.log"), ["cocu"]):
        pass


def test_a_message_of_ours_is_never_cut_and_another_between_words():
    long = "word " * 200
    assert one_line(CocuError(f"{long}; the remedy")).endswith("; the remedy")
    cut = one_line(ValueError(long))
    assert len(cut) <= 300 and cut.endswith("word …")
    assert one_line("x" * 400) == "x" * 299 + "…"
    assert one_line("a\n b") == "a b"


def test_training_and_evaluation_keep_logs_too(tiny_training, tmp_path, capsys):
    from evaluation.__main__ import main as evaluate

    run = tmp_path / "run"
    options = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "0"]
    assert main(["train", "--config", str(tiny_training), "-o", str(run), "-q", *options]) == 0
    assert capsys.readouterr().out == ""
    text = (run / "train.log").read_text()
    assert "--- cocu train fit --config" in text and "samples seen" in text
    # the folder of the run is its last checkpoint
    assert (
        evaluate(
            [
                "--checkpoint",
                str(run),
                "--benchmarks",
                "voc",
                "--data-root",
                str(tmp_path),
                "-o",
                str(tmp_path / "r.json"),
            ]
        )
        == 1
    )
    printed = capsys.readouterr().out
    assert f"Evaluating {run}/checkpoints/last.ckpt" in printed and "absent" in printed
    assert "Evaluating" in (tmp_path / "eval.log").read_text()


def test_consoles_of_rich_still_do(capsys):
    Console().print("plain")
    assert capsys.readouterr().out == "plain\n"
