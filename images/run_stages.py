"""Run every stage of the pipelines inside the worker image, on a tiny demonstration.

`python -m images.run_stages [--image NAME:TAG] [--work FOLDER]`, or `make test-image`. It walks the
compiled pipelines and starts each step's own command in a container without root, network or a
writable root file system.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console

from chexradinet import __version__
from chexradinet.phantom import write_phantom
from images.build import NAME
from images.graph import GraphError, Values, walk
from images.launcher import Launcher, Sandbox, StageError, open_folder
from pipelines.compile import compile_nightly, compile_training
from pipelines.parameters import load_compiled, parse_settings

NUM_IMAGES = 120
SIDE_PX = 64
DEFAULT_IMAGE = f"{NAME}:{__version__}"

TRAINING_SETTINGS = (
    "source=/inputs",
    "models_uri=/models",
    "data_format=csv",
    f"image_side={SIDE_PX}",
    "backbone=resnet18-narrow",
    "map_stride=8",
    "epochs=1",
    "rounds=1",
    "round_epochs=1",
    "num_shards=2",
    "bootstrap_samples=100",
    "allow_missing_thresholds=true",
    "accelerator_count=0",
    "min_improvement=-1",
)
"""The smallest run in which every stage has something to do."""

NIGHTLY_SETTINGS = (
    "inbox_uri=/inputs/images",
    "models_uri=/models",
    "results_uri=/results",
    "shard_size=60",
    "settle_s=0",
    "min_age_years=0",
)
"""A night in which the training run's X-rays arrive, two shards of them."""


def prepare(image: str, work: Path, environment: Mapping[str, str] | None = None) -> Sandbox:
    """Draw the phantom X-rays and return where the stages run."""
    source = work / "inputs"
    if not (source / "labels.csv").exists():
        write_phantom(source, NUM_IMAGES, SIDE_PX, seed=0)
    for path in (source, *source.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    volumes = {source: "/inputs:ro"}
    open_folder(work)
    for name in ("models", "results", "state"):
        open_folder(work / name)
        volumes[work / name] = f"/{name}"
    return Sandbox(image=image, work=work, volumes=volumes, environment=environment or {})


def run_pipeline(
    compiled: Path, settings: Iterable[str], sandbox: Sandbox, console: Console
) -> dict[str, float]:
    """Run a compiled pipeline's stages in containers; return the seconds that each took.

    Raises:
        StageError: a stage failed.
        GraphError: the pipeline has a construct that the walk does not know.
    """
    document = load_compiled(compiled)
    launcher = Launcher(document, sandbox)

    def launch(task_path: str, component: str, inputs: Values) -> Values:
        outputs = launcher(task_path, component, inputs)
        console.print(f"  {launcher.seconds[task_path]:6.1f} s  {task_path}", highlight=False)
        return outputs

    walk(document, parse_settings(document, settings), launch)
    return launcher.seconds


def run_stages(sandbox: Sandbox, console: Console) -> dict[str, float]:
    """Run all stages, first of training, then of a night with the model that it published.

    Raises:
        StageError: a stage failed.
    """
    folder = sandbox.work / "pipelines"
    training = compile_training(folder, max_rounds=1)
    seconds = run_pipeline(training, TRAINING_SETTINGS, sandbox, console)
    night = run_pipeline(compile_nightly(folder), NIGHTLY_SETTINGS, sandbox, console)
    return seconds | night


def main() -> int:
    """Run the stages and say how long each took."""
    parser = argparse.ArgumentParser(description="Run every stage inside the worker image.")
    parser.add_argument("--image", default=DEFAULT_IMAGE)
    parser.add_argument("--work", type=Path, help="folder to keep artifacts and logs in")
    given = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="stages-") as scratch:
        work = (given.work or Path(scratch)).resolve()
        try:
            seconds = run_stages(prepare(given.image, work), console)
        except (StageError, GraphError) as error:
            console.print(f"test-image: {error}", highlight=False, markup=False)
            return 1
    console.print(f"{len(seconds)} tasks ran in {given.image}: {sum(seconds.values()):.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
