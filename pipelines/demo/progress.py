"""Making the demo world with a progress bar."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.demo.world import WorldConfig, ensure_world


def make_with_progress(folder: str, console: Console, config: WorldConfig | None = None, processes: int = 2) -> bool:
    """Make the world unless it is there, with a progress bar; returns whether it had to be made. Raises CocuError."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("scenes", visible=False)

        def show(done: int, total: int) -> None:
            if not done:
                bar.console.print(f"Drawing the demo world of {total:,} scenes -> {escape(folder)}", highlight=False)
            bar.update(task, completed=done, total=total, visible=True)

        return ensure_world(folder, config, processes, show)
