"""The demonstration: phantom X-rays through the whole pipeline, on this machine, in minutes."""

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chexradinet.dataset.phantom import write_phantom
from chexradinet.results.metrics import headline_rows, read_metrics
from pipelines.compile import compile_training
from pipelines.parameters import Value, load_compiled, parse_settings
from pipelines.run import artifacts_of, run_locally

NUM_IMAGES = 1050
PHANTOM_SIDE_PX = 192
ROUNDS = 2

SETTINGS = (
    "data_format=csv",
    "image_side=96",
    "backbone=resnet18-narrow",
    "map_stride=8",
    "epochs=10",
    f"rounds={ROUNDS}",
    "round_epochs=2",
    "num_shards=2",
    "accelerator_count=0",
    "min_improvement=-1",
)
"""A network that trains in a minute on two cores; `min_improvement=-1` always runs both rounds."""


def run_demo(folder: Path, seed: int, console: Console) -> Path:
    """Generate X-rays, compile the training pipeline, run it; return the evaluation's folder.

    Args:
        folder: Where everything goes; a second run reuses the X-rays.
        seed: Of the X-rays and of the training.
        console: Where progress is shown.

    Raises:
        LocalRunError: a stage failed.
    """
    started = time.monotonic()
    source = folder / f"phantom-{seed}"
    if not (source / "labels.csv").exists():
        console.print(f"generating {NUM_IMAGES} phantom X-rays in {source}", highlight=False)
        write_phantom(source, NUM_IMAGES, PHANTOM_SIDE_PX, seed)
    compiled = compile_training(folder / "pipelines", ROUNDS)
    given = (f"source={source}", f"models_uri={folder / 'models'}", f"seed={seed}")
    arguments: dict[str, Value] = parse_settings(load_compiled(compiled), (*given, *SETTINGS))
    run_folder = folder / f"training-{time.strftime('%Y%m%d-%H%M%S')}"
    console.print(f"running {compiled} with kfp's local runner", highlight=False)
    run_locally(compiled, arguments, run_folder, console)
    evaluation = artifacts_of(run_folder, "evaluation")[-1]
    _show(evaluation, console)
    console.print(f"report  {evaluation / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"models  {folder / 'models'}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)
    return evaluation


def _show(evaluation: Path, console: Console) -> None:
    document = read_metrics(evaluation / "metrics.json")
    table = Table(title="Test split, per round", title_justify="left")
    columns = {
        "round": "round",
        "guidance": "guidance",
        "mean_auroc": "mean AUROC",
        "iou_0.1": "IoU 0.1",
        "random_iou_0.1": "random",
        "swapped_iou_0.1": "swapped",
        "iou_0.3": "IoU 0.3",
        "random_iou_0.3": "random",
        "swapped_iou_0.3": "swapped",
    }
    for title in columns.values():
        table.add_column(title, justify="left" if title == "guidance" else "right")
    for row in headline_rows(document):
        cells = [_cell(row[key]) for key in columns]
        table.add_row(*cells, style="bold" if row["best"] else "")
    console.print(table)
    console.print(document["protocol"]["localization"], style="dim", highlight=False)


def _cell(value: object) -> str:
    if value is None:
        return "n/d"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
