"""What a local run ends with: figures, reports, model and decision.

Each function prints it and returns it by name, for programs that ask for JSON.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from chexradinet.artifacts import read_document
from chexradinet.evaluation import headline_rows, read_metrics
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


def show_training(
    arguments: Mapping[str, Value], run_folder: Path, console: Console
) -> dict[str, object]:
    """Print the headline table, where report and champion are, and whether it is this model.

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
    published, digest = decision["published"], decision["champion_digest"]
    champion = f"{arguments['models_uri']}/{digest}" if digest else "none"
    verdict = "published" if published else "not published"
    lines = {
        "report": evaluation / "report.html",
        "model" if published else "champion": champion,
        "decision": f"{verdict}: {decision['reason']}",
    }
    return _lines(console, lines)


def show_nightly(
    arguments: Mapping[str, Value], run_folder: Path, console: Console
) -> dict[str, object]:
    """Print what a night came to, and where its worklist and report are.

    Args:
        arguments: Parameters of the run.
        run_folder: Folder of the finished run.
        console: Where to print.
    """
    (collected,) = run_folder.glob("*/collect/executor_output.json")
    outcome = json.loads(collected.read_text(encoding="utf-8"))["parameterValues"]["Output"]
    scores = f"{arguments['results_uri']}/scores"
    nights = sorted(Path(scores).glob("date=*"))
    folder = nights[-1] if nights else f"{scores}/…"
    lines = {name: f"{folder}/{name}.html" for name in ("worklist", "report")}
    return _lines(console, {"night": outcome, **lines})


def show_study(
    _arguments: Mapping[str, Value], run_folder: Path, console: Console
) -> dict[str, object]:
    """Print what a study shows and what not, and where its report is.

    Args:
        run_folder: Folder of the finished run.
        console: Where to print.
    """
    # Here, because torch takes seconds to load.
    from chexradinet.training.study_report import SCHEMA

    study = artifacts_of(run_folder, "study")[-1]
    document = read_document(study / "study.json", "study", SCHEMA)
    for sentence in document["sentences"]:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    return _lines(console, {"report": study / "report.html"})


ENDINGS = {"training": show_training, "nightly": show_nightly, "study": show_study}
"""By pipeline."""


def _lines(console: Console, lines: Mapping[str, object]) -> dict[str, object]:
    for name, text in lines.items():
        console.print(f"{name:<9} {text}", highlight=False, markup=False, soft_wrap=True)
    return {name: str(text) for name, text in lines.items()}


def _cell(value: object) -> str:
    if value is None:
        return "n/d"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
