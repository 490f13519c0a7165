"""``cocu curate DATA``: from image-text shards to concept archives."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from rich.console import Console

from curation.base.configuration import did_you_mean
from curation.base.errors import CocuError
from curation.base.logs import SpokenConsole, add_loudness, speak
from curation.base.options import EMPTY, CommandParser
from curation.base.terminal import RESUMABLE, run_command
from curation.config import CurationConfig, load, options
from pipelines.arguments import beam_options, require_known
from pipelines.runners import RUNNERS, quiet_import, runner_of

PATIENCE = 600  # seconds
EPILOG = """\
examples:
  cocu curate demo
  cocu curate cc12m
  cocu curate my.yaml --output artifacts/mine --archive.expansion text
  cocu curate my.yaml --runner inprocess --retrieval.neighbors 16
  cocu curate my.yaml --runner dask --dask_client_address tcp://scheduler:8786
  cocu curate my.yaml --runner flink --flink_master host:8081
  cocu curate my.yaml --only-shards 0:100

An interrupted run resumes where it stopped; a finished run is left alone. Options that the chosen Beam runner defines
(such as --dask_client_address) are passed on to it. What is printed is also in OUT/curate.log.
"""


def packaged() -> dict[str, str]:
    """Name and path of the data set configurations that ship with the package."""
    folder = Path(str(resources.files("pipelines"))) / "configs"
    return {path.stem: str(path) for path in sorted(folder.glob("*.yaml"))}


def read_config(data: str, overrides: Mapping[str, str]) -> CurationConfig:
    """The configuration that ``--data`` means: a packaged name, whose paths are relative to the working directory, or a
    YAML file, whose paths are relative to the file. Raises CocuError that says what to give in place of anything else."""
    known = packaged()
    if data in known:
        return load(known[data], dict(overrides), folder=os.getcwd())
    path = Path(data)
    if path.is_dir() or path.suffix == ".tar":
        raise CocuError(f"data: {data} is {instead_of(path)}")
    if data.endswith((".yaml", ".yml")) or "/" in data:
        return load(data, dict(overrides))
    raise CocuError(
        f"data: {data!r} is not a packaged data set{did_you_mean(data, known)}; there are {', '.join(known)}, "
        "or give a YAML file"
    )


def instead_of(path: Path) -> str:
    """What a folder or tar is, which has no settings, and the command that makes a configuration of it.

    >>> instead_of(Path("data/00000.tar"))
    'a tar, not a configuration; cocu init data/00000.tar writes one'
    """
    if not path.is_dir():
        return f"a tar, not a configuration; cocu init {shlex.quote(str(path))} writes one"
    folder = shlex.quote(str(path))
    if (path / "img_emb").is_dir():
        return "a folder of embeddings; name it as embeddings: in a YAML file (docs/examples.md)"
    if any(path.glob("*.tar")):
        return f"a folder of tars, not a configuration; cocu init {folder} writes one"
    target = shlex.quote(f"{path.resolve().name}-tars/{{}}.tar")
    return f"a folder; cocu pack {folder} -o {target} makes tars of the pictures in it, and a YAML file to give here"


def build_parser() -> argparse.ArgumentParser:
    """The command line: a handful of arguments, and every configuration value by its dotted key."""
    parser = CommandParser(
        prog="cocu curate",
        usage="cocu curate DATA [options]",
        description="Curate concept archives: for every image, the concepts in the captions of its visual neighbours.",
        epilog=EPILOG,
    )
    runners = "; ".join(f"{name}: {runner.sentence}" for name, runner in RUNNERS.items())
    parser.add_argument("--data", help=f"the same as DATA: {', '.join(packaged())}, or the path of a YAML file")
    parser.add_argument(
        "-o", "--output", metavar="OUT", help="output folder (default: the file's output, or artifacts/<name>)"
    )
    parser.add_argument("--runner", default="DirectRunner", help=f"{runners}; or the name of any Beam runner")
    parser.add_argument(
        "--workers", type=int, help="worker processes on this machine (default: one per core that it may use)"
    )
    parser.add_argument(
        "--only-shards",
        metavar="A:B",
        help="compute the shards from A up to B without B (the first is 0), and leave the others to processes with the "
        "same command but for the range: for Ray, Slurm, or a loop in a shell",
    )
    parser.add_argument(
        "--patience",
        type=float,
        default=PATIENCE,
        metavar="SECONDS",
        help="with --only-shards: wait so long without a sign of the other processes (default: %(default)s)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be kept and what would be computed, and why"
    )
    add_loudness(parser)
    values = parser.add_argument_group("configuration", "override values of the YAML file, as YAML")
    for key, default, text in options():
        if key != "output":
            shown = "" if default in ("", None) else f" (default: {default})"
            values.add_argument(f"--{key}", dest=key, metavar="VALUE", help=(text + shown).replace("%", "%%"))
    return parser


def chosen_data(named: str | None, words: list[str]) -> tuple[str, list[str]]:
    """The data that ``--data`` names, or one of the words that are left over; and the other ones, which are for Beam.

    A word behind an option of Beam's is the value of that. Raises CocuError where no data, or more than one, is given.

    >>> chosen_data(None, ["--flink_master", "host:8081", "my.yaml"])
    ('my.yaml', ['--flink_master', 'host:8081'])
    """
    before = ["x", *words]
    free = [
        number
        for number, word in enumerate(words)
        if not word.startswith("-") and (not before[number].startswith("-") or "=" in before[number])
    ]
    if named is None and not free:
        raise CocuError("which data? give a YAML file (cocu init TARS writes one), or one of " + ", ".join(packaged()))
    if "" in [named, *(words[number] for number in free)]:
        raise CocuError(f"data: {EMPTY}")
    if named is None:
        return words[free[0]], words[: free[0]] + words[free[0] + 1 :]
    if 0 in free:
        raise CocuError(f"data: given twice, as {words[0]} and by --data {named}")
    return named, words


def check_beam_arguments(arguments: list[str], runner: str) -> None:
    """Raises CocuError for an option that neither we nor Beam's runner know: Beam itself would ignore it."""
    with quiet_import():
        import apache_beam.options.pipeline_options  # noqa: F401 - imported here, where nothing is heard

        module = runner_of(runner).module
        if module:  # a runner's options are known when its module is
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise CocuError(f"runner {runner}: cannot be imported ({error})") from None

    if runner_of(runner).has_job_server:  # it is asked for its options when it runs; none of them has a dot
        arguments = [argument for argument in arguments if "." in argument.split("=")[0]]
    ours = [name for action in build_parser()._actions for name in action.option_strings]
    require_known(arguments, ours + beam_options())


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments

    def work() -> None:
        args, beam_arguments = build_parser().parse_known_args(words)
        args.words = ["cocu", "curate", *words]
        with speak(args.verbose):
            curate(args, beam_arguments, SpokenConsole(quiet=args.quiet))

    return run_command(work, RESUMABLE)


def curate(args: argparse.Namespace, beam_arguments: list[str], console: Console) -> None:
    """Do what the command line says. Raises CocuError."""
    data, beam_arguments = chosen_data(args.data, beam_arguments)
    overrides = {key: vars(args)[key] for key, _, _ in options() if key != "output" and vars(args)[key] is not None}
    if args.name is not None:
        overrides["name"] = json.dumps(args.name)  # a text, even where it looks like a number
    if beam_arguments:
        check_beam_arguments(beam_arguments, args.runner)
    config = read_config(data, overrides)

    from pipelines.execution import carry_out, prepare_demo  # imports torch, which --help does without

    if data == "demo" and "shards" not in overrides:
        prepare_demo(args.dry_run, console)
    carry_out(config, args, beam_arguments, console)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of Beam may still wait for a worker that died
