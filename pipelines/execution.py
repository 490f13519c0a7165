"""A run of curation from its beginning to its end: what is printed, tidied, computed, and written about it."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from curation.base import files
from curation.base.errors import CocuError, one_line
from curation.base.logs import DETAIL, log_to
from curation.base.scratch import remove_abandoned, scratch
from curation.base.terminal import printable
from curation.base.versions import versions
from curation.config import CurationConfig
from curation.run.cleaning import remove_temporary
from curation.run.forecast import forecast
from curation.run.inputs import request
from curation.run.lock import hold
from curation.run.manifest import begin, finish, finished, settled
from curation.run.owner import check_data
from curation.run.part import Part, finish_together, part_of
from curation.run.progress import clear_progress
from curation.run.run import Run, plan_run
from curation.run.settings import check_settings
from curation.run.sharing import share
from pipelines.demo.progress import make_with_progress
from pipelines.demo.world import FOLDER
from pipelines.monitor import Monitor
from pipelines.runners import run_pipeline, runner_of
from pipelines.summary import print_counts, print_forecast, print_stages

LOG = "curate.log"  # in the output folder
LOGGED = ("cocu", "apache-beam", "torch", "open_clip_torch", "faiss-cpu", "pyarrow", "numpy")  # packages


def prepare_demo(dry_run: bool, console: Console) -> None:
    """Draw the demo world unless it is there. Raises CocuError where a dry run would have to."""
    if not dry_run:
        make_with_progress(FOLDER, console)
    elif not os.path.exists(FOLDER):
        raise CocuError(f"{FOLDER}: the demo world does not exist yet; run without --dry-run first")


def carry_out(config: CurationConfig, args: argparse.Namespace, beam_arguments: list[str], console: Console) -> None:
    """Do with a configuration what the command line says: forecast, report what is finished, or compute.

    Raises CocuError.
    """
    run = settled(plan_run(config, args.output or config.output_folder))
    part = _part(run, args) if args.only_shards else None
    began = time.monotonic()

    manifest = finished(run)
    if args.dry_run:
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


def _run(run: Run, args: argparse.Namespace, beam_arguments: list[str], console: Console) -> None:
    check_settings(run)
    remove_abandoned()
    with scratch() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)  # torch would leave a folder in TMPDIR
        with hold(run), _logged(run, LOG, args):
            _announce(run, args.runner, len(run.shards), console)
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

    check_settings(run)
    remove_abandoned()
    with scratch() as folder:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        _announce(run, args.runner, len(part.shards), console)
        log = f"curate-{args.only_shards.replace(':', '-')}.log"
        with share(run, request(run), first, last=lambda: _tidy(run)), _logged(run, log, args):
            _compute(run, args, beam_arguments, console, part)
            is_finisher = finish_together(run, part.patience)
            _print_tables(run, console)
    return is_finisher


@contextlib.contextmanager
def _logged(run: Run, name: str, args: argparse.Namespace) -> Iterator[None]:
    """Keep a log file in the output folder; at an address, where nothing can be appended to a file, keep none."""
    if files.is_remote(run.folder):
        yield
        return
    with log_to(run.path(name), args.words):
        DETAIL.info(", ".join(f"{name} {version}" for name, version in versions(LOGGED).items()))
        yield


def _write_report(run: Run, console: Console) -> None:
    """The archives are finished, with or without a page about them: what goes wrong here is said, and is no failure."""
    from curation.tools import report

    try:
        path = report.write(run)
    except Exception as error:  # whatever it is, hours of work are done
        reason = str(error) if isinstance(error, CocuError) else f"{type(error).__name__}: {one_line(error)}"
        again = f"cocu report {run.folder}"
        message = escape(printable(f"{reason}; try again with {again}"))
        console.print(f"[yellow]no report:[/] {message}", highlight=False, soft_wrap=True)
    else:
        console.print(f"Pictures and numbers: {printable(path)}", markup=False, highlight=False, soft_wrap=True)


def _part(run: Run, args: argparse.Namespace) -> Part:
    if runner_of(args.runner).reshuffles:
        raise CocuError(f"only-shards: runner {args.runner} spreads the shards over its machines by itself")
    return part_of(run, args.only_shards, args.patience)


def _announce(run: Run, runner: str, shards: int, console: Console) -> None:
    config = run.config
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
