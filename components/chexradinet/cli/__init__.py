"""`chexradinet <command>`: every stage from a shell, and what operates an installation.

A command's module is imported when it is called: its options come from settings models, which take
longer to build than `--help` may.
"""

import logging
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from chexradinet.cli.progress import console, print_json
from chexradinet.errors import ChexRadiNetError
from chexradinet.version import __version__

_MODULES = {
    "training": {
        "phantom": "Generate X-ray-like images with planted findings and a label table.",
        "ingest": "Decode X-rays into a data set; a killed run continues where it stopped.",
        "pretrain": "Pre-train an encoder on the training images without labels.",
        "train": "Train round 0 on image labels alone.",
        "heatmap": "Find the regions that a model looked at in the training images.",
        "radiomics": "Measure the 102 radiomics features of regions.",
        "retrain": "Train one guided round.",
        "evaluate": "Choose and calibrate the best round; evaluate all on the test split.",
        "publish": "Publish a model if it beats the champion.",
    },
    "nightly": {
        "plan": "Plan what arrived; print the work for `score` and `collect`.",
        "score": "Score one shard of the planned X-rays, unless it was done before.",
        "collect": "Write scores, worklist and report of the planned X-rays.",
        "nightly": "Plan, score, collect and send in one go; running it again continues it.",
        "upload": "Send a night's DICOM results to an archive by STOW-RS.",
        "predict": "Print a model's predictions for X-rays, one line of JSON each.",
    },
    "operations": {
        "buckets": "Create buckets, policies and users as the store's administrator.",
        "roll-back": "Make an earlier model the champion again.",
        "export-onnx": "Write a network as ONNX: logits, maps and embedding in one graph.",
    },
}
COMMANDS = {
    name: (module, text) for module, texts in _MODULES.items() for name, text in texts.items()
}
"""Name of a command, the module here that has it, and the line that --help shows."""


class _Group(TyperGroup):
    """The commands of this package, and of plugins."""

    def __init__(self, *, commands: dict[str, Any], **attributes: Any) -> None:  # noqa: ANN401
        listed = {name: TyperCommand(name, help=text) for name, (_, text) in COMMANDS.items()}
        super().__init__(commands={**listed, **commands}, **attributes)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:  # noqa: ANN401
        """Return the called command, with its options."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            module = import_module(f"{__name__}.{COMMANDS[name][0]}")
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
