"""`chexradinet <stage>`: every stage from a shell, with progress bars."""

import logging

import typer

from chexradinet.cli import nightly, training
from chexradinet.cli.progress import console
from chexradinet.errors import ChexRadiNetError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
training.register(app)
nightly.register(app)


def main() -> None:
    """Run a stage; a deliberate error is printed without a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        app()
    except ChexRadiNetError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(1) from None
