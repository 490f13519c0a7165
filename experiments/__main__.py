"""``cocu experiments``: curate, train and evaluate every arm, and write the page that compares them."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from rich.console import Console

from curation.base.options import CommandParser, positive
from curation.base.terminal import run_command

PAGES = Path("docs/experiments")
EPILOG = """\
examples:
  cocu experiments --data demo --benchmark demo
  cocu experiments --data worlds/scenes.yaml --benchmark worlds/val_seen.yaml
  cocu experiments --data worlds/scenes.yaml --benchmark worlds/val_seen.yaml --only caption cluster --jobs 2
  cocu experiments --data worlds/scenes.yaml --benchmark worlds/val_seen.yaml --start experiments/distil.yaml
  cocu experiments --data cc12m --benchmark voc --data-root data --recipe training/configs/groupvit_cc12m.yaml

An interrupted run resumes from its last checkpoint when the same command is given again; finished runs are kept.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="cocu experiments",
        description="Curate, train and evaluate every arm, and write the page that compares them.",
        epilog=EPILOG,
    )
    parser.add_argument("--data", default="demo", help="name of a packaged data set, or a YAML file (default: demo)")
    parser.add_argument("--benchmark", default="demo", help="a packaged benchmark, or a YAML file (default: demo)")
    parser.add_argument(
        "--data-root", default="artifacts", help="folder of a packaged benchmark's data (default: artifacts)"
    )
    parser.add_argument(
        "--recipe",
        nargs="+",
        type=Path,
        metavar="YAML",
        help="configuration of the trainer; later files are laid over earlier ones (default: what the arms say, or else "
        "experiments/recipe.yaml; recipe_started.yaml with --start)",
    )
    parser.add_argument(
        "--start",
        type=Path,
        metavar="CHECKPOINT|YAML",
        help="what all runs start from: a checkpoint, or a recipe for experiments.distil or, where it names a "
        "model.teacher, experiments.distil_places, which make one (default: what the arms say, or else random weights)",
    )
    parser.add_argument(
        "--arms",
        type=Path,
        help="what is compared (default: experiments/arms_DATA.yaml, where there is one such as arms_demo.yaml and neither "
        "--recipe nor --start is given; else experiments/arms.yaml)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="ARM",
        help="these arms only: caption, dense/caption or, for a whole family, dense (default: all)",
    )
    parser.add_argument("--seeds", type=positive, help="runs of an arm, at most")
    parser.add_argument("-o", "--output", type=Path, help="archives and runs (default: artifacts/experiments/DATA)")
    parser.add_argument(
        "--report",
        type=Path,
        help="the page (default: docs/experiments/DATA; in started/ with --start, in quick/ with --quick)",
    )
    parser.add_argument(
        "--jobs", type=positive, default=1, help="runs side by side, which share the processor cores (default: 1)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="three arms of each kind, one seed, 150 steps: minutes, to see that it works",
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the runs that are finished")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    args = build_parser().parse_args(arguments)
    console = Console(highlight=False, soft_wrap=True)
    page = PAGES / Path(args.data).stem / ("started" if args.start else "") / ("quick" if args.quick else "")
    command = f"cocu experiments {shlex.join(word for word in arguments if word != '--page-only')}".strip()

    def work() -> None:
        from experiments.comparison import carry_out, plan  # imports torch, which --help does without
        from experiments.report import write_report

        comparison = plan(args)
        if not args.page_only:
            comparison = carry_out(comparison, args.jobs, console)
        console.print(f"Written: {write_report(comparison, args.report or page, command)}")

    return run_command(work, "interrupted; give the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
