"""What a local run ends with: figures, reports, model and decision."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chexradinet.artifacts import read_document
from chexradinet.evaluation.metrics import headline_rows, read_metrics
from chexradinet.training.publish import DECISION_SCHEMA
from pipelines.parameters import Value
from pipelines.run import artifacts_of

_COLUMNS = {
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


def show_training(arguments: Mapping[str, Value], run_folder: Path, console: Console) -> None:
    """Print the headline table, where report and model are, and whether it was published.

    Args:
        arguments: Parameters of the run.
        run_folder: Folder of the finished run.
        console: Where to print.
    """
    evaluation = artifacts_of(run_folder, "evaluation")[-1]
    document = read_metrics(evaluation / "metrics.json")
    table = Table(title="Test split, per round", title_justify="left")
    for title in _COLUMNS.values():
        table.add_column(title, justify="left" if title == "guidance" else "right")
    for row in headline_rows(document):
        cells = [_cell(row[key]) for key in _COLUMNS]
        table.add_row(*cells, style="bold" if row["best"] else "")
    console.print(table)
    console.print(document["protocol"]["localization"], style="dim", highlight=False)
    figures = artifacts_of(run_folder, "figures")[-1]
    decision = read_document(figures, "publication", DECISION_SCHEMA)
    verdict = "published" if decision["published"] else "not published"
    _line(console, "report", evaluation / "report.html")
    _line(console, "model", f"{arguments['models_uri']}/{decision['champion_digest']}")
    _line(console, "decision", f"{verdict}: {decision['reason']}")


def show_nightly(arguments: Mapping[str, Value], run_folder: Path, console: Console) -> None:
    """Print what a night came to, and where its worklist and report are.

    Args:
        arguments: Parameters of the run.
        run_folder: Folder of the finished run.
        console: Where to print.
    """
    (collected,) = run_folder.glob("*/collect/executor_output.json")
    outcome = json.loads(collected.read_text(encoding="utf-8"))["parameterValues"]["Output"]
    _line(console, "night", outcome)
    scores = f"{arguments['results_uri']}/scores"
    nights = sorted(Path(scores).glob("date=*"))
    for name in ("worklist", "report"):
        _line(console, name, nights[-1] / f"{name}.html" if nights else f"{scores}/…/{name}.html")


def _line(console: Console, name: str, text: object) -> None:
    console.print(f"{name:<9} {text}", highlight=False, markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if value is None:
        return "n/d"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
