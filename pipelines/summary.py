"""The tables at the end of a run, and what was wrong with its data."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from curation.base.errors import CocuError
from curation.base.terminal import printable
from curation.choice import RARE
from curation.run.forecast import Step
from curation.run.progress import read_progress
from curation.run.rejects import is_notable, read_rejects
from curation.run.run import Run
from curation.run.unmentioned import sentence
from curation.tools.report.survey import Candidate, read_candidates

NAMED = 12  # candidates that the summary names for each reason


def print_counts(run: Run, manifest: dict[str, Any], console: Console) -> None:
    """What a run has made, from its manifest."""
    counts, rows = manifest["counts"], manifest["counts"]["rows"]
    table = Table(title=f"{run.config.name}: concept archives", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("shards", f"{counts['shards']:,}")
    table.add_row("samples", f"{counts['samples']:,}")
    colour = "[red]" if is_notable(counts) else ""
    table.add_row(f"{colour}rejects", f"{colour}{counts['rejects']:,}")
    if counts.get("unreadable"):
        table.add_row("[red]shards that cannot be read", f"{counts['unreadable']:,}")
    table.add_row("concepts in the vocabulary", f"{counts['concepts']:,}")
    per = "concepts in captions, per image" if run.config.captions else "concepts per caption"
    table.add_row(per, f"{counts['caption_concepts'] / max(rows, 1):.2f}")
    table.add_row("concepts per archive", f"{counts['archive_concepts'] / max(rows, 1):.2f}")
    table.add_row("archives with more than the caption", f"{counts['gained'] / max(rows, 1):.1%}")
    table.add_row("empty archives", f"{counts['empty']:,}")
    if "duplicates" in counts:
        table.add_row("near-identical to another image", f"{counts['duplicates']:,}")
    for name, index in manifest.get("index", {}).items():
        if index["recall"] < 1:
            search = f", {index['search']}" if index["search"] else ""
            asked = run.config.retrieval.recall
            colour, missed = ("[red]", f", below {asked}") if index["recall"] < asked else ("", "")
            what = escape(f"recall of the {name} ({index['factory']}{search}){missed}")
            table.add_row(f"{colour}{what}", f"{colour}{index['recall']:.3f}")
    console.print(table)
    print_rejects(run, counts, console)
    print_repeated(manifest, console)
    for line in left_out(_candidates(run)):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    if manifest.get("unmentioned"):
        console.print(printable(sentence(manifest["unmentioned"])), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Archives: {printable(run.path('archives'))}\nLook at some: cocu show {printable(run.folder)}",
        markup=False,
        highlight=False,
    )


def print_rejects(run: Run, counts: dict[str, int], console: Console) -> None:
    """Why samples could not be used: each reason with its count and two of its keys; red where there are many."""
    groups = read_rejects(run)
    if not groups:
        return
    colour = "red" if is_notable(counts) or counts.get("unreadable") else "yellow"
    share = counts["rejects"] / max(counts["samples"], 1)
    console.print(
        f"[{colour}]{counts['rejects']:,} of {counts['samples']:,} samples could not be used ({share:.2%}):[/]",
        highlight=False,
    )
    for group in groups:
        console.print(f"  [{colour}]{escape(group.line())}[/]", highlight=False, soft_wrap=True)
    console.print(
        f"  All of them, with reasons: {escape(printable(run.path('rejects')))}", highlight=False, soft_wrap=True
    )


def print_repeated(manifest: dict[str, Any], console: Console) -> None:
    """A warning where shards have keys in common, by which an archive cannot be looked up."""
    count = manifest["counts"].get("repeated_keys", 0)
    if count:
        what = f"{count:,} keys occur in several shards, such as {repeated_examples(manifest)}"
        console.print(f"[yellow]{escape(what)}: look them up as (shard, key)[/]", highlight=False, soft_wrap=True)


def repeated_examples(manifest: dict[str, Any]) -> str:
    """The keys that the manifest gives as examples of those in several shards: ``a (00000, 00001), b (00000, 00002)``."""
    rows = manifest.get("repeated_keys", [])
    return printable(", ".join(f"{key} ({one}, {other})" for key, one, other in rows))


def _candidates(run: Run) -> list[Candidate]:
    """The rows of ``vocabulary.csv``; none where it is gone, or was edited to something else, as people may."""
    try:
        return read_candidates(run) if run.config.vocabulary.built else []
    except (CocuError, ValueError, TypeError, KeyError):
        return []


def left_out(candidates: list[Candidate]) -> list[str]:
    """Which frequent nouns did not enter a vocabulary that was built, by reason: lines of text.

    The most frequent first: those that most captions hold, as a noun or not.
    """
    by_reason: dict[str, list[Candidate]] = {}
    for candidate in sorted(candidates, key=lambda candidate: (-candidate.written, candidate.concept)):
        if candidate.reason and candidate.reason != RARE:
            reason = "part of a longer name" if candidate.reason.startswith("part of ") else candidate.reason
            by_reason.setdefault(reason, []).append(candidate)

    lines = []
    for reason, words in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        named = ", ".join(f"{word.concept} ({word.written:,})" for word in words[:NAMED])
        more = f" and {len(words) - NAMED:,} more, all in vocabulary.csv" if len(words) > NAMED else ""
        lines.append(f"left out, {reason}: {named}{more}")
    return lines


def print_stages(run: Run, console: Console) -> None:
    """How long each stage of this run took, from the workers' notes."""
    from curation.run.stages import plan
    from pipelines.monitor import summarise

    table = Table("stage", title="This run", title_justify="left")
    for column in ("computed", "kept", "workers", "seconds", "samples/s"):
        table.add_column(column, justify="right")
    for stage in plan(run):
        notes = read_progress(run, stage.name)
        if notes:
            state = summarise(stage, notes, len(run.shards))
            rate = f"{state.rate:,.0f}" if state.rate else ""
            seconds = f"{state.seconds:.1f}" if state.computed else ""
            table.add_row(stage.name, str(state.computed), str(state.kept), state.workers, seconds, rate)
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
