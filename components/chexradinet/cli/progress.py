"""What the commands print with: a console for people, JSON for programs, and progress bars."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

console = Console(stderr=True)
"""Standard error: standard output is for what another program reads."""

_as_json = False


def print_json(wanted: bool) -> None:
    """Choose whether results are also printed as JSON on standard output."""
    global _as_json
    _as_json = wanted


def show(text: str, **result: object) -> None:
    """Print a command's result: a line for people, and JSON on standard output if asked for."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    show_json(**result)


def show_json(**result: object) -> None:
    """Print a result as JSON on standard output if asked for."""
    if _as_json:
        typer.echo(json.dumps(result, sort_keys=True, default=str))


@contextmanager
def bar(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar; yields what a stage calls with done, total and maybe a loss."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)

        def advance(done: int, total: int, loss: float | None = None) -> None:
            note = f"{label} {unit}" if loss is None else f"{label} {unit}, loss {loss:.3f}"
            progress.update(task, completed=done, total=total, description=note)

        yield advance
