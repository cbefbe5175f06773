"""`python -m pipelines`: compile, run here, submit to Kubeflow, schedule."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from chexradinet.errors import ChexRadiNetError
from chexradinet.steps.worker import WORKER_IMAGE
from pipelines.compile import BUILD_FOLDER, compile_nightly, compile_training
from pipelines.parameters import load_compiled, parse_settings
from pipelines.remote import Image, publish_command, schedule_command, submit_command
from pipelines.run import run_locally
from pipelines.training import DEFAULT_MAX_ROUNDS

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(width=None if sys.stdout.isatty() else 110)

Folder = Annotated[Path, typer.Option(help="Folder for the compiled pipelines.")]
MaxRounds = Annotated[int, typer.Option(help="Guided rounds that the pipeline can run at most.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="A parameter, as name=value; repeatable.")
]


@app.command("compile")
def compile_command(
    folder: Folder = BUILD_FOLDER,
    max_rounds: MaxRounds = DEFAULT_MAX_ROUNDS,
    image: Image = WORKER_IMAGE,
) -> None:
    """Write the pipelines as Kubeflow runs them, and as manifests for `kubectl apply`."""
    for path in (compile_training(folder, max_rounds, image), compile_nightly(folder, image)):
        console.print(f"wrote {path} and {path.stem}-native.yaml", highlight=False)


@app.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help="training or nightly")],
    settings: Settings = None,
    folder: Folder = BUILD_FOLDER,
    max_rounds: MaxRounds = DEFAULT_MAX_ROUNDS,
    run_folder: Annotated[
        Path | None, typer.Option(help="Folder for artifacts; a new one under .kfp otherwise.")
    ] = None,
) -> None:
    """Compile a pipeline and run the compiled YAML on this machine."""
    if name not in ("training", "nightly"):
        raise typer.BadParameter(f"{name!r} is no pipeline; known are training and nightly")
    training = name == "training"
    compiled = compile_training(folder, max_rounds) if training else compile_nightly(folder)
    arguments = parse_settings(load_compiled(compiled), settings or [])
    target = run_folder or Path(".kfp") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(f"running {compiled} in {target}", highlight=False)
    run_locally(compiled, arguments, target, console)
    console.print(f"finished; artifacts and run.log are in {target}", highlight=False)


@app.command("demo")
def demo_command(
    seed: Annotated[int, typer.Option(help="Of the X-rays and of the training.")] = 7,
    folder: Annotated[Path, typer.Option(help="Where everything goes.")] = Path(".demo"),
) -> None:
    """Generate X-rays and run the whole training pipeline on them."""
    from pipelines.demo import run_demo

    run_demo(folder, seed, console)


app.command("publish")(publish_command)
app.command("submit")(submit_command)
app.command("schedule")(schedule_command)


def main() -> None:
    """Run a command; a deliberate error is printed without a traceback."""
    try:
        app()
    except ChexRadiNetError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
