"""`chexradinet <command>`: every stage from a shell, and what operates an installation."""

import logging
from importlib.metadata import entry_points
from typing import Annotated

import typer

from chexradinet.cli import nightly, operations, training
from chexradinet.cli.progress import console, print_json
from chexradinet.errors import ChexRadiNetError
from chexradinet.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
training.register(app)
nightly.register(app)
operations.register(app)
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
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Radiomics-guided chest X-ray classification and localisation. Not for diagnostic use."""
    print_json(json)
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
