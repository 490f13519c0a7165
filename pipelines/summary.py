"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.base.terminal import printable
from curation.run.forecast import Step
from curation.run.progress import read_progress
from curation.run.run import Run
from curation.run.unmentioned import sentence


def print_counts(run: Run, manifest: dict[str, Any], console: Console) -> None:
    """What a run has made, from its manifest."""
    counts, rows = manifest["counts"], manifest["counts"]["rows"]
    table = Table(title=f"{run.config.name}: concept archives", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("shards", f"{counts['shards']:,}")
    table.add_row("samples", f"{counts['samples']:,}")
    table.add_row("rejects", f"{counts['rejects']:,}")
    if counts.get("unreadable"):
        table.add_row("[red]shards that cannot be read", f"{counts['unreadable']:,}")
    table.add_row("concepts in the vocabulary", f"{counts['concepts']:,}")
    table.add_row("concepts per caption", f"{counts['caption_concepts'] / max(rows, 1):.2f}")
    table.add_row("concepts per archive", f"{counts['archive_concepts'] / max(rows, 1):.2f}")
    table.add_row("archives that gained concepts", f"{counts['gained'] / max(rows, 1):.1%}")
    table.add_row("empty archives", f"{counts['empty']:,}")
    for name, index in manifest.get("index", {}).items():
        if index["recall"] < 1:
            search = f", {index['search']}" if index["search"] else ""
            table.add_row(f"recall of the {name} ({index['factory']}{search})", f"{index['recall']:.3f}")
    console.print(table)
    if manifest.get("unmentioned"):
        console.print(printable(sentence(manifest["unmentioned"])), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Archives: {printable(run.path('archives'))}\n"
        f"Look at some: python -m curation.tools.show {printable(run.folder)}",
        markup=False,
        highlight=False,
    )


def print_stages(run: Run, console: Console) -> None:
    """How long each stage of this run took, from the workers' notes."""
    from curation.run.stages import plan
    from pipelines.monitor import summarise

    table = Table("stage", title="This run", title_justify="left")
    for column in ("computed", "kept", "seconds", "samples/s"):
        table.add_column(column, justify="right")
    for stage in plan(run):
        notes = read_progress(run, stage.name)
        if notes:
            state = summarise(stage, notes, len(run.shards))
            rate = f"{state.rate:,.0f}" if state.rate else ""
            seconds = f"{state.seconds:.1f}" if state.computed else ""
            table.add_row(stage.name, str(state.computed), str(state.kept), seconds, rate)
    if table.row_count:
        console.print(table)


def print_forecast(steps: list[Step], console: Console) -> None:
    """What a run would keep and compute, one row a stage."""
    table = Table("stage", title="A run would", title_justify="left")
    table.add_column("keep", justify="right")
    table.add_column("compute", justify="right")
    table.add_column("because")
    for stage in dict.fromkeys(step.stage for step in steps):
        parts = [step for step in steps if step.stage == stage]
        reasons = sorted({step.reason for step in parts if step.reason})
        kept = sum(step.kept for step in parts)
        table.add_row(stage, str(kept), str(len(parts) - kept), escape(printable("; ".join(reasons))))
    console.print(table)
