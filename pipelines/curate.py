"""``python -m pipelines.curate``: from image-text shards to concept archives."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from curation.base import files
from curation.base.configuration import did_you_mean
from curation.base.errors import CocuError, one_line
from curation.base.scratch import remove_abandoned, scratch
from curation.base.terminal import RESUMABLE, printable, run_command
from curation.config import CurationConfig, load, options
from curation.run.cleaning import remove_temporary
from curation.run.inputs import request
from curation.run.lock import hold
from curation.run.manifest import begin, finish, finished, settled
from curation.run.owner import check_data
from curation.run.part import Part, finish_together, part_of
from curation.run.progress import clear_progress
from curation.run.run import Run, plan_run
from curation.run.settings import check_settings
from curation.run.sharing import share
from pipelines.arguments import beam_options, require_known
from pipelines.demo.progress import make_with_progress
from pipelines.demo.world import FOLDER
from pipelines.runners import RUNNERS, quiet_import, run_pipeline, runner_of
from pipelines.summary import print_counts, print_forecast, print_stages

PATIENCE = 600  # seconds
EPILOG = """\
examples:
  python -m pipelines.curate --data demo
  python -m pipelines.curate --data cc12m
  python -m pipelines.curate --data my.yaml --output artifacts/mine --archive.expansion text
  python -m pipelines.curate --data my.yaml --runner inprocess --retrieval.neighbors 16
  python -m pipelines.curate --data my.yaml --runner dask --dask_client_address tcp://scheduler:8786
  python -m pipelines.curate --data my.yaml --runner flink --flink_master host:8081
  python -m pipelines.curate --data my.yaml --only-shards 0:100

An interrupted run resumes where it stopped; a finished run is left alone. Options that the chosen Beam runner defines
(such as --dask_client_address) are passed on to it.
"""


def packaged() -> dict[str, str]:
    """Name and path of the data set configurations that ship with the package."""
    folder = Path(str(resources.files("pipelines"))) / "configs"
    return {path.stem: str(path) for path in sorted(folder.glob("*.yaml"))}


def read_config(data: str, overrides: dict[str, str]) -> CurationConfig:
    """The configuration that ``--data`` means: a packaged name, whose paths are relative to the working directory, or a
    YAML file, whose paths are relative to the file. Raises CocuError listing the names."""
    known = packaged()
    if data in known:
        return load(known[data], overrides, folder=os.getcwd())
    if data.endswith((".yaml", ".yml")) or "/" in data:
        return load(data, overrides)
    raise CocuError(
        f"data: {data!r} is not a packaged data set{did_you_mean(data, known)}; there are {', '.join(known)}, "
        "or give a YAML file"
    )


def build_parser() -> argparse.ArgumentParser:
    """The command line: a handful of arguments, and every configuration value by its dotted key."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.curate",
        description="Curate concept archives: for every image, the concepts in the captions of its visual neighbours.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    runners = "; ".join(f"{name}: {runner.sentence}" for name, runner in RUNNERS.items())
    parser.add_argument("--data", required=True, help=f"{', '.join(packaged())}, or the path of a YAML file")
    parser.add_argument("--output", help="output folder (default: the file's output, or artifacts/<name>)")
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
    values = parser.add_argument_group("configuration", "override values of the YAML file, as YAML")
    for key, default, text in options():
        if key != "output":
            shown = "" if default in ("", None) else f" (default: {default})"
            values.add_argument(f"--{key}", dest=key, metavar="VALUE", help=(text + shown).replace("%", "%%"))
    return parser


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
    return run_command(lambda: curate(arguments, Console()), RESUMABLE)


def curate(arguments: list[str] | None, console: Console) -> None:
    """Do what the command line says. Raises CocuError."""
    args, beam_arguments = build_parser().parse_known_args(arguments)
    overrides = {key: value for key, value in vars(args).items() if value is not None}
    if args.name is not None:
        overrides["name"] = json.dumps(args.name)  # a text, even where it looks like a number
    for name in ("data", "output", "runner", "workers", "only_shards", "patience", "dry_run"):
        overrides.pop(name, None)
    if beam_arguments:
        check_beam_arguments(beam_arguments, args.runner)
    config = read_config(args.data, overrides)
    if args.data == "demo" and "shards" not in overrides:
        _prepare_demo(args.dry_run, console)
    run = settled(plan_run(config, args.output or config.output_folder))
    part = _part(run, args) if args.only_shards else None
    began = time.monotonic()

    manifest = finished(run)
    if args.dry_run:
        from curation.run.forecast import forecast

        check_data(run)
        if not manifest:
            check_settings(run)
        print_forecast(forecast(run), console)
        return
    if manifest:
        console.print(
            f"{printable(run.folder)}: already finished; nothing to do", markup=False, highlight=False, soft_wrap=True
        )
        print_counts(run, manifest, console)
        if not files.exists(run.path("report.html")):
            _write_report(run, console)
        return
    if part:
        is_finisher = _run_part(run, part, args, beam_arguments, console)
    else:
        is_finisher = True
        _run(run, args, beam_arguments, console)
    if is_finisher:
        _write_report(run, console)
    minutes, seconds = divmod(time.monotonic() - began, 60)
    console.print(f"Finished in {minutes:.0f} min {seconds:.0f} s.", highlight=False)


def _prepare_demo(dry_run: bool, console: Console) -> None:
    if not dry_run:
        make_with_progress(FOLDER, console)
    elif not os.path.exists(FOLDER):
        raise CocuError(f"{FOLDER}: the demo world does not exist yet; run without --dry-run first")


def _write_report(run: Run, console: Console) -> None:
    """The archives are finished, with or without a page about them: what goes wrong here is said, and is no failure."""
    from curation.tools import report

    try:
        path = report.write(run)
    except Exception as error:  # whatever it is, hours of work are done
        reason = str(error) if isinstance(error, CocuError) else f"{type(error).__name__}: {one_line(error)}"
        again = f"python -m curation.tools.report {run.folder}"
        message = escape(printable(f"{reason}; try again with {again}"))
        console.print(f"[yellow]no report:[/] {message}", highlight=False, soft_wrap=True)
    else:
        console.print(f"Pictures and numbers: {printable(path)}", markup=False, highlight=False, soft_wrap=True)


def _run(run: Run, args: argparse.Namespace, beam_arguments: list[str], console: Console) -> None:
    remove_abandoned()
    with scratch() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)  # torch would leave a folder in TMPDIR
        _announce(run, args.runner, len(run.shards), console)
        with hold(run):
            begin(run)
            _tidy(run)
            _compute(run, args, beam_arguments, console)
            finish(run)
            remove_temporary(run)  # of workers that were lost while others went on
            _print_tables(run, console)
            clear_progress(run)  # before another run may begin, whose notes these would be


def _run_part(run: Run, part: Part, args: argparse.Namespace, beam_arguments: list[str], console: Console) -> bool:
    """Compute a part of the shards; returns whether it was this process that finished the run."""

    def first() -> None:
        begin(run)
        if not files.is_remote(run.folder):  # where other processes may be at work
            _tidy(run)

    remove_abandoned()
    with scratch() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        _announce(run, args.runner, len(part.shards), console)
        with share(run, request(run), first, last=lambda: _tidy(run)):
            _compute(run, args, beam_arguments, console, part)
            is_finisher = finish_together(run, part.patience)
            _print_tables(run, console)
    return is_finisher


def _part(run: Run, args: argparse.Namespace) -> Part:
    if runner_of(args.runner).reshuffles:
        raise CocuError(f"only-shards: runner {args.runner} spreads the shards over its machines by itself")
    return part_of(run, args.only_shards, args.patience)


def _announce(run: Run, runner: str, shards: int, console: Console) -> None:
    config = run.config
    check_settings(run)
    count = f"{shards:,}" if shards == len(run.shards) else f"{shards:,} of {len(run.shards):,}"
    console.print(
        f"Curating {config.name}: {count} shards -> {escape(printable(run.folder))}\n"
        f"{_embedder(config)}; {config.archive.expansion} expansion, "
        f"L = {config.retrieval.neighbors}, ranking {config.archive.ranking_name}; runner {runner}",
        highlight=False,
        soft_wrap=True,
    )


def _tidy(run: Run) -> None:
    """Remove what a killed run left. Only where no other process is at work."""
    remove_temporary(run)
    clear_progress(run)


def _compute(
    run: Run,
    args: argparse.Namespace,
    beam_arguments: list[str],
    console: Console,
    part: Part | None = None,
) -> None:
    from pipelines.monitor import Monitor

    with Monitor(run, console, part.shards if part else ()):
        run_pipeline(run, args.runner, args.workers, beam_arguments, part)


def _print_tables(run: Run, console: Console) -> None:
    print_counts(run, files.read_json(run.manifest), console)
    print_stages(run, console)


def _embedder(config: CurationConfig) -> str:
    """What embeds images and texts, in a few words."""
    from curation import encoder

    if not config.encoder.is_named:
        return (
            f"No encoder: given embeddings of images and of concepts ({escape(printable(config.concept_embeddings))})"
        )
    device, precision = encoder.resolve(config.encoder)
    return f"Encoder {config.encoder.model} on {device}, {precision}"


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of Beam may still wait for a worker that died
