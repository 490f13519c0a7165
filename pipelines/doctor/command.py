"""The command line of ``cocu doctor``."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.markup import escape

from curation.base.options import CommandParser
from curation.base.terminal import FAILED, printable, run_command

COLOURS = {"ok": "green", "note": "yellow", "wrong": "bold red"}
EPILOG = """\
examples:
  cocu doctor
  cocu doctor my-data.yaml

The exit code is 1 where something is wrong that keeps a run from working; notes are for you to judge.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu doctor",
        description="Say what this machine has and, for a configuration, whether it can be curated here.",
        epilog=EPILOG,
    )
    parser.add_argument("data", nargs="?", metavar="CONFIG", help="a YAML file, or the name of a packaged data set")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="output folder of the run (default: as cocu curate has it)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    args = build_parser().parse_args(arguments)
    return run_command(lambda: examine(args, Console(highlight=False, soft_wrap=True)))


def examine(args: argparse.Namespace, console: Console) -> int:
    """Print what is found; returns the exit code. Raises CocuError for a configuration that cannot be read."""
    from pipelines.curate import read_config

    config = read_config(args.data, {}) if args.data else None
    from pipelines.doctor.finding import WRONG
    from pipelines.doctor.machine import Machine, machine_findings
    from pipelines.doctor.needs import need_findings  # imports torch, which a file that is not there does without
    from pipelines.doctor.packages import package_findings

    output = args.output or (config.output_folder if config else ".")
    machine = Machine.here()
    sections = {"This machine": [*machine_findings(machine, output)], "Packages": [*package_findings()]}
    if config:
        sections[f"{args.data} ({config.name})"] = [*need_findings(config, machine, output)]

    for title, findings in sections.items():
        console.print(f"[bold]{escape(printable(title))}[/]")
        for state, what, text in findings:
            console.print(f"  [{COLOURS[state]}]{state:<6}[/]{what:<13} {escape(printable(text))}")
    wrong = sum(finding.state == WRONG for findings in sections.values() for finding in findings)
    return FAILED if wrong else 0
