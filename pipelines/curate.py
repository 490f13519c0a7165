"""``python -m pipelines.curate``: from image-text shards to concept archives."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from importlib import resources
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from curation.base import files
from curation.base.configuration import did_you_mean
from curation.base.errors import CocuError
from curation.base.terminal import run_command
from curation.config import CurationConfig, load, options
from curation.run.cleaning import remove_temporary
from curation.run.lock import hold
from curation.run.manifest import finish, finished
from curation.run.progress import clear_progress
from curation.run.run import Run, plan_run
from pipelines.demo.progress import make_with_progress
from pipelines.demo.world import FOLDER
from pipelines.summary import print_counts, print_forecast, print_stages

EPILOG = """\
examples:
  python -m pipelines.curate --data demo
  python -m pipelines.curate --data cc12m
  python -m pipelines.curate --data my.yaml --output artifacts/mine --archive.expansion text
  python -m pipelines.curate --data my.yaml --runner inprocess --retrieval.neighbors 16
  python -m pipelines.curate --data my.yaml --runner dask --dask_client_address tcp://scheduler:8786

A run that was interrupted goes on where it stopped; a run that is finished is found finished. Options that the chosen
Beam runner defines (such as --dask_client_address) are passed on to it.
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


def parser() -> argparse.ArgumentParser:
    """The command line: a handful of arguments, and every configuration value by its dotted key."""
    made = argparse.ArgumentParser(
        prog="python -m pipelines.curate",
        description="Curate concept archives: for every image, the concepts in the captions of its visual neighbours.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--data", required=True, help=f"{', '.join(packaged())}, or the path of a YAML file")
    made.add_argument("--output", help="output folder (default: the file's output, or artifacts/<name>)")
    made.add_argument(
        "--runner",
        default="DirectRunner",
        help="DirectRunner: worker processes on this machine; inprocess: for debugging; dask; portable; or any Beam runner",
    )
    made.add_argument("--workers", type=int, help="worker processes on this machine (default: one a core)")
    made.add_argument("--dry-run", action="store_true", help="print what would be kept and what computed, and why")
    values = made.add_argument_group("configuration", "override values of the YAML file, as YAML")
    for key, default, text in options():
        if key not in ("name", "output"):
            shown = "" if default in ("", None) else f" (default: {default})"
            values.add_argument(f"--{key}", dest=key, metavar="VALUE", help=(text + shown).replace("%", "%%"))
    return made


def check_beam_arguments(arguments: list[str], runner: str) -> None:
    """Raises CocuError for an option that neither we nor Beam's runner know: Beam itself would ignore it."""
    logging.disable(logging.WARNING)  # Beam warns of Google packages that nobody asked for
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipelines.dask import RUNNER

    module = (RUNNER if runner == "dask" else runner).rpartition(".")[0]
    if module:  # a runner's options are known when its module is
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise CocuError(f"runner {runner}: cannot be imported ({error})") from None
    logging.disable(logging.NOTSET)
    known = argparse.ArgumentParser(allow_abbrev=False)
    for section in PipelineOptions.__subclasses__():
        section._add_argparse_args(known)
    names = [name for action in known._actions for name in action.option_strings]
    ours = [name for action in parser()._actions for name in action.option_strings]
    for argument in arguments:
        name = argument.split("=")[0]
        if argument.startswith("-") and name not in names:
            raise CocuError(f"unknown option {name}{did_you_mean(name, ours + names)}")


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    return run_command(lambda: curate(arguments, Console()), "interrupted; run the same command again to resume")


def curate(arguments: list[str] | None, console: Console) -> None:
    """Do what the command line says. Raises CocuError."""
    given, beam_arguments = parser().parse_known_args(arguments)
    overrides = {key: value for key, value in vars(given).items() if value is not None}
    for name in ("data", "output", "runner", "workers", "dry_run"):
        overrides.pop(name, None)
    if beam_arguments:
        check_beam_arguments(beam_arguments, given.runner)
    config = read_config(given.data, overrides)
    if given.data == "demo" and "shards" not in overrides:
        _prepare_demo(given.dry_run, console)
    run = plan_run(config, given.output or config.output_folder)
    began = time.monotonic()

    manifest = finished(run)
    if given.dry_run:
        from curation.run.forecast import forecast

        print_forecast(forecast(run), console)
        return
    if manifest:
        console.print(f"{run.folder}: finished already, nothing to do", highlight=False)
        print_counts(run, manifest, console)
        if not files.exists(run.path("report.html")):
            _write_report(run, console)
        return
    _run(run, given, beam_arguments, console)
    _write_report(run, console)
    minutes, seconds = divmod(time.monotonic() - began, 60)
    console.print(f"Finished in {minutes:.0f} min {seconds:.0f} s.", highlight=False)


def _prepare_demo(dry_run: bool, console: Console) -> None:
    if not dry_run:
        make_with_progress(FOLDER, console)
    elif not os.path.exists(FOLDER):
        raise CocuError(f"{FOLDER}: the demo world is not made yet; run without --dry-run first")


def _write_report(run: Run, console: Console) -> None:
    """The archives are finished, with or without a page about them: what goes wrong here is said, and is no failure."""
    from curation.tools import report

    try:
        path = report.write(run)
    except CocuError as error:
        again = f"python -m curation.tools.report {run.folder}"
        console.print(
            f"[yellow]no report:[/] {escape(str(error))}; try again with {again}", highlight=False, soft_wrap=True
        )
    else:
        console.print(f"Pictures and numbers: {path}", highlight=False, soft_wrap=True)


def _run(run: Run, given: argparse.Namespace, beam_arguments: list[str], console: Console) -> None:
    from curation import encoder
    from pipelines.monitor import Monitor

    logging.disable(logging.WARNING)  # Beam warns of Google packages that nobody asked for
    from pipelines.runners import run_pipeline

    logging.disable(logging.NOTSET)
    config = run.config
    device, precision = encoder.resolve(config.encoder)
    console.print(
        f"Curating {config.name}: {len(run.shards):,} shards -> {run.folder}\n"
        f"Encoder {config.encoder.model} on {device}, {precision}; {config.archive.expansion} expansion, "
        f"L = {config.retrieval.neighbors}, ranking {config.archive.ranking_name}; runner {given.runner}",
        highlight=False,
        soft_wrap=True,
    )
    with hold(run):
        files.remove(run.manifest)  # no manifest: not finished
        remove_temporary(run)
        clear_progress(run)
        with Monitor(run, console):
            run_pipeline(run, given.runner, given.workers, beam_arguments)
        finish(run)
        remove_temporary(run)  # of workers that were lost while others went on
    print_counts(run, files.read_json(run.manifest), console)
    print_stages(run, console)
    clear_progress(run)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of Beam may still wait for a worker that died
