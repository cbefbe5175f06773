"""What the commands print with: a console for people, and progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)
"""Standard error: standard output is for what another program reads."""


@contextmanager
def bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields what a flow calls with done, total and maybe a loss."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)

        def advance(done: int, total: int, loss: float | None = None) -> None:
            note = f"{label} {unit}" if loss is None else f"{label} {unit}, loss {loss:.3f}"
            progress.update(task, completed=done, total=total, description=note)

        yield advance
