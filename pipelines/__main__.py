"""`python -m pipelines`: compile, run here, submit to Kubeflow, schedule."""

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from chexradinet.cli import show_json
from chexradinet.config import Settings as ModelSettings
from chexradinet.config.parameters import (
    WORKER_IMAGE,
    NightlySettings,
    StudySettings,
    TrainingSettings,
)
from chexradinet.errors import ChexRadiNetError, ConfigError
from pipelines.compile import BUILD_FOLDER, compile_nightly, compile_study, compile_training
from pipelines.describe import parameters_of
from pipelines.ending import ENDINGS
from pipelines.parameters import asked_shape, load_compiled, parse_settings
from pipelines.remote import (
    Arms,
    ConfigFile,
    Image,
    MaxRounds,
    Settings,
    acceptance_command,
    check_cluster_command,
    publish_command,
    schedule_command,
    submit_command,
)
from pipelines.run import run_locally
from pipelines.study import study_command
from pipelines.training import DEFAULT_SHAPE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(width=None if sys.stdout.isatty() else 110)

_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it."""

Folder = Annotated[Path, typer.Option(help="Folder for the compiled pipelines.")]


@app.command("compile")
def compile_command(
    folder: Folder = BUILD_FOLDER,
    max_rounds: MaxRounds = DEFAULT_SHAPE.max_rounds,
    arms: Arms = DEFAULT_SHAPE.has_arms,
    image: Image = WORKER_IMAGE,
) -> None:
    """Write the pipelines as Kubeflow runs them, and as manifests for `kubectl apply`."""
    training = compile_training(folder, max_rounds, image, arms)
    for path in (training, compile_nightly(folder, image), compile_study(folder, image)):
        console.print(f"wrote {path} and {path.stem}-native.yaml", highlight=False)


@app.command("run")
def run_command(
    name: Annotated[str, typer.Argument(help="training, nightly or study")],
    settings: Settings = None,
    config: ConfigFile = None,
    folder: Folder = BUILD_FOLDER,
    run_folder: Annotated[
        Path | None,
        typer.Option(help="Folder for artifacts; an interrupted run's folder continues it."),
    ] = None,
) -> None:
    """Compile a pipeline and run the compiled YAML on this machine.

    A training is compiled for the rounds and arms that the run asks for.
    """
    _model_of(name)
    if name == "training":
        shape = asked_shape(settings or [], config)
        compiled = compile_training(folder, shape.max_rounds, has_arms=shape.has_arms)
    else:
        compiled = compile_nightly(folder) if name == "nightly" else compile_study(folder)
    arguments = parse_settings(load_compiled(compiled), settings or [], config)
    target = run_folder or Path(".kfp") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(f"running {compiled} in {target}", highlight=False, soft_wrap=True)
    with _continued_by(*([] if run_folder else ["--run-folder", str(target)])):
        run_locally(compiled, arguments, target, console)
    result = ENDINGS[name](arguments, target, console)
    show_json(run_folder=target, **result)


@contextmanager
def _continued_by(*words: str) -> Iterator[None]:
    """Print how an interrupted command continues: itself, with further words."""
    try:
        yield
    except KeyboardInterrupt:
        installed = Path(sys.argv[0]).name == "chexradinet"
        program = [sys.argv[0]] if installed else [sys.executable, "-m", "pipelines"]
        again = shlex.join([*program, *sys.argv[1:], *words])
        console.print("interrupted; this continues it:", highlight=False)
        console.print(f"  {again}", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(_INTERRUPTED) from None


@app.command("params")
def params_command(
    name: Annotated[str, typer.Argument(help="training, nightly or study")],
) -> None:
    """List the parameters of a pipeline: name, default, bounds and meaning."""
    table = Table(box=None, pad_edge=False)
    for title in ("parameter", "default", "must be", "meaning"):
        table.add_column(title, overflow="fold")
    for one in parameters_of(_model_of(name)).values():
        default = "" if one.default is None else json.dumps(one.default)
        table.add_row(one.name, default, one.needed, one.description)
    console.print(table)


def _model_of(name: str) -> type[ModelSettings]:
    known: dict[str, type[ModelSettings]] = {
        "training": TrainingSettings,
        "nightly": NightlySettings,
        "study": StudySettings,
    }
    if name not in known:
        raise ConfigError(f"{name!r} is not a pipeline; known are {', '.join(known)}")
    return known[name]


@app.command("demo")
def demo_command(
    seed: Annotated[int, typer.Option(help="Random seed of the X-rays and the training.")] = 7,
    folder: Annotated[Path, typer.Option(help="Folder for everything that the demo makes.")] = Path(
        ".demo"
    ),
) -> None:
    """Generate X-rays and run the whole training pipeline on them."""
    from pipelines.demo import run_demo

    with _continued_by():
        run_demo(folder, seed, console)


app.command("study")(study_command)
app.command("publish")(publish_command)
app.command("submit")(submit_command)
app.command("schedule")(schedule_command)
app.command("check-cluster")(check_cluster_command)
app.command("acceptance")(acceptance_command)


def main() -> None:
    """Run a command; a deliberate error is printed without a traceback."""
    try:
        app()
    except ChexRadiNetError as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
