"""Commands of the pipelines under `chexradinet`, beside those of the stages.

Each hands its words to `python -m pipelines`, which is loaded only then: kfp takes half a second.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

COMMANDS = {
    "run": ("run", "Compile a pipeline and run the compiled file on this machine."),
    "params": ("params", "Print the parameters of a pipeline: default, bounds, description."),
    "compile": ("compile", "Compile the pipelines for Kubeflow, and as manifests."),
    "publish-pipeline": ("publish", "Upload a pipeline to Kubeflow, unless it is there already."),
    "submit": ("submit", "Start a run of a published pipeline, and follow it."),
    "check-cluster": ("check-cluster", "Check whether an installation has what a run needs."),
    "acceptance": ("acceptance", "Train and score on an installation as a test, then clean up."),
    "schedule": ("schedule", "Create or change a recurring run on Kubeflow."),
    "study": ("study", "Compare pretexts and their controls over numbers of labels and seeds."),
    "demo": ("demo", "Train on generated X-rays and score an inbox, on this machine."),
}
"""Name under `chexradinet`, name under `python -m pipelines`, and the line that --help shows."""

_FORWARDED = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the pipelines' commands to a command line."""
    for name, (target, text) in COMMANDS.items():
        app.command(name, help=text, add_help_option=False, context_settings=_FORWARDED)(
            _forward(name, target)
        )
    app.command("check-manifests")(check_manifests)


def check_manifests(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of an overlay.")
    ],
) -> None:
    """List unfilled placeholders of an overlay; exit code 1 if there are any."""
    from pipelines.placeholders import unfilled

    found = unfilled(folder)
    for placeholder in found:
        typer.echo(str(placeholder))
    typer.echo(f"{len(found)} placeholders are unfilled", err=True)
    if found:
        raise typer.Exit(1)


def _forward(name: str, target: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        try:
            from pipelines.__main__ import app as pipelines
        except ImportError as error:
            raise typer.BadParameter(
                f"chexradinet {name} needs Kubeflow's SDK ({error.name} is missing): "
                "pip install 'chexradinet[kfp]'"
            ) from error
        pipelines([target, *context.args], prog_name="chexradinet")

    return command
