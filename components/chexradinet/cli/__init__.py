"""`chexradinet <command>`: every stage from a shell, and what operates an installation.

The commands are imported when one is called: their options come from settings models, which take
longer to build than `--help` may.
"""

import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from chexradinet.errors import ChexRadiNetError
from chexradinet.version import __version__

if TYPE_CHECKING:
    from chexradinet.config import Settings
    from chexradinet.config.parameters import Parameter

console = Console(stderr=True)
"""Standard error: standard output is for what another program reads."""

_as_json = False

COMMANDS = {
    "phantom": "Generate X-ray-like images with planted findings and a label table.",
    "ingest": "Decode X-rays into a data set; a killed run continues where it stopped.",
    "pretrain": "Pre-train an encoder on the training images without labels.",
    "train": "Train round 0 on image labels alone.",
    "heatmap": "Find the regions that a model looked at in the training images.",
    "radiomics": "Measure the 102 radiomics features of regions.",
    "retrain": "Train one guided round.",
    "evaluate": "Choose and calibrate the best round; evaluate all on the test split.",
    "publish": "Publish a model if it beats the champion.",
    "plan": "Plan what arrived; print the work for `score` and `collect`.",
    "score": "Score one shard of the planned X-rays, unless it was done before.",
    "collect": "Write scores, worklist and report of the planned X-rays.",
    "nightly": "Plan, score, collect and send in one go; running it again continues it.",
    "upload": "Send a night's DICOM results to an archive by STOW-RS.",
    "predict": "Print a model's predictions for X-rays, one line of JSON each.",
    "buckets": "Create buckets, policies and users as the store's administrator.",
    "roll-back": "Make an earlier model the champion again.",
    "export-onnx": "Write a network as ONNX: logits, maps and embedding in one graph.",
}
"""Name of a command, and the line that --help shows."""


class _Group(TyperGroup):
    """The commands of this package, and of plugins."""

    def __init__(self, *, commands: dict[str, Any], **attributes: Any) -> None:  # noqa: ANN401
        listed = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}
        super().__init__(commands={**listed, **commands}, **attributes)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:  # noqa: ANN401
        """Return the called command, with its options."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module = import_module(f"{__name__}.commands")
            made = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            made.command(name)(getattr(module, name.replace("-", "_")))
            command = typer.main.get_command(made)
        return name, command, rest


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _plugin in entry_points(group="chexradinet.commands"):
    _plugin.load()(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Radiomics-guided chest X-ray classification and localisation. Not for diagnostic use."""
    global _as_json
    _as_json = as_json
    console.quiet = quiet
    level = logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


def main() -> None:
    """Run a command; a deliberate error is printed without a traceback, and exits with 1."""
    try:
        app()
    except ChexRadiNetError as error:
        console.quiet = False
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(1) from None


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


def with_settings(
    model: "type[Settings]",
    **defaults: object,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each setting of a model.

    The command takes the model as its keyword argument `settings`.

    Args:
        model: Settings of the command's stage.
        defaults: Defaults that differ from the model's, by name.
    """
    from chexradinet.config.base import leaves
    from chexradinet.config.parameters import flat, nested

    kinds = {path[-1]: field.annotation for path, field in leaves(model)}
    shown = {name: one for name, one in flat(model).items() if not one.internal}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        own = [one for one in signature.parameters.values() if one.name != "settings"]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, ... if one.default is None else one.default),
                annotation=Annotated[_option_kind(kinds[name], one), _option(one)],
            )
            for name, one in shown.items()
        ]

        def run(**values: Any) -> None:  # noqa: ANN401 - each option has its own type
            given = {name: values.pop(name) for name in shown}
            command(**values, settings=nested(model, given))

        keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=[*keyword_only, *made])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*keyword_only, *made]}
        return run

    return decorate


def _option_kind(kind: Any, one: "Parameter") -> Any:  # noqa: ANN401 - any annotation
    return kind if isinstance(kind, type) and issubclass(kind, StrEnum) else one.kind


def _option(one: "Parameter") -> Any:  # noqa: ANN401 - typer's OptionInfo
    # Typer shows the names of a choice itself, and the type of a number.
    bounds = one.needed if one.kind in (int, float) and one.needed[:2] != "a " else ""
    return typer.Option(help=f"{one.description} {bounds.capitalize()}".strip())
