"""The demonstration: phantom X-rays through the whole pipeline, on this machine, in minutes."""

import os
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chexradinet.errors import ConfigError
from chexradinet.evaluation.metrics import headline_rows, read_metrics
from chexradinet.phantom import write_phantom
from chexradinet.phantom.dicom import write_phantom_inbox
from pipelines.compile import compile_nightly, compile_training
from pipelines.parameters import Value, asked_shape, load_compiled, parse_settings
from pipelines.run import artifacts_of, run_locally

NUM_IMAGES = 1050
PHANTOM_SIDE_PX = 192

PRESET = Path(__file__).parent / "presets" / "quick.yaml"

INBOX_IMAGES = 40
_FIRST_INBOX_SEED = 1_000_000
NIGHTLY_SETTINGS = ("settle_s=0", "shard_size=25", "dicom_results=true", "num_decoders=1")
"""`settle_s=0`, because the inbox was written a moment ago; decoding processes of their own would
take longer to start than 40 X-rays take to decode."""


def run_demo(folder: Path, seed: int, console: Console) -> None:
    """Train on generated X-rays with the compiled pipeline, then score an inbox with its champion.

    Args:
        folder: Where everything goes; a second run reuses the X-rays.
        seed: Random seed of the X-rays and the training.
        console: Where progress is shown.

    Raises:
        ConfigError: `folder` holds anything but an earlier demo.
        LocalRunError: a stage failed.
    """
    if any(folder.glob("*")) and not any(folder.glob("phantom-*")):
        raise ConfigError(
            f"{folder} is not empty and holds no earlier demo, so nothing is put there; give "
            "another path with --folder"
        )
    started = time.monotonic()
    run = time.strftime("%Y%m%d-%H%M%S")
    evaluation = _train(folder, seed, run, console)
    _score(folder, seed, run, console)
    _show(evaluation, console)
    console.print(f"report   {evaluation / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(f"models   {folder / 'models'}", highlight=False, soft_wrap=True)
    console.print(f"nightly  {_latest_night(folder)}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} s in all", highlight=False)


def _train(folder: Path, seed: int, run: str, console: Console) -> Path:
    source = folder / f"phantom-{seed}"
    if not (source / "labels.csv").exists():
        console.print(f"generating {NUM_IMAGES} phantom X-rays in {source}", highlight=False)
        write_phantom(source, NUM_IMAGES, PHANTOM_SIDE_PX, seed)
    shape = asked_shape((), PRESET)
    compiled = compile_training(folder / "pipelines", shape.max_rounds, has_arms=shape.has_arms)
    given = (f"source={source}", f"models_uri={folder / 'models'}", f"seed={seed}")
    arguments: dict[str, Value] = parse_settings(load_compiled(compiled), given, PRESET)
    run_folder = folder / f"training-{run}"
    console.print(f"running {compiled} with kfp's local runner", highlight=False)
    run_locally(compiled, arguments, run_folder, console, _threads())
    return artifacts_of(run_folder, "evaluation")[-1]


def _score(folder: Path, seed: int, run: str, console: Console) -> None:
    nights = len(list((folder / "inbox").glob("*")))
    inbox = folder / "inbox" / run
    console.print(f"generating {INBOX_IMAGES} new DICOM X-rays in {inbox}", highlight=False)
    write_phantom_inbox(
        inbox, INBOX_IMAGES, PHANTOM_SIDE_PX, _FIRST_INBOX_SEED + 1000 * seed + nights
    )
    (inbox / "truncated.dcm").write_bytes((inbox / "000000.dcm").read_bytes()[:20_000])
    compiled = compile_nightly(folder / "pipelines")
    given = (
        f"inbox_uri={folder / 'inbox'}",
        f"models_uri={folder / 'models'}",
        f"results_uri={folder / 'results'}",
    )
    arguments = parse_settings(load_compiled(compiled), (*given, *NIGHTLY_SETTINGS))
    console.print(f"running {compiled} with kfp's local runner", highlight=False)
    run_locally(compiled, arguments, folder / f"nightly-{run}", console, _threads())


def _threads() -> dict[str, str]:
    """Keep torch to one thread: more of them wait for each other on a busy machine."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}


def _latest_night(folder: Path) -> Path:
    return max((folder / "results" / "scores").iterdir()) / "report.html"


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
